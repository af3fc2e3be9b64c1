"""Importing files of bars: resumable, idempotent, and never half a file lost for a bad row."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from domain.bar import Bar
from domain.clock import Clock
from domain.packed import clipped, runs_of
from domain.time_range import RangeSet
from domain.timeframe import Timeframe
from services.bar_files import BadRow, BarBatch, read_bars
from services.bar_store import BarStore, StoredSeries
from services.sql import load_queries

#: Bad rows that a report lists; more are only counted.
MOST_LISTED = 1_000


@dataclass
class ImportReport:
    """What an import did: rows read now, bars new or altered, altered ones, bad rows, and where it went on from."""

    rows: int = 0
    written: int = 0
    revised: int = 0
    bad: int = 0
    bad_rows: list[BadRow] = field(default_factory=list)
    resumed_at: int = 0


Progress = Callable[[BarBatch], None]


class Importer:
    """Writes files of bars into the store. A minute that a file lacks stays unknown: a file vouches for nothing."""

    def __init__(self, store: BarStore, clock: Clock) -> None:
        """Take the store, and the clock that tells which bars have ended."""
        self._store = store
        self._clock = clock
        self._sql = load_queries("imports")

    async def run(
        self, path: Path, series: StoredSeries, timeframe: Timeframe, *, progress: Progress | None = None
    ) -> ImportReport:
        """Import one file; go on where an interrupted import of the same content stopped.

        Raises:
            BarFileError: the file cannot be read as bars at all.
        """
        fingerprint = await asyncio.to_thread(_fingerprint, path)
        done = await self._rows_done(fingerprint, series, timeframe)
        report = ImportReport(resumed_at=done)
        days = timeframe.nominal_ms >= Timeframe.D1.nominal_ms and series.calendar is not None
        batches = read_bars(path, timeframe, skip_rows=done, session_dates=days)
        async with aclosing(_read_ahead(batches, timeframe)) as ready:
            async for batch in ready:
                await self._keep(batch, series, timeframe, fingerprint, report)
                if progress is not None:
                    progress(batch.read)
        await self._finish(fingerprint, series, timeframe)
        await self._store.settle()
        return report

    async def _keep(
        self, ready: "_Ready", series: StoredSeries, timeframe: Timeframe, fingerprint: str, report: ImportReport
    ) -> None:
        """Write a batch and how far the import came, all or nothing."""
        batch = ready.read
        bars, answered = _ended(ready, timeframe, self._clock.now_ms())
        async with self._store.database.transaction() as db:
            written = await self._store.record_in(
                db, series.id, timeframe, bars=bars, answered=answered, was_asked=False
            )
            await db.execute(self._sql["advance"], fingerprint, series.id, timeframe.value, batch.position)
        self._store.count(written)
        early = len(batch.found) - len(bars)
        report.rows = batch.position - report.resumed_at
        report.written += written.written
        report.revised += written.revised
        report.bad += len(batch.bad) + early
        report.bad_rows += batch.bad[: MOST_LISTED - len(report.bad_rows)]
        if early:
            report.bad_rows.append(BadRow(batch.position, f"{early} bars up to here have not ended yet"))

    async def _rows_done(self, fingerprint: str, series: StoredSeries, timeframe: Timeframe) -> int:
        """Rows of an unfinished import; a finished one starts over, and finds nothing to write."""
        async with self._store.database.connection() as db:
            done = await db.fetchval(self._sql["rows_done"], fingerprint, series.id, timeframe.value)
        return int(done or 0)

    async def _finish(self, fingerprint: str, series: StoredSeries, timeframe: Timeframe) -> None:
        async with self._store.database.connection() as db:
            await db.execute(self._sql["finish"], fingerprint, series.id, timeframe.value)


class _Ready(NamedTuple):
    """A batch that was read, and the buckets of its bars."""

    read: BarBatch
    buckets: RangeSet


async def _read_ahead(batches: Iterator[BarBatch], timeframe: Timeframe) -> AsyncGenerator[_Ready, None]:
    """Read in a thread: the next batch while this one is written."""
    reading = _reading(batches, timeframe)
    try:
        while (ready := await asyncio.shield(reading)) is not None:
            reading = _reading(batches, timeframe)
            yield ready
    finally:
        # A thread cannot be interrupted, and the file is not to be closed under it.
        await asyncio.wait({reading})
        reading.exception()


def _reading(batches: Iterator[BarBatch], timeframe: Timeframe) -> asyncio.Task[_Ready | None]:
    return asyncio.create_task(asyncio.to_thread(_next, batches, timeframe), name="read a file of bars")


def _next(batches: Iterator[BarBatch], timeframe: Timeframe) -> _Ready | None:
    batch = next(batches, None)
    return None if batch is None else _Ready(batch, runs_of(batch.found, timeframe))


def _ended(ready: _Ready, timeframe: Timeframe, now_ms: int) -> tuple[Sequence[Bar], RangeSet]:
    """The bars that have ended, and their buckets."""
    span = ready.buckets.span
    if span is None or span.end_ms <= now_ms:
        return ready.read.found, ready.buckets
    over = RangeSet.of(span.start_ms, timeframe.floor(now_ms))
    return clipped(ready.read.found, over), ready.buckets & over


def _fingerprint(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
