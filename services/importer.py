"""Importing files of bars: resumable, idempotent, and never half a file lost for a bad row."""

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from domain.bar import Bar
from domain.clock import Clock
from domain.packed import runs_of
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
        while (batch := await asyncio.to_thread(_next, batches)) is not None:
            await self._keep(batch, series, timeframe, fingerprint, report)
            if progress is not None:
                progress(batch)
        await self._finish(fingerprint, series, timeframe)
        await self._store.settle()
        return report

    async def _keep(
        self, batch: BarBatch, series: StoredSeries, timeframe: Timeframe, fingerprint: str, report: ImportReport
    ) -> None:
        """Write a batch and how far the import came, all or nothing."""
        now_ms = self._clock.now_ms()
        ended = [bar for bar in batch.bars if timeframe.next(bar.ts) <= now_ms]
        bars = _one_a_bucket(ended)
        async with self._store.database.transaction() as db:
            written = await self._store.record_in(
                db, series.id, timeframe, bars=bars, answered=runs_of(bars, timeframe), was_asked=False
            )
            await db.execute(self._sql["advance"], fingerprint, series.id, timeframe.value, batch.position)
        self._store.count(written)
        early = len(batch.bars) - len(ended)
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


def _next(batches: Iterator[BarBatch]) -> BarBatch | None:
    return next(batches, None)


def _one_a_bucket(bars: list[Bar]) -> list[Bar]:
    """Ascending bars; of several at one time the first stands."""
    first: dict[int, Bar] = {}
    for bar in bars:
        first.setdefault(bar.ts, bar)
    return [first[ts] for ts in sorted(first)]


def _fingerprint(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
