"""One way of asking for bars: cache, aggregates, database, provider, each for what the ones before did not know."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

from domain.bar import Bar, fold
from domain.clock import Clock
from domain.packed import joined, runs_of
from domain.series import Gap, Verdict
from domain.time_range import NOWHERE, RangeSet, TimeRange
from domain.timeframe import Timeframe
from plugins.base import PluginError
from services.bar_store import BarStore
from services.coverage import Check, Knowledge, Tile, tile
from services.data_sources.base import Ask, DataSource, How, SourceAnswer, Trace, consult
from services.data_sources.cache_source import CacheSource
from services.data_sources.plugin_source import PluginSource
from services.heavy import aside
from services.market_service import Listing
from services.sessions import SessionService
from services.turns import Turns

#: The forming bar may be this old before the provider is asked for it again.
FORMING_TTL_MS = 1_000


@dataclass(frozen=True)
class Bars:
    """The answer to an `Ask`.

    Attributes:
        bars: ascending.
        sources: where they came from.
        gaps: what is missing.
        error: the provider's last fault.
        lasting: whatever changes one of the bars, or adds one, gives the series a new revision.
    """

    bars: Sequence[Bar]
    sources: list[str]
    gaps: list[Gap]
    error: PluginError | None = None
    lasting: bool = False

    @property
    def out_of_reach_ms(self) -> int | None:
        """Where the first stretch begins that was not asked for: beyond the provider's memory, or too much at once."""
        return next((gap.range.start_ms for gap in self.gaps if gap.verdict is Verdict.NEVER_FETCHED), None)


class DataOrchestrator:
    """Chains the sources, keeps the cache, and tells what is not known."""

    def __init__(
        self,
        store: BarStore,
        sessions: SessionService,
        clock: Clock,
        *,
        cache: CacheSource,
        local: Sequence[DataSource],
        plugin: PluginSource,
        last: DataSource,
    ) -> None:
        """Take the sources in the order they are asked: cache, those that read the store, the provider, the last."""
        self._sessions = sessions
        self._store = store
        self._cache = cache
        self._local = local
        self._plugin = plugin
        self._last = last
        self._clock = clock
        self._forming: dict[tuple[object, ...], tuple[int, list[Bar]]] = {}
        self._forming_turns = Turns()

    async def ask(
        self, listing: Listing, timeframe: Timeframe, wanted: TimeRange, now_ms: int, **how: Unpack[How]
    ) -> Ask:
        """A question with the venue's closed hours in it."""
        closed = NOWHERE
        calendar = listing.stored.calendar
        if calendar is not None and wanted.length_ms > 0:
            closed = RangeSet.of(*wanted) - await self._sessions.open_ranges(calendar, timeframe, wanted)
        return Ask(listing.series, listing.stored, timeframe, wanted, closed, now_ms, listing.feed, **how)

    async def bars(self, ask: Ask) -> Bars:
        """Closed bars of the range, fetched where nobody knew them yet."""
        trace = Trace()
        wanted = RangeSet.of(*ask.range)
        # The cache may hold the provider's own bars.
        by_minutes = ask.minutes_final and ask.folds_minutes
        cached = SourceAnswer() if by_minutes else await self._cache.read(ask, wanted, trace)
        rest = wanted - cached.known
        if not rest:
            return Bars(cached.bars, trace.sources, [], lasting=True)
        fresh = await consult((*self._local, self._plugin, self._last), ask, rest, trace)
        if fresh.lasting:
            await self._cache.keep(ask, fresh)
        tiles = await self._explain(ask, rest, fresh)
        return await aside(len(tiles) + fresh.size, _bars_of, cached, fresh, rest, tiles, trace)

    async def coverage(self, ask: Ask) -> list[Tile]:
        """Verdicts that tile the range, from what is stored alone."""
        wanted = RangeSet.of(*ask.range)
        if ask.timeframe is Timeframe.M1:
            knowledge = await self._store.knowledge(ask.stored.id, Timeframe.M1, ask.range)
            data = await self._store.runs(ask.stored.id, Timeframe.M1, ask.range, folded=True)
            size = len(data) + len(ask.closed) + knowledge.size
            return await aside(size, tile, wanted, data=data, closed=ask.closed, knowledge=knowledge)
        answer = await consult((*self._local, self._last), ask, wanted, Trace())
        knowledge = await self._knowledge(ask, answer)
        size = len(answer.bars) + answer.size + len(ask.closed) + knowledge.size
        return await aside(size, _tiles_of, ask, wanted, answer, knowledge)

    async def forming(self, ask: Ask) -> list[Bar]:
        """Bars of the range that are not final yet, straight from the provider, kept for a second, never stored."""
        if ask.feed is None or ask.stored_only or ask.range.length_ms <= 0:
            return []
        key = (ask.series, ask.timeframe, ask.range)
        async with self._forming_turns.of(key):
            now_ms = self._clock.now_ms()
            self._forming = {k: kept for k, kept in self._forming.items() if now_ms - kept[0] < FORMING_TTL_MS}
            if key in self._forming:
                return self._forming[key][1]
            page = await ask.feed.page(ask.series.symbol, ask.native, ask.range)
            bars = list(page.bars) if ask.native is ask.timeframe else fold(page.bars, ask.timeframe)
            self._forming[key] = (now_ms, bars)
            return bars

    async def is_unlisted(self, ask: Ask) -> bool:
        """Whether the symbol did not trade yet anywhere in the range."""
        knowledge = await self._store.knowledge(ask.stored.id, ask.native, ask.range)
        return knowledge.not_listed.covers(RangeSet.of(*ask.range))

    async def skip_empty(self, ask: Ask) -> int:
        """How far from its start on the range has nothing to give: up to the next bar, or to what can be asked for.

        A provider that answers with its first bars, however far ahead they lie, is asked once.
        """
        whole = RangeSet.of(*ask.range)
        accounted, stored_ms = await self._accounted(ask)
        ahead = RangeSet.of(ask.range.start_ms, stored_ms) - accounted
        if ahead and await self._plugin.peek(ask, whole - accounted):
            accounted, stored_ms = await self._accounted(ask)
        unknown = (whole - accounted).span
        limit = ask.range.end_ms if unknown is None else unknown.start_ms
        return max(ask.range.start_ms, ask.timeframe.floor(min(stored_ms, limit)))

    async def _accounted(self, ask: Ask) -> tuple[RangeSet, int]:
        """What needs no asking, and where the first stored bar lies (the range's end where there is none)."""
        knowledge = await self._store.knowledge(ask.stored.id, ask.native, ask.range)
        stored_ms = await self._store.next_bar_ts(ask.stored.id, ask.native, ask.range.start_ms)
        end_ms = ask.range.end_ms
        accounted = knowledge.answered | knowledge.not_listed | ask.closed | ask.forgotten
        return accounted, end_ms if stored_ms is None else min(stored_ms, end_ms)

    async def _explain(self, ask: Ask, wanted: RangeSet, answer: SourceAnswer) -> list[Tile]:
        missing = await aside(len(wanted) + answer.size, wanted.__sub__, answer.settled)
        if not missing:
            return []
        knowledge = await self._knowledge(ask, answer)
        return await aside(
            len(missing) + knowledge.size, tile, missing, data=NOWHERE, closed=NOWHERE, knowledge=knowledge
        )

    async def _knowledge(self, ask: Ask, answer: SourceAnswer) -> Knowledge:
        """What the ledger says, in buckets of the timeframe; what an answer knows was answered for."""
        found = await self._native_knowledge(ask)
        return await aside(found.size + answer.size, _with_answered, found, answer)

    async def _native_knowledge(self, ask: Ask) -> Knowledge:
        """What the ledger says of the provider's own timeframe, in buckets of the one asked for."""
        found = await self._store.knowledge(ask.stored.id, ask.native, ask.range)
        return found if ask.native is ask.timeframe else await aside(found.size, _in_buckets, found, ask.timeframe)


