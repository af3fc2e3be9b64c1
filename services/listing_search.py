"""Where a symbol's bars begin: found by few questions about coarse bars, not by walking years of empty minutes.

Every question is a real one, kept in the ledger of its timeframe like any other, so that nothing is asked twice and a
search that was broken off goes on where it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, log2
from typing import NamedTuple

from domain.bar import Bar
from domain.clock import Clock
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, Timeframe
from plugins.base import Capabilities, PluginError
from services.bar_store import BarStore, StoredSeries
from services.coverage import Knowledge
from services.database import Connection
from services.feed import Feed
from services.fetch import ErrandLimits, Fetch, StoreKeeper
from services.sessions import SessionService
from services.sql import load_queries

#: A shorter stretch of unknown minutes is fetched as it is, page by page.
WORTHWHILE_PAGES = 8
_TEN_YEARS_MS = 3653 * DAY_MS
_PROBE_S = 60.0


class Listed(NamedTuple):
    """What a search found.

    Attributes:
        first_ms: start of the first coarse bucket with a bar, which may lie beyond what was wanted; None: there is no
            bar up to now.
        settled: every wanted minute before it is recorded as not listed (or there is none). Until then the emptiness
            is not proven, or not asked for in full; the rest is done in the background.
        calls: upstream calls made.
        searched: False: the provider has no bars to search by, and nothing is known.
    """

    first_ms: int | None
    settled: bool
    calls: int
    searched: bool = True


class CountingKeeper(StoreKeeper):
    """Straight into the store; counts the answers."""

    answers = 0

    async def keep(self, bars: Sequence[Bar], covered: RangeSet, *, vouched: bool, asked_ms: int) -> None:
        """Count it and keep it."""
        self.answers += 1
        await super().keep(bars, covered, vouched=vouched, asked_ms=asked_ms)


def search_timeframe(capabilities: Capabilities) -> Timeframe | None:
    """The provider's own timeframe to search by; None where it has none, or no minutes.

    Of an hour at least, and one whose buckets are empty exactly where their minutes are (an official daily bar of a
    stock is not its minutes). Of these the one by which ten empty years, and then the minutes of the first bucket,
    are asked for in the fewest calls: mostly days, since the bucket of a week costs more calls than the days save.
    """
    limit = capabilities.folds_below
    able = [
        own
        for own in capabilities.timeframes
        if own.width_ms is not None and own.width_ms >= HOUR_MS and (limit is None or own.nominal_ms < limit.nominal_ms)
    ]
    if capabilities.native_for(Timeframe.M1) is None:
        return None
    minute_page_ms = _page_ms(capabilities, Timeframe.M1)

    def calls(own: Timeframe) -> float:
        return _TEN_YEARS_MS / _page_ms(capabilities, own) + own.nominal_ms / minute_page_ms

    return min(able, key=calls, default=None)


def worthwhile(capabilities: Capabilities, wanted: TimeRange, knowledge: Knowledge) -> bool:
    """Whether searching for the first bar can save calls: so much is unknown before the first thing that is known.

    `knowledge` is of the minutes.
    """
    if search_timeframe(capabilities) is None:
        return False
    least_ms = WORTHWHILE_PAGES * _page_ms(capabilities, Timeframe.M1)
    reach = capabilities.history_bars
    if reach is not None and reach * Timeframe.M1.nominal_ms <= least_ms:
        return False
    known = (knowledge.answered | knowledge.not_listed) & RangeSet((wanted,))
    first_known_ms = known.ranges[0].start_ms if known else wanted.end_ms
    return first_known_ms - wanted.start_ms > least_ms


class View(NamedTuple):
    """What is known of the coarse buckets of a stretch.

    Attributes:
        domain: the stretch.
        first_ms: its first bucket that is known to hold a bar; None: none is known.
        empty: buckets before it that were answered for.
        closed: buckets in which the venue is closed.
        refused: buckets that the provider does not account for though it answers.
    """

    domain: TimeRange
    first_ms: int | None
    empty: RangeSet
    closed: RangeSet = RangeSet()
    refused: RangeSet = RangeSet()

    @property
    def unknown(self) -> RangeSet:
        """What is yet to be asked for before the first bar; with the closed hours in between, but not alone."""
        end_ms = self.domain.end_ms if self.first_ms is None else self.first_ms
        gaps = RangeSet.of(self.domain.start_ms, end_ms) - self.empty - self.refused
        return RangeSet(gap for gap in gaps if not self.closed.covers(RangeSet((gap,)))) if self.closed else gaps

    @property
    def converged(self) -> bool:
        """Whether a bar is known, and nothing directly before it is left to ask for."""
        gaps = self.unknown.ranges
        return self.first_ms is not None and (not gaps or gaps[-1].end_ms < self.first_ms)

    def next_probe(self, timeframe: Timeframe, page_ms: int) -> TimeRange | None:
        """Where to ask next; None where nothing is unknown.

        First everything at once, since some providers answer with their first bars wherever they lie; then the
        newest page, where a symbol that trades has a bar; then the middle of what lies between the last emptiness
        and the first bar, until they touch; then the middles of the longest gaps left in the emptiness.
        """
        gaps = self.unknown.ranges
        if not gaps:
            return None
        if not self.empty and not self.refused:
            return gaps[0]
        if self.first_ms is None and gaps[-1].end_ms == self.domain.end_ms:
            return _page_from(gaps[-1], gaps[-1].end_ms - page_ms, timeframe, page_ms)
        gap = gaps[-1] if not self.converged else max(gaps, key=lambda each: each.length_ms)
        middle_ms = (gap.start_ms + gap.end_ms) // 2
        return _page_from(gap, min(middle_ms, gap.end_ms - page_ms), timeframe, page_ms)


class ListingSearch:
    """Finds first bars, and records `not_listed` where the ledger proves it."""

    def __init__(self, store: BarStore, sessions: SessionService, clock: Clock) -> None:
        """Take the parts; do no I/O."""
        self._store = store
        self._sessions = sessions
        self._clock = clock
        self._sql = load_queries("rechecks")

    async def first_bar(
        self, feed: Feed, stored: StoredSeries, symbol: str, wanted: TimeRange, *, polite: bool = True
    ) -> Listed:
        """Find the first coarse bucket with a bar from a page before `wanted` on.

        A page before it, so that the emptiness which proves a listing is never shorter than that. About
        log2(pages) calls find the bar of a symbol that trades on from its listing. That leaves gaps in the emptiness
        before it, in which older bars may hide (a symbol that was listed once before): as many calls again go
        there, and what is then left is marked to be asked for in the background. While no bar is found at all,
        every page is asked.

        Raises:
            PluginError: the provider could not answer; what it did answer is kept.
            DatabaseUnavailableError: nothing can be kept now.
        """
        hunt = self._hunt(feed, stored, symbol, wanted, polite=polite)
        if hunt is None:
            return Listed(None, settled=False, calls=0, searched=False)
        view = await hunt.view()
        while (target := hunt.next_target(view)) is not None:
            view = await hunt.probe(view, target)
        if view.first_ms is None:
            return Listed(None, settled=False, calls=hunt.calls, searched=not view.refused)
        proven = await self.infer(stored, feed.capabilities)
        await self._wish(stored, hunt.timeframe, view.unknown | (view.refused & RangeSet.of(0, view.first_ms)))
        open_part = RangeSet.of(wanted.start_ms, min(wanted.end_ms, view.first_ms)) - proven
        return Listed(view.first_ms, settled=not open_part, calls=hunt.calls)

    async def infer(self, stored: StoredSeries, capabilities: Capabilities) -> RangeSet:
        """Record as not listed what the ledger proves to be so, without any call; what is proven.

        That is the unbroken emptiness up to the first stored bar of any timeframe, every bucket of it confirmed
        (answered twice, an hour apart, or vouched for) or closed. Nothing is concluded about a stretch that was not
        asked for: the symbol may have traded, been delisted and come back. The emptiness must be a page of the
        coarse timeframe long at least, or reach back to the epoch: a quiet weekend before the first bar that somebody
        happened to ask for is no listing.
        """
        timeframe = search_timeframe(capabilities)
        if timeframe is None:
            return RangeSet()
        everything = TimeRange(timeframe.ceil(0), timeframe.floor(self._clock.now_ms()))
        closed = await self.closed(stored, timeframe, everything)
        async with self._store.database.transaction() as db:
            await db.fetchval(self._sql["lock_series"], stored.id)
            first_ms = await self._first_known(db, stored.id, timeframe)
            if first_ms is None or first_ms <= everything.start_ms:
                return RangeSet()
            before = TimeRange(everything.start_ms, first_ms)
            knowledge = await self._store.ledger.read(db, stored.id, timeframe, before)
            unlisted = knowledge.not_listed.whole_buckets(timeframe)
            proven = (knowledge.confirmed | unlisted | closed) & RangeSet((before,))
            stretch = proven.ranges[-1] if proven else before
            if not proven or stretch.end_ms != first_ms:
                return RangeSet()
            if stretch.start_ms > before.start_ms and stretch.length_ms < _page_ms(capabilities, timeframe):
                return RangeSet()
            found = RangeSet((stretch,))
            if found - knowledge.not_listed:
                await self._store.ledger.not_listed(db, stored.id, Timeframe.M1, found)
        return found

    async def closed(self, stored: StoredSeries, timeframe: Timeframe, wanted: TimeRange) -> RangeSet:
        """Buckets of the range in which the venue is closed."""
        if stored.calendar is None or wanted.length_ms <= 0:
            return RangeSet()
        return RangeSet((wanted,)) - await self._sessions.open_ranges(stored.calendar, timeframe, wanted)

    async def view(self, stored: StoredSeries, timeframe: Timeframe, domain: TimeRange) -> View:
        """What is known of the stretch."""
        closed = await self.closed(stored, timeframe, domain)
        async with self._store.database.connection() as db:
            first_ms = await self._first_known(db, stored.id, timeframe)
            knowledge = await self._store.ledger.read(db, stored.id, timeframe, domain)
        if first_ms is not None and first_ms >= domain.end_ms:
            first_ms = None
        end_ms = domain.end_ms if first_ms is None else max(first_ms, domain.start_ms)
        known = knowledge.answered | knowledge.not_listed.whole_buckets(timeframe)
        return View(domain, first_ms, known & RangeSet.of(domain.start_ms, end_ms), closed)

    def _hunt(
        self, feed: Feed, stored: StoredSeries, symbol: str, wanted: TimeRange, *, polite: bool
    ) -> "_Hunt | None":
        """A search from a page before what is wanted to the last final bucket, within the provider's memory."""
        capabilities = feed.capabilities
        timeframe = search_timeframe(capabilities)
        if timeframe is None:
            return None
        now_ms = self._clock.now_ms()
        start_ms = timeframe.floor(wanted.start_ms - _page_ms(capabilities, timeframe))
        forgotten_ms = (beyond_memory(capabilities, timeframe, now_ms).span or (0, 0))[1]
        domain = TimeRange(
            max(start_ms, timeframe.ceil(0), forgotten_ms), timeframe.floor(now_ms - capabilities.settle_ms)
        )
        if domain.length_ms <= 0:
            return None
        return _Hunt(
            search=self,
            clock=self._clock,
            keeper=CountingKeeper(self._store, stored.id, timeframe),
            feed=feed,
            stored=stored,
            symbol=symbol,
            timeframe=timeframe,
            domain=domain,
            page_ms=_page_ms(capabilities, timeframe),
            polite=polite,
        )

    async def _first_known(self, db: Connection, series_id: int, timeframe: Timeframe) -> int | None:
        """Start of the first bucket before which no stored bar of any timeframe proves a trade."""
        names = [each.value for each in Timeframe if each is not Timeframe.M1]
        rows = await db.fetch(self._sql["first_bars"], series_id, names)
        return min((_certain_ms(Timeframe(row["timeframe"]), row["first_ts"], timeframe) for row in rows), default=None)

    async def _wish(self, stored: StoredSeries, timeframe: Timeframe, gaps: RangeSet) -> None:
        if gaps:
            async with self._store.database.transaction() as db:
                await db.fetchval(self._sql["lock_series"], stored.id)
                await self._store.ledger.wish(db, stored.id, timeframe, gaps, now_ms=self._clock.now_ms())


