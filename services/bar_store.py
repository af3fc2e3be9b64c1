"""The durable store of bars: the one place that reads and writes them, with their coverage in the same transaction."""

import logging
import sys
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple, NotRequired, TypedDict, Unpack

from domain.bar import Bar
from domain.clock import Clock
from domain.packed import PackedBars, Rows
from domain.series import Series
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import MINUTE_MS, Timeframe
from services.coverage import CoverageLedger, Knowledge
from services.database import Connection, Database
from services.revisions import Revisions, Stamp
from services.rollups import Rollups, minutes_in, stored_for, table_of
from services.sql import bucket_of, load_queries, unpacked_ranges

log = logging.getLogger(__name__)

#: Rows in one upsert statement; measured best between 2,000 and 10,000.
ROWS_PER_STATEMENT = 5_000
#: From so many bars on it is worth to look whether their stretch is untouched yet, and to copy them in.
COPY_FROM = 50
#: Packed rows in one COPY.
ROWS_PER_COPY = 20_000
#: Series that are remembered; beyond that, all are forgotten and begun with anew.
MOST_REMEMBERED = 20_000
_COLUMNS = ("series_id", "ts", "open", "high", "low", "close", "volume")


class StoredSeries(NamedTuple):
    """A series in the store.

    Attributes:
        id: its number.
        revision: grows when something already known may have changed.
        calendar: the exchange calendar it keeps; None: around the clock.
        era: of the `Revisions` when it was read.
    """

    id: int
    revision: int
    calendar: str | None
    era: int = -1

    @property
    def stamp(self) -> Stamp:
        """What is read of it is read under this."""
        return Stamp(self.id, self.revision, self.era)


class Folded(NamedTuple):
    """Bars folded from minutes, and of each how many minutes with a bar it stands for."""

    bars: PackedBars
    minutes: Sequence[int]

    def full(self, timeframe: Timeframe) -> RangeSet:
        """The buckets in which every minute has a bar."""
        width, span = timeframe.width_ms, self.bars.span
        if span is None:
            return RangeSet()
        buckets = self.bars.runs(timeframe)
        if width is not None and min(self.minutes) * MINUTE_MS == width:
            return buckets
        next_of = timeframe.next
        stamps = zip(self.bars.times(), self.minutes, strict=True)
        return RangeSet.joining((ts, next_of(ts)) for ts, minutes in stamps if minutes * MINUTE_MS == next_of(ts) - ts)


class Written(NamedTuple):
    """What a write changed: rows inserted or altered, and how many of them were altered."""

    written: int = 0
    revised: int = 0


class Findings(TypedDict):
    """What a source gave.

    Attributes:
        bars: ascending native bars.
        answered: the buckets that the source accounts for; every bar must lie in it.
        vouched: its silence about a bucket is proof.
        was_asked: False: the bars came from a file.
        asked_ms: when the source was asked, where that was not just now.
    """

    bars: Sequence[Bar]
    answered: RangeSet
    vouched: NotRequired[bool]
    was_asked: NotRequired[bool]
    asked_ms: NotRequired[int | None]


