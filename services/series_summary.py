"""What is stored of each series, in numbers: bars, missing minutes by verdict, and how far behind it is.

Minutes are counted without being read: the ledger, the calendar and the failures cut a range into layers, as
`services.coverage.tile` does, and the bars in each layer are added up from the stored aggregates' `minutes`.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from domain.clock import Clock
from domain.series import Series, Verdict
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import MINUTE_MS, Timeframe
from services.bar_store import BarStore
from services.database import Connection
from services.market_service import OpenProvider
from services.rollups import NO_SERIES, minutes_in, table_of
from services.sessions import SessionService, UnknownCalendarError
from services.sql import load_queries

log = logging.getLogger(__name__)

#: Series whose minutes are counted together: as many round trips as for one.
BATCH = 50
#: What a minute without a bar can be.
MISSING = tuple(verdict for verdict in Verdict if verdict is not Verdict.DATA)
#: Where bars are counted, coarsest first.
_COUNTED = (Timeframe.D1, Timeframe.H1, Timeframe.M1)
_NATIVE = [timeframe.value for timeframe in Timeframe if timeframe is not Timeframe.M1]


class SeriesFilter(NamedTuple):
    """Which series; None: any."""

    market: str | None = None
    provider: str | None = None
    symbol: str | None = None


class NativeBars(NamedTuple):
    """A provider's own bars of a coarser timeframe: the times of the first and the last that are stored."""

    timeframe: Timeframe
    first_ms: int
    last_ms: int


class StoredPart(NamedTuple):
    """A series as it is stored.

    Attributes:
        range: from the first minute that anything is known of to the last one that has settled; None: nothing is.
        first_ms, last_ms: times of the first and the last bar in it.
        bars: minutes with a bar in it.
        missing: the other minutes of it, by verdict.
        lag_s: seconds since the last bar ended.
        native: the provider's own bars of other timeframes.
    """

    series: Series
    calendar: str | None
    range: TimeRange | None
    first_ms: int | None
    last_ms: int | None
    bars: int
    missing: Mapping[Verdict, int]
    lag_s: float | None
    native: tuple[NativeBars, ...]


class Markets(Protocol):
    """What is asked of `services.market_service.MarketService`."""

    def open_providers(self) -> Sequence[OpenProvider]:
        """Every provider that is open now."""
        ...


class SeriesRow(NamedTuple):
    """A row of the table of series."""

    id: int
    series: Series
    calendar: str | None


class _Layers(NamedTuple):
    """A series' range, and the disjoint parts that its minutes without a bar would get each verdict in."""

    id: int
    range: TimeRange
    parts: Mapping[Verdict, RangeSet]

    @property
    def spared(self) -> Verdict:
        """The part that costs most to count, which need not be: its bars are what the others leave of the whole's."""
        return max(self.parts, key=lambda verdict: _likely_bars(verdict, self.parts[verdict]))