@dataclass(kw_only=True)
class _Hunt:
    """One search under way."""

    search: ListingSearch
    clock: Clock
    keeper: CountingKeeper
    feed: Feed
    stored: StoredSeries
    symbol: str
    timeframe: Timeframe
    domain: TimeRange
    page_ms: int
    polite: bool
    refused: RangeSet = field(default_factory=RangeSet)

    @property
    def patience(self) -> int:
        """Calls enough to find the bar, and as many again to look into the gaps."""
        return 2 * ceil(log2(self.domain.length_ms / self.page_ms + 1)) + 2

    @property
    def calls(self) -> int:
        """Upstream calls that were answered."""
        return self.keeper.answers

    async def view(self) -> View:
        """What is known by now."""
        found = await self.search.view(self.stored, self.timeframe, self.domain)
        return found._replace(refused=self.refused)

    def next_target(self, view: View) -> TimeRange | None:
        """Where to ask next; None where it is enough."""
        if view.converged and self.calls >= self.patience:
            return None
        return view.next_probe(self.timeframe, self.page_ms)

    async def probe(self, before: View, target: TimeRange) -> View:
        """Ask once (a page that was cut short, once more); raises `PluginError` where the provider fails."""
        limits = ErrandLimits(calls=1 if target.length_ms > self.page_ms else 2, seconds=_PROBE_S)
        errand = Fetch(
            self.keeper,
            self.feed,
            self.clock,
            symbol=self.symbol,
            timeframe=self.timeframe,
            limits=limits,
            polite=self.polite,
        )
        error: PluginError | None = await errand.run(RangeSet((target,)))
        if error is not None:
            raise error
        after = await self.view()
        if (after.first_ms, after.unknown) == (before.first_ms, before.unknown):
            self.refused |= RangeSet.of(target.start_ms, min(target.end_ms, target.start_ms + self.page_ms))
            after = after._replace(refused=self.refused)
        return after


def beyond_memory(capabilities: Capabilities, timeframe: Timeframe, now_ms: int) -> RangeSet:
    """What a provider with a short memory cannot be asked for any more; that is forgotten, not empty."""
    reach = capabilities.history_bars
    return RangeSet() if reach is None else RangeSet.of(0, timeframe.back(now_ms, reach - 1))


def _page_ms(capabilities: Capabilities, timeframe: Timeframe) -> int:
    return capabilities.bars_per_call * timeframe.nominal_ms


def _page_from(gap: TimeRange, start_ms: int, timeframe: Timeframe, page_ms: int) -> TimeRange:
    start_ms = max(gap.start_ms, timeframe.floor(start_ms))
    return TimeRange(start_ms, min(gap.end_ms, start_ms + page_ms))


def _certain_ms(own: Timeframe, ts_ms: int, timeframe: Timeframe) -> int:
    """Latest bucket of `timeframe` that a bar's trade can lie in: of a coarser bar it is not known where it was."""
    if own.nominal_ms <= timeframe.nominal_ms:
        return timeframe.floor(ts_ms)
    return timeframe.floor(own.next(ts_ms) - 1)