class BarStore:
    """Bars, series and what is known of them."""

    def __init__(
        self,
        database: Database,
        ledger: CoverageLedger,
        rollups: Rollups,
        clock: Clock,
        revisions: Revisions | None = None,
    ) -> None:
        """Take the parts; do no I/O. Without `revisions` that hear of changes, nothing is remembered."""
        self.revisions = revisions or Revisions()
        self._remembered: dict[Series, StoredSeries] = {}
        self.database = database
        self.ledger = ledger
        self.rollups = rollups
        self._clock = clock
        self._sql = load_queries("bars")
        self._read_minutes, self._read_native = (
            self._sql["packed"].format(source=self._sql[name], also="") for name in ("minutes", "native")
        )
        self._series_sql = load_queries("series")
        #: Rows inserted or altered by this process, and how many of them were altered.
        self.bars_written = self.bars_revised = 0

    async def find_series(self, series: Series, *, from_memory: bool = False) -> StoredSeries | None:
        """The stored series, or None where nothing was ever asked of it.

        `from_memory`: as it was read before will do, where no change was heard of since; another process's change is
        heard of within moments.
        """
        known = self._remembered.get(series) if from_memory else None
        if known is not None and self.revisions.holds(known.stamp):
            return known
        era = self.revisions.era
        async with self.database.connection() as db:
            row = await db.fetchrow(self._series_sql["find"], *series)
        if row is None:
            return None
        found = StoredSeries(row["id"], row["revision"], row["calendar"], era)
        if len(self._remembered) >= MOST_REMEMBERED:
            self._remembered.clear()
        self._remembered[series] = found
        return found

    async def ensure_series(
        self, series: Series, *, calendar: str | None = None, listed_ms: int | None = None
    ) -> StoredSeries:
        """The stored series, made where it is new, with what its provider says of it."""
        found = await self.find_series(series)
        if found is not None:
            return found
        era = self.revisions.era
        async with self.database.transaction() as db:
            made = StoredSeries(*await db.fetchrow(self._series_sql["create"], *series, calendar))._replace(era=era)
            if listed_ms is not None:
                await self.ledger.not_listed(db, made.id, Timeframe.M1, RangeSet.of(0, Timeframe.M1.floor(listed_ms)))
        return made

    async def record(self, series_id: int, timeframe: Timeframe, **findings: Unpack[Findings]) -> Written:
        """Write native bars and what they make known, all or nothing, and rebuild the aggregates they touch."""
        async with self.database.transaction() as db:
            written = await self.record_in(db, series_id, timeframe, **findings)
        self.count(written)
        if timeframe is Timeframe.M1 and written.written:
            await self.settle()
        return written

    async def record_in(
        self,
        db: Connection,
        series_id: int,
        timeframe: Timeframe,
        *,
        bars: Sequence[Bar],
        answered: RangeSet,
        vouched: bool = False,
        was_asked: bool = True,
        asked_ms: int | None = None,
    ) -> Written:
        """`record` inside a transaction of the caller's, who must call `count()` and `settle()` after the commit."""
        await db.fetchval(self._series_sql["lock"], series_id)
        if answered.span and await self.ledger.touches_known(db, series_id, answered.span):
            self.revisions.expect(series_id, await db.fetchval(self._series_sql["bump"], series_id))
        written = await self._write(db, series_id, timeframe, bars)
        now_ms = self._clock.now_ms()
        await self.ledger.answered(
            db,
            series_id,
            timeframe,
            answered,
            now_ms=now_ms,
            vouched=vouched,
            was_asked=was_asked,
            asked_ms=asked_ms,
            complete=len(bars) == sum(timeframe.buckets_between(*part) for part in answered),
        )
        return written

    async def record_failure(self, series_id: int, timeframe: Timeframe, asked: RangeSet, error: str) -> None:
        """Write down that `asked` could not be had. Nothing becomes known by it."""
        async with self.database.transaction() as db:
            await self.record_failure_in(db, series_id, timeframe, asked, error)

    async def record_failure_in(
        self, db: Connection, series_id: int, timeframe: Timeframe, asked: RangeSet, error: str
    ) -> None:
        """`record_failure` inside a transaction of the caller's."""
        await db.fetchval(self._series_sql["lock"], series_id)
        await self.ledger.failed(db, series_id, timeframe, asked, now_ms=self._clock.now_ms(), error=error)

    def count(self, written: Written) -> None:
        """Add what was committed to the totals."""
        self.bars_written += written.written
        self.bars_revised += written.revised

    async def wish_in(self, db: Connection, series_id: int, ranges: RangeSet, *, after_ms: int) -> None:
        """Have minutes that nobody asked for asked for in the background, but not within `after_ms` from now."""
        await db.fetchval(self._series_sql["lock"], series_id)
        now_ms = self._clock.now_ms()
        await self.ledger.wish(db, series_id, Timeframe.M1, ranges, now_ms=now_ms, due_ms=now_ms + after_ms)

    async def settle(self) -> None:
        """Rebuild what aggregates are still owed. What fails stays queued, and readers do without it meanwhile."""
        try:
            await self.rollups.settle()
        except Exception:
            log.exception("aggregates could not be refreshed now; they stay queued")

    async def knowledge(self, series_id: int, timeframe: Timeframe, wanted: TimeRange) -> Knowledge:
        """What the ledger holds within `wanted`."""
        async with self.database.connection() as db:
            return await self.ledger.read(db, series_id, timeframe, wanted)

    async def states(self, series_id: int, timeframe: Timeframe, wanted: TimeRange) -> Knowledge:
        """As `knowledge`, without the asks behind it."""
        async with self.database.connection() as db:
            return await self.ledger.states(db, series_id, timeframe, wanted)

    async def stock(self, series_id: int, timeframe: Timeframe, wanted: TimeRange) -> tuple[Knowledge, PackedBars]:
        """The `states`, and then the bars that are there."""
        async with self.database.connection() as db:
            known = await self.ledger.states(db, series_id, timeframe, wanted)
            return known, await self._bars(db, series_id, timeframe, wanted) if known.answered else PackedBars()

    async def read(self, series_id: int, timeframe: Timeframe, wanted: TimeRange) -> PackedBars:
        """Stored native bars of the timeframe, ascending."""
        async with self.database.connection() as db:
            return await self._bars(db, series_id, timeframe, wanted)

    async def _bars(self, db: Connection, series_id: int, timeframe: Timeframe, wanted: TimeRange) -> PackedBars:
        if timeframe is Timeframe.M1:
            raw = await db.fetchval(self._read_minutes, series_id, *wanted)
        else:
            raw = await db.fetchval(self._read_native, series_id, *wanted, timeframe.value)
        return PackedBars(Rows(raw or b""))

    async def read_folded(self, series_id: int, timeframe: Timeframe, wanted: TimeRange) -> Folded:
        """Bars of `timeframe` as their stored minutes fold to, from the aggregates where those are up to date."""
        async with self.database.connection() as db:
            pending = (await self.rollups.pending(db, series_id, wanted)).outward(timeframe)
            trusted = RangeSet.of(*wanted) - pending
            parts = [(part, stored_for(timeframe)) for part in trusted]
            parts += [(part, Timeframe.M1) for part in pending & RangeSet.of(*wanted)]
            pieces: list[Rows] = []
            minutes = array("i")
            for part, source in sorted(parts):
                raw, counts = await db.fetchrow(self._fold_query(source, timeframe), series_id, *part)
                pieces.append(Rows(raw or b""))
                minutes.frombytes(counts or b"")
        if sys.byteorder == "little":
            minutes.byteswap()
        return Folded(PackedBars(*pieces), minutes)

    async def runs(self, series_id: int, timeframe: Timeframe, wanted: TimeRange, *, folded: bool) -> RangeSet:
        """The buckets of `wanted` that hold a bar: native ones, or `folded` from minutes.

        Cheaper than reading the bars: the database joins neighbours.
        """
        if timeframe.width_ms is None or (folded and timeframe is not Timeframe.M1):
            if folded:
                return (await self.read_folded(series_id, timeframe, wanted)).bars.runs(timeframe)
            return (await self.read(series_id, timeframe, wanted)).runs(timeframe)
        minutes = timeframe is Timeframe.M1
        source, values = ("minutes", ()) if minutes else ("native", (timeframe.value,))
        query = self._sql["runs"].format(source=self._sql[source], width=f"${4 + len(values)}")
        width = f"{timeframe.width_ms // 1000} seconds"
        async with self.database.connection() as db:
            return unpacked_ranges(await db.fetchval(query, series_id, *wanted, *values, width))

    async def next_bar_ts(self, series_id: int, timeframe: Timeframe, from_ms: int) -> int | None:
        """Time of the first stored minute or native bar of the timeframe at or after `from_ms`."""
        async with self.database.connection() as db:
            value = await db.fetchval(self._sql["next_ts"], series_id, from_ms, timeframe.value)
        return None if value is None else int(value)

    def _fold_query(self, source: Timeframe, timeframe: Timeframe) -> str:
        if source is timeframe and timeframe is not Timeframe.M1:
            rows = self._sql["level"].format(source=table_of(source))
        else:
            rows = self._sql["fold_level"].format(
                source=table_of(source), bucket=bucket_of(timeframe), minutes=minutes_in(source)
            )
        return self._sql["packed"].format(source=rows, also=self._sql["packed_minutes"])

    async def _write(self, db: Connection, series_id: int, timeframe: Timeframe, bars: Sequence[Bar]) -> Written:
        """Write bars while the series is locked, so that no other writer comes between."""
        if timeframe is not Timeframe.M1 or not bars:
            return (await self._upsert(db, series_id, timeframe, bars))[0]
        await self.rollups.writing(db)
        span = TimeRange(bars[0].ts, Timeframe.M1.next(bars[-1].ts))
        if len(bars) >= COPY_FROM and await db.fetchval(self._sql["may_copy"], series_id, *span):
            await self._copy(db, series_id, bars)
            await self.rollups.copied(db, series_id, span, bars)
            return Written(len(bars))
        written, touched = await self._upsert(db, series_id, timeframe, bars)
        if touched is not None:
            await self.rollups.touched(db, series_id, touched)
        return written

    async def _copy(self, db: Connection, series_id: int, bars: Sequence[Bar]) -> None:
        """Insert minutes of which none is there."""
        if not isinstance(bars, PackedBars):
            rows = [(series_id, b.ts, b.open, b.high, b.low, b.close, b.volume) for b in bars]
            await db.copy_records_to_table("bars_1m", records=rows, columns=_COLUMNS)
            return
        from services.bar_copy import columns_of, copy_rows  # noqa: PLC0415 - needs NumPy, which a server does not

        for at in range(0, len(bars), ROWS_PER_COPY):
            rows_of_part = copy_rows(series_id, columns_of(bars[at : at + ROWS_PER_COPY]))
            await db.copy_to_table("bars_1m", source=rows_of_part, columns=_COLUMNS, format="binary")

    async def _upsert(
        self, db: Connection, series_id: int, timeframe: Timeframe, bars: Sequence[Bar]
    ) -> tuple[Written, TimeRange | None]:
        """Insert and alter; what changed, and from where to where."""
        written = revised = 0
        first_ms: int | None = None
        last_ms = 0
        minutes = timeframe is Timeframe.M1
        query = self._sql["upsert_minutes" if minutes else "upsert_native"]
        extra = () if minutes else (timeframe.value,)
        for at in range(0, len(bars), ROWS_PER_STATEMENT):
            columns = _columns(bars[at : at + ROWS_PER_STATEMENT])
            row = await db.fetchrow(query, series_id, *columns, columns[0][0], columns[0][-1], *extra)
            written += row["written"]
            revised += row["revised"]
            if row["written"]:
                first_ms = row["first_ts"] if first_ms is None else first_ms
                last_ms = row["last_ts"]
        touched = None if first_ms is None else TimeRange(first_ms, timeframe.next(last_ms))
        return Written(written, revised), touched


def _columns(bars: Sequence[Bar]) -> list[list[Any]]:
    rows = ((bar.ts, bar.open, bar.high, bar.low, bar.close, bar.volume) for bar in bars)
    return [list(column) for column in zip(*rows, strict=True)]