class SeriesSummaries:
    """Sums up stored series. Reads the store only; opens no provider."""

    def __init__(self, store: BarStore, sessions: SessionService, markets: Markets, clock: Clock) -> None:
        """Take what it reads; do no I/O."""
        self._store = store
        self._sessions = sessions
        self._markets = markets
        self._clock = clock
        self._sql = load_queries("summary")
        self._unknown_calendars: set[str] = set()

    async def page(
        self, wanted: SeriesFilter, *, limit: int, after: Series | None = None
    ) -> tuple[list[StoredPart], bool]:
        """The first `limit` stored series after a key, by market, provider and symbol; and whether there are more.

        Raises:
            DatabaseUnavailableError: the database cannot be reached.
        """
        key = after or (None, None, None)
        async with self._store.database.connection() as db:
            rows = [_row(row) for row in await db.fetch(self._sql["list"], *wanted, *key, limit + 1)]
        found: list[StoredPart] = []
        for at in range(0, min(limit, len(rows)), BATCH):
            found += await self.sum_up(rows[at : min(at + BATCH, limit)])
        return found, len(rows) > limit

    async def stored(self) -> int:
        """How many series are stored."""
        async with self._store.database.connection() as db:
            return int(await db.fetchval(self._sql["count_series"]))

    async def numbered(self, after_id: int, limit: int) -> list[SeriesRow]:
        """The first `limit` stored series whose number is greater."""
        async with self._store.database.connection() as db:
            return [_row(row) for row in await db.fetch(self._sql["numbered"], after_id, limit)]

    async def sum_up(self, rows: Sequence[SeriesRow]) -> list[StoredPart]:
        """Sum up these series, each at one state of the database."""
        if not rows:
            return []
        ranges = await self._ranges(rows)
        closed = {row.id: await self._closed(row.calendar, ranges[row.id]) for row in rows if row.id in ranges}
        async with self._store.database.transaction() as db:
            await db.execute(self._sql["steady"])
            await db.execute(self._sql["no_jit"])
            ledger = await self._ledger(db, list(ranges))
            layers = [_Layers(id_, span, layered(span, closed[id_], ledger[id_])) for id_, span in ranges.items()]
            minutes = await self._minutes(db, layers)
            ends = await self._ends(db, ranges)
            native = await self._native(db, [row.id for row in rows])
        now_ms = self._clock.now_ms()
        return [
            _part(
                row,
                ranges.get(row.id),
                minutes=minutes[row.id],
                ends=ends[row.id],
                native=native[row.id],
                now_ms=now_ms,
            )
            for row in rows
        ]

    async def _ranges(self, rows: Sequence[SeriesRow]) -> dict[int, TimeRange]:
        """From the first minute that anything is known of to the last settled one; without the series known nothing."""
        now_ms = self._clock.now_ms()
        settle = {(one.market, one.provider): one.feed.capabilities.settle_ms for one in self._markets.open_providers()}
        async with self._store.database.connection() as db:
            first = dict(await db.fetch(self._sql["first_known"], [row.id for row in rows]))
        ranges = {}
        for row in rows:
            first_ms, end_ms = first[row.id], Timeframe.M1.floor(now_ms - settle.get(row.series[:2], 0))
            if first_ms is not None and first_ms < end_ms:
                ranges[row.id] = TimeRange(first_ms, end_ms)
        return ranges

    async def _closed(self, calendar: str | None, span: TimeRange) -> RangeSet:
        if calendar is None:
            return RangeSet()
        try:
            return RangeSet((span,)) - await self._sessions.open_ranges(calendar, Timeframe.M1, span)
        except UnknownCalendarError as exc:
            if calendar not in self._unknown_calendars:
                self._unknown_calendars.add(calendar)
                log.warning("Calendar %s is not known, so its series count as open around the clock: %s", calendar, exc)
            return RangeSet()

    async def _ledger(self, db: Connection, ids: Sequence[int]) -> dict[int, dict[str, RangeSet]]:
        found: dict[int, dict[str, RangeSet]] = {id_: {} for id_ in ids}
        for row in await db.fetch(self._sql["ledger"], ids):
            found[row["series_id"]][row["state"]] = RangeSet((r.lower, r.upper) for r in row["ranges"])
        return found

    async def _minutes(self, db: Connection, layers: Sequence[_Layers]) -> dict[int, dict[Verdict, int]]:
        """Minutes by verdict, by series."""
        asked: list[tuple[int, Verdict, RangeSet]] = []
        for one in layers:
            asked.append((one.id, Verdict.DATA, RangeSet((one.range,))))
            asked += ((one.id, verdict, part) for verdict, part in one.parts.items() if verdict is not one.spared)
        pending = {one.id: await self._pending(db, one.id, one.range) for one in layers}
        counts = await self.count_bars(db, [(id_, part) for id_, _, part in asked], pending)
        bars: dict[int, dict[Verdict, int]] = defaultdict(dict)
        for (id_, verdict, _), count in zip(asked, counts, strict=True):
            bars[id_][verdict] = count
        found: dict[int, dict[Verdict, int]] = defaultdict(dict)
        for one in layers:
            mine = bars[one.id]
            mine[one.spared] = 2 * mine[Verdict.DATA] - sum(mine.values())
            found[one.id] = {
                verdict: part.length_ms // MINUTE_MS - mine[verdict] for verdict, part in one.parts.items()
            }
            found[one.id][Verdict.DATA] = mine[Verdict.DATA]
        return found

    async def _pending(self, db: Connection, series_id: int, span: TimeRange) -> RangeSet:
        """Where aggregates are not right now: this series' own, or those of minutes that retention deleted."""
        rollups = self._store.rollups
        return await rollups.pending(db, series_id, span) | await rollups.pending(db, NO_SERIES, span)

    async def count_bars(
        self, db: Connection, asked: Sequence[tuple[int, RangeSet]], pending: Mapping[int, RangeSet]
    ) -> list[int]:
        """How many minutes with a bar lie in each set of minutes of a series.

        Whole days and hours come from the aggregates where no minute of them is in `pending`, which is by series.
        """
        counts = [0] * len(asked)
        rests = [part for _, part in asked]
        for level in _COUNTED:
            columns: list[tuple[int, int, int, int]] = []
            for number, (series_id, _) in enumerate(asked):
                whole = rests[number].whole_buckets(level) - pending[series_id].outward(level)
                taken = rests[number] if level is Timeframe.M1 else whole
                rests[number] -= taken
                columns += ((number, series_id, start_ms, end_ms) for start_ms, end_ms in taken)
            if columns:
                query = self._sql["count_bars"].format(source=table_of(level), minutes=minutes_in(level))
                for number, bars in await db.fetch(query, *map(list, zip(*columns, strict=True))):
                    counts[number] += bars
        return counts

    async def _ends(self, db: Connection, ranges: Mapping[int, TimeRange]) -> dict[int, tuple[int | None, int | None]]:
        starts, ends = [span.start_ms for span in ranges.values()], [span.end_ms for span in ranges.values()]
        found: dict[int, tuple[int | None, int | None]] = defaultdict(lambda: (None, None))
        for id_, first_ms, last_ms in await db.fetch(self._sql["ends"], list(ranges), starts, ends):
            found[id_] = first_ms, last_ms
        return found

    async def _native(self, db: Connection, ids: Sequence[int]) -> dict[int, list[NativeBars]]:
        found: dict[int, list[NativeBars]] = defaultdict(list)
        for id_, timeframe, first_ms, last_ms in await db.fetch(self._sql["native"], ids, _NATIVE):
            found[id_].append(NativeBars(Timeframe(timeframe), first_ms, last_ms))
        return found