def _with_answered(found: Knowledge, answer: SourceAnswer) -> Knowledge:
    return found._replace(answered=found.answered | (answer.known - answer.settled))


def _in_buckets(found: Knowledge, whole: Timeframe) -> Knowledge:
    checks = (check._replace(range=part) for check in found.checks for part in _outward(check, whole))
    return Knowledge(
        found.answered.whole_buckets(whole),
        found.confirmed.whole_buckets(whole),
        found.not_listed.whole_buckets(whole),
        sorted(checks),
    )


def _bars_of(cached: SourceAnswer, fresh: SourceAnswer, rest: RangeSet, tiles: Sequence[Tile], trace: Trace) -> Bars:
    gaps = [Gap(one.range, one.verdict) for one in tiles]
    return Bars(joined(cached.bars, fresh.bars), trace.sources, gaps, trace.error, lasting=fresh.lasting.covers(rest))


def _tiles_of(ask: Ask, wanted: RangeSet, answer: SourceAnswer, knowledge: Knowledge) -> list[Tile]:
    settled = knowledge._replace(confirmed=knowledge.confirmed | (answer.settled - knowledge.not_listed))
    data = runs_of(answer.bars, ask.timeframe) & answer.settled
    return tile(wanted, data=data, closed=ask.closed, knowledge=settled)


def _outward(check: Check, timeframe: Timeframe) -> RangeSet:
    """A failed stretch spoils each bucket that it touches; an answered one counts for whole buckets only."""
    own = RangeSet((check.range,))
    return own.whole_buckets(timeframe) if check.answered else own.outward(timeframe)
