"""Aggregates of the minutes: continuous aggregates on TimescaleDB, roll-up tables elsewhere; the same from both."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from domain.bar import Bar
from domain.clock import Clock
from domain.packed import PackedBars
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import Timeframe
from services.database import Connection, Database
from services.sql import bucket_of, load_queries


class Level(NamedTuple):
    """One stored aggregate and the finer table that it is built from."""

    timeframe: Timeframe
    finer: Timeframe

    @property
    def table(self) -> str:
        """Name of the aggregate."""
        return table_of(self.timeframe)


_COLUMNS = ("series_id", "ts", "open", "high", "low", "close", "volume", "minutes")

#: Finest first: each is built from the one before.
LEVELS = (
    Level(Timeframe.M5, Timeframe.M1),
    Level(Timeframe.M15, Timeframe.M5),
    Level(Timeframe.H1, Timeframe.M15),
    Level(Timeframe.H4, Timeframe.H1),
    Level(Timeframe.D1, Timeframe.H4),
)


def table_of(timeframe: Timeframe) -> str:
    """The table of a stored timeframe: the minutes or an aggregate."""
    return f"bars_{timeframe.value}"


def minutes_in(timeframe: Timeframe) -> str:
    """The SQL for how many minutes one row of a stored timeframe stands for."""
    return "1" if timeframe is Timeframe.M1 else "minutes"


def stored_for(timeframe: Timeframe) -> Timeframe:
    """The coarsest stored timeframe whose buckets make up buckets of `timeframe`."""
    stored = [Timeframe.M1, *(level.timeframe for level in LEVELS)]
    return next(finer for finer in reversed(stored) if finer.divides(timeframe))


#: In the queue: for windows that no reader need step around.
NO_SERIES = 0


class Rollups(ABC):
    """Keeps the stored aggregates equal to the minutes."""

    def __init__(self) -> None:
        """Read the queries; do no I/O on the database."""
        self._sql = load_queries("rollups")

    @abstractmethod
    async def writing(self, db: Connection) -> None:
        """Minutes are about to be written in the transaction that `db` is in."""

    @abstractmethod
    async def touched(self, db: Connection, series_id: int, span: TimeRange) -> None:
        """Minutes of `span` were written in the transaction that `db` is in."""

    async def copied(self, db: Connection, series_id: int, span: TimeRange, bars: Sequence[Bar]) -> None:  # noqa: ARG002
        """These minutes of `span` were written in the transaction that `db` is in, where none was before."""
        await self.touched(db, series_id, span)

    @abstractmethod
    async def settle(self) -> None:
        """After a commit: rebuild what was touched and is not rebuilt yet."""

    @abstractmethod
    async def pending(self, db: Connection, series_id: int, span: TimeRange) -> RangeSet:
        """Minutes in `span` whose aggregates must not be used now: fold them from the minutes."""

    @abstractmethod
    async def forgotten(self, db: Connection, before_ms: int) -> None:
        """Every minute before `before_ms`, the start of a day, was deleted in the transaction that `db` is in."""


class PlainRollups(Rollups):
    """Roll-up tables, rebuilt over the touched buckets in the transaction that writes the minutes."""

    async def writing(self, db: Connection) -> None:
        """Nothing need be prepared."""

    async def touched(self, db: Connection, series_id: int, span: TimeRange) -> None:
        """Rebuild every level over `span`, grown outward to its buckets."""
        for level in LEVELS:
            await self._rebuild(db, series_id, level, span)

    async def copied(self, db: Connection, series_id: int, span: TimeRange, bars: Sequence[Bar]) -> None:
        """Write the buckets that lie within `span` from packed bars, and rebuild those at its ends."""
        if not isinstance(bars, PackedBars):
            await self.touched(db, series_id, span)
            return
        from services.bar_copy import copy_rows  # noqa: PLC0415 - needs NumPy, which a server does not
        from services.rollup_columns import folded, minutes_of  # noqa: PLC0415

        rows = await asyncio.to_thread(minutes_of, bars)
        for level in LEVELS:
            ceil, floor = level.timeframe.ceil, level.timeframe.floor
            inner = TimeRange(ceil(span.start_ms), max(ceil(span.start_ms), floor(span.end_ms)))
            rows = await asyncio.to_thread(folded, rows, level.timeframe.nominal_ms, inner)
            # Nothing is there, unless somebody deleted minutes by hand.
            await db.execute(self._sql["clear"].format(target=level.table), series_id, *inner)
            await db.copy_to_table(level.table, source=copy_rows(series_id, rows), columns=_COLUMNS, format="binary")
            for start, end in ((span.start_ms, inner.start_ms), (inner.end_ms, span.end_ms)):
                if start < end:
                    await self._rebuild(db, series_id, level, TimeRange(start, end))

    async def _rebuild(self, db: Connection, series_id: int, level: Level, span: TimeRange) -> None:
        query = self._sql["rebuild"].format(
            target=level.table,
            source=table_of(level.finer),
            bucket=bucket_of(level.timeframe),
            minutes=minutes_in(level.finer),
        )
        start, end = level.timeframe.floor(span.start_ms), level.timeframe.ceil(span.end_ms)
        await db.execute(query, series_id, start, end)

    async def settle(self) -> None:
        """Nothing is left to do after a commit."""

    async def pending(self, db: Connection, series_id: int, span: TimeRange) -> RangeSet:  # noqa: ARG002
        """Nothing is ever pending."""
        return RangeSet()

    async def forgotten(self, db: Connection, before_ms: int) -> None:
        """Delete the buckets of those days."""
        for level in LEVELS:
            await db.execute(load_queries("retention")["delete_rollup"].format(target=level.table), before_ms)


class TimescaleRollups(Rollups):
    """Real-time continuous aggregates, refreshed over exactly the touched windows through a durable queue.

    A refresh cannot run in the writing transaction, and until it ran a bucket below the aggregate's watermark shows
    its old self: readers fold pending minutes themselves. A UTC day stays in the queue until it has ended: its
    buckets are not all whole before, and the watermark may pass it by a refresh for another series.
    """

    #: Serialises refreshes among processes: overlapping ones of one aggregate error out since TimescaleDB 2.26.3.
    LOCK = 0x0CA_2D1E
    #: How often the lock is tried for, and the pause between, in seconds.
    PATIENCE = 30
    PAUSE_S = 0.1

    def __init__(self, database: Database, clock: Clock) -> None:
        """Take where refreshes run, and the clock that tells which buckets have ended."""
        super().__init__()
        self._database = database
        self._clock = clock
        self._turn = asyncio.Lock()

    async def writing(self, db: Connection) -> None:
        """Lift the limit of rows that one transaction may decompress: a late page may meet a compressed chunk."""
        await db.execute(self._sql["allow_decompression"])

    async def touched(self, db: Connection, series_id: int, span: TimeRange) -> None:
        """Queue `span` in the writing transaction."""
        await db.execute(self._sql["enqueue"], series_id, *span)

    async def pending(self, db: Connection, series_id: int, span: TimeRange) -> RangeSet:
        """What is queued within `span`."""
        rows = await db.fetch(self._sql["pending_of_series"], series_id, *span)
        return RangeSet((row["starts"], row["ends"]) for row in rows)

    async def forgotten(self, db: Connection, before_ms: int) -> None:
        """Queue those days once, under no series: their buckets fall away at the next refresh."""
        await db.execute(self._sql["enqueue"], NO_SERIES, 0, before_ms)

    async def settle(self) -> None:
        """Refresh every level over the queued windows, then take them off the queue.

        Where another process is at it for long (or frozen in it), what is queued is left to the next time.
        """
        async with self._turn, self._database.connection() as db:
            if not await self._locked(db):
                return
            try:
                await self._drain(db)
            finally:
                await db.execute("SELECT pg_advisory_unlock($1)", self.LOCK)

    async def _locked(self, db: Connection) -> bool:
        for _ in range(self.PATIENCE):
            if await db.fetchval("SELECT pg_try_advisory_lock($1)", self.LOCK):
                return True
            await asyncio.sleep(self.PAUSE_S)
        return False

    async def _drain(self, db: Connection) -> None:
        today = Timeframe.D1.floor(self._clock.now_ms())
        ripe = [row for row in await db.fetch(self._sql["pending"]) if row["starts"] < today]
        for window in RangeSet((row["starts"], min(row["ends"], today)) for row in ripe):
            for level in LEVELS:
                start, end = level.timeframe.floor(window.start_ms), level.timeframe.ceil(window.end_ms)
                await db.execute(self._sql["refresh"].format(target=level.table), start, end)
        if ripe:
            await self._forget(db, ripe, today)

    async def _forget(self, db: Connection, rows: Sequence[Any], today: int) -> None:
        """Take refreshed rows off the queue; keep the part that lies in the day that has not ended."""
        await db.execute("BEGIN")
        try:
            for row in rows:
                if row["ends"] > today:
                    await db.execute(self._sql["enqueue"], row["series_id"], today, row["ends"])
            await db.execute(self._sql["done"], [row["id"] for row in rows])
        except BaseException:
            await db.execute("ROLLBACK")
            raise
        await db.execute("COMMIT")