def layered(span: TimeRange, closed: RangeSet, states: Mapping[str, RangeSet]) -> dict[Verdict, RangeSet]:
    """Disjoint parts that make up the span, by the verdict of a minute in them that has no bar.

    `states` are the ledger's, and `failed`: what was asked for in vain. The order is that of `services.coverage.tile`.
    """
    nothing = RangeSet()
    order = (
        (Verdict.CLOSED_SESSION, closed),
        (Verdict.NOT_LISTED, states.get("not_listed", nothing)),
        (Verdict.NO_TRADES, states.get("confirmed", nothing)),
        (Verdict.UNCONFIRMED_EMPTY, states.get("answered", nothing)),
        (Verdict.FETCH_FAILED, states.get("failed", nothing)),
    )
    parts: dict[Verdict, RangeSet] = {}
    rest = RangeSet((span,))
    for verdict, layer in order:
        parts[verdict] = rest & layer
        rest -= layer
    return {**parts, Verdict.NEVER_FETCHED: rest}


def _likely_bars(verdict: Verdict, part: RangeSet) -> int:
    return 0 if verdict in {Verdict.CLOSED_SESSION, Verdict.NOT_LISTED} else part.length_ms


def _row(row: Any) -> SeriesRow:
    return SeriesRow(row["id"], Series(row["market"], row["provider"], row["symbol"]), row["calendar"])


def _part(
    row: SeriesRow,
    span: TimeRange | None,
    *,
    minutes: Mapping[Verdict, int],
    ends: tuple[int | None, int | None],
    native: Iterable[NativeBars],
    now_ms: int,
) -> StoredPart:
    first_ms, last_ms = ends
    return StoredPart(
        series=row.series,
        calendar=row.calendar,
        range=span,
        first_ms=first_ms,
        last_ms=last_ms,
        bars=minutes.get(Verdict.DATA, 0),
        missing={verdict: minutes.get(verdict, 0) for verdict in MISSING},
        lag_s=None if last_ms is None else (now_ms - last_ms - MINUTE_MS) / 1000,
        native=tuple(native),
    )
