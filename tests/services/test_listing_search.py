"""Where a symbol's bars begin: found in few calls, and called a listing only where the emptiness before is proven."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count, pairwise
from math import ceil, log2

import pytest

from domain.bar import Bar
from domain.series import Series
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from plugins.base import Capabilities, NetworkPluginError, Page, PluginError, SymbolInfo
from services.bar_store import BarStore, StoredSeries
from services.coverage import Knowledge
from services.feed import Feed, FeedLimits
from services.listing_search import Listed, ListingSearch, View, search_timeframe, worthwhile
from services.market_service import MarketService, ProviderSettings
from services.rechecks import Rechecker
from services.sessions import NY_WEEKDAYS, InMemorySessionRepository, SessionService
from services.turns import Turns
from tests.support.clock import ManualClock
from tests.support.house import OnePlugin
from tests.support.market import START_MS
from tests.support.scripted import ScriptedPlugin

M1, H1, D1 = Timeframe.M1, Timeframe.H1, Timeframe.D1
_numbers = count()
YEARS = TimeRange(START_MS - 3653 * DAY_MS, START_MS + 30 * DAY_MS)


def capabilities(*timeframes: Timeframe, bars_per_call: int = 1000, **more: object) -> Capabilities:
    return Capabilities(timeframes or (M1, H1, D1), bars_per_call, calls_per_second=100_000, **more)  # type: ignore[arg-type]


class LongPlugin(ScriptedPlugin):
    """Has a bar in each bucket of some stretches, for every symbol. `jumps`: answers with its first bars at once."""

    def __init__(self, able: Capabilities, *stretches: tuple[int, int], jumps: bool = False, **more: object) -> None:
        super().__init__({}, capabilities=able, **more)  # type: ignore[arg-type]
        self.trades = RangeSet(stretches)
        self.jumps = jumps
        #: Chance of an error, and of an empty answer where there are bars; about a bucket it lies once only.
        self.errors = self.lies = 0.0
        self.rng = random.Random(0)
        self.lied = RangeSet()
        self.asked: list[TimeRange] = []

    async def fetch_symbols(self) -> Mapping[str, SymbolInfo]:
        return {f"S{n}": SymbolInfo(f"S{n}", calendar=self._calendar) for n in range(2000)}

    async def fetch_page(self, symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Page:
        self.asked.append(wanted)
        await asyncio.sleep(0)
        if self.rng.random() < self.errors:
            raise NetworkPluginError("the venue is down")
        page = self._honest(timeframe, wanted)
        if self.rng.random() < self.lies and not (page.covered & self.lied):
            self.lied |= page.covered
            return Page([], page.covered)
        return page

    def _honest(self, timeframe: Timeframe, wanted: TimeRange) -> Page:
        most = self.capabilities.bars_per_call
        width = timeframe.nominal_ms
        here = self.trades.outward(timeframe) & RangeSet((wanted,))
        if not self.jumps:
            here &= RangeSet.of(wanted.start_ms, wanted.start_ms + most * width)
        stamps = [
            ts for part in here for ts in range(part.start_ms, min(part.end_ms, part.start_ms + most * width), width)
        ]
        full = len(stamps) >= most
        end = stamps[most - 1] + width if full else wanted.end_ms
        end = end if self.jumps else min(end, wanted.start_ms + most * width)
        return Page([bar(ts) for ts in stamps[:most]], RangeSet.of(wanted.start_ms, end))


def bar(ts: int) -> Bar:
    return Bar(ts, 1, 2, 0.5, 1.5, 10)


class World:
    """A provider, a store, and the search."""

    def __init__(self, store: BarStore, clock: ManualClock, plugin: LongPlugin) -> None:
        self.store, self.clock, self.plugin = store, clock, plugin
        settings = ProviderSettings(options=lambda *_: {}, limits=FeedLimits(attempts=1, total_s=5, patience_s=1))
        self.markets = MarketService(OnePlugin(plugin), store, settings, clock)  # type: ignore[arg-type]
        self.search = ListingSearch(store, SessionService(InMemorySessionRepository(), clock=clock), clock)
        self.symbol = f"S{next(_numbers)}"
        self.looks = Rechecker(store, self.markets, self.search, clock, turns=Turns(), calls_per_run=1000)

    async def first_bar(self, wanted: TimeRange = YEARS) -> Listed:
        feed, stored = await self.listing()
        return await self.search.first_bar(feed, stored, self.symbol, wanted)

    async def listing(self) -> tuple[Feed, StoredSeries]:
        listing = await self.markets.find(Series("test", "scripted", self.symbol))
        assert listing.feed is not None
        return listing.feed, listing.stored

    async def knowledge(self, timeframe: Timeframe = M1, wanted: TimeRange | None = None) -> Knowledge:
        _, stored = await self.listing()
        return await self.store.knowledge(stored.id, timeframe, wanted or TimeRange(0, self.clock.now_ms()))

    async def not_listed(self) -> RangeSet:
        return (await self.knowledge()).not_listed

    async def settle(self) -> int:
        """Take second looks until none is left."""
        calls = 0
        for _ in range(8):
            calls += await self.looks.run()
            self.clock.advance(hours=1)
        return calls


def test_days_are_searched_by_unless_hours_are_cheaper_or_days_are_not_their_minutes():
    assert search_timeframe(capabilities(M1, H1, D1, Timeframe.W1, Timeframe.MN1)) is D1
    assert search_timeframe(capabilities(M1, H1)) is H1
    assert search_timeframe(capabilities(M1, H1, D1, bars_per_call=10_000, folds_below=D1)) is H1
    assert search_timeframe(capabilities(M1, Timeframe.M30)) is None
    assert search_timeframe(capabilities(H1, D1)) is None
    assert search_timeframe(capabilities(M1, Timeframe.MN1)) is None


def test_a_search_is_worthwhile_where_much_is_unknown_before_the_first_thing_known():
    able = capabilities()
    pages = [TimeRange(0, n * 1000 * MINUTE_MS) for n in (8, 9)]
    assert [worthwhile(able, wanted, Knowledge()) for wanted in pages] == [False, True]
    known = Knowledge(answered=RangeSet.of(8 * 1000 * MINUTE_MS, 9 * 1000 * MINUTE_MS))
    assert not worthwhile(able, pages[1], known)
    assert not worthwhile(able, pages[1], Knowledge(not_listed=RangeSet.of(0, 60_000)))
    assert not worthwhile(capabilities(M1), YEARS, Knowledge())
    assert not worthwhile(capabilities(history_bars=720), YEARS, Knowledge())


@pytest.mark.parametrize("age_days", [0, 1, 40, 900, 2000, 3600])
async def test_ten_years_of_emptiness_take_as_many_calls_as_halving_them(
    store: BarStore, clock: ManualClock, age_days: int
):
    listed = START_MS - age_days * DAY_MS
    plugin = LongPlugin(capabilities(M1, H1), (listed + 7 * HOUR_MS, clock.now_ms()))
    world = World(store, clock, plugin)
    found = await world.first_bar()
    pages = ceil(YEARS.length_ms / (1000 * HOUR_MS)) + 1
    assert found.first_ms == listed + 7 * HOUR_MS
    assert found.calls == len(plugin.asked) <= 2 * ceil(log2(pages)) + 3 < pages / 4
    halving = next(n for n, asked in enumerate(plugin.asked, 1) if asked.start_ms < found.first_ms <= asked.end_ms)
    assert halving <= ceil(log2(pages)) + 3
    plugin.asked.clear()
    again = await world.first_bar()
    assert (again.first_ms, again.settled) == (found.first_ms, False)
    assert all(not (RangeSet((a,)) & RangeSet((b,))) for a, b in pairwise(sorted(plugin.asked)))


async def test_a_provider_that_answers_with_its_first_bars_is_asked_once(store: BarStore, clock: ManualClock):
    world = World(store, clock, LongPlugin(capabilities(), (START_MS, clock.now_ms()), jumps=True))
    assert await world.first_bar() == Listed(START_MS, settled=False, calls=1)
    assert await world.first_bar() == Listed(START_MS, settled=False, calls=0)
    clock.advance(hours=1)
    assert await world.looks.run() > 0
    assert (await world.not_listed()).covers(RangeSet.of(YEARS.start_ms, START_MS))
    assert await world.first_bar() == Listed(START_MS, settled=True, calls=0)


async def test_nothing_counts_as_not_listed_before_its_emptiness_was_confirmed_an_hour_later(
    any_store: BarStore, clock: ManualClock
):
    world = World(any_store, clock, LongPlugin(capabilities(bars_per_call=300), (START_MS, clock.now_ms())))
    found = await world.first_bar()
    assert (found.first_ms, found.settled) == (START_MS, False)
    clock.advance(minutes=59)
    await world.looks.run()
    assert not await world.not_listed()
    await world.settle()
    (unlisted,) = await world.not_listed()
    assert unlisted.start_ms <= YEARS.start_ms
    assert unlisted.end_ms == START_MS
    assert await world.first_bar() == Listed(START_MS, settled=True, calls=0)


async def test_a_provider_that_vouches_for_emptiness_settles_it_at_once(store: BarStore, clock: ManualClock):
    world = World(store, clock, LongPlugin(capabilities(vouches_empty=True), (START_MS, clock.now_ms())))
    found = await world.first_bar()
    assert (found.first_ms, found.settled) == (START_MS, True)
    assert (await world.not_listed()).covers(RangeSet.of(YEARS.start_ms, START_MS))


async def test_a_symbol_that_was_listed_once_before_is_not_called_unlisted_then(store: BarStore, clock: ManualClock):
    early = (START_MS - 2500 * DAY_MS, START_MS - 2460 * DAY_MS)
    plugin = LongPlugin(capabilities(M1, H1), early, (START_MS - 100 * DAY_MS, clock.now_ms()))
    world = World(store, clock, plugin)
    found = await world.first_bar()
    assert found.settled is False
    await world.settle()
    last = await world.first_bar()
    assert last == Listed(early[0], settled=True, calls=0)
    assert not (await world.not_listed()) & plugin.trades


async def test_a_symbol_that_stopped_trading_years_ago_is_found(store: BarStore, clock: ManualClock):
    early = (START_MS - 2500 * DAY_MS, START_MS - 2490 * DAY_MS)
    world = World(store, clock, LongPlugin(capabilities(M1, H1), early))
    assert (await world.first_bar()).first_ms == early[0]


async def test_a_symbol_without_any_bar_has_no_first_one_and_no_listing(store: BarStore, clock: ManualClock):
    world = World(store, clock, LongPlugin(capabilities()))
    found = await world.first_bar()
    assert (found.first_ms, found.settled, found.searched) == (None, False, True)
    await world.settle()
    # A day has ended meanwhile.
    assert await world.first_bar() == Listed(None, settled=False, calls=1)
    assert await world.first_bar() == Listed(None, settled=False, calls=0)
    assert not await world.not_listed()


async def test_a_second_look_that_finds_bars_moves_the_first_bar_and_the_search_goes_on(
    store: BarStore, clock: ManualClock
):
    listed = START_MS - 2000 * DAY_MS
    plugin = LongPlugin(capabilities(bars_per_call=300), (listed, clock.now_ms()))
    world = World(store, clock, plugin)
    plugin.lies = 1.0
    assert (await world.first_bar()).first_ms is None
    plugin.lies = 0.0
    await world.settle()
    await world.first_bar()
    await world.settle()
    assert await world.first_bar() == Listed(listed, settled=True, calls=0)


async def test_what_the_provider_has_forgotten_is_not_taken_for_empty(store: BarStore, clock: ManualClock):
    plugin = LongPlugin(capabilities(history_bars=2000), (START_MS - 3000 * DAY_MS, clock.now_ms()))
    world = World(store, clock, plugin)
    reach = clock.now_ms() - 1999 * DAY_MS
    found = await world.first_bar()
    assert found.first_ms == D1.floor(reach)
    assert min(asked.start_ms for asked in plugin.asked) >= D1.floor(reach)
    await world.settle()
    assert not await world.not_listed()


async def test_minutes_that_are_stored_count_as_bars(store: BarStore, clock: ManualClock):
    plugin = LongPlugin(capabilities(), (START_MS, clock.now_ms()))
    world = World(store, clock, plugin)
    _, stored = await world.listing()
    early = START_MS - 3000 * DAY_MS + 7 * HOUR_MS
    imported = RangeSet.of(early, early + MINUTE_MS)
    await store.record(stored.id, M1, bars=[bar(early)], answered=imported, was_asked=False)
    found = await world.first_bar()
    assert found.first_ms == D1.floor(early)
    await world.settle()
    assert not (await world.not_listed()) & imported
    assert (await world.first_bar()).settled


async def test_a_coarser_bar_in_the_emptiness_forbids_to_call_it_unlisted(store: BarStore, clock: ManualClock):
    plugin = LongPlugin(capabilities(), (START_MS, clock.now_ms()), jumps=True)
    world = World(store, clock, plugin)
    _, stored = await world.listing()
    week = Timeframe.W1.floor(START_MS - 700 * DAY_MS)
    await store.record(stored.id, Timeframe.W1, bars=[bar(week)], answered=RangeSet.of(week, week + 7 * DAY_MS))
    await world.first_bar()
    await world.settle()
    assert (await world.not_listed()) - RangeSet.of(0, week + 6 * DAY_MS) == RangeSet()


async def test_a_short_emptiness_before_the_first_known_bar_is_no_listing(store: BarStore, clock: ManualClock):
    plugin = LongPlugin(capabilities(), (START_MS, clock.now_ms()))
    world = World(store, clock, plugin)
    feed, stored = await world.listing()
    await store.record(
        stored.id, D1, bars=[bar(START_MS)], answered=RangeSet.of(START_MS - 3 * DAY_MS, START_MS + DAY_MS)
    )
    await world.settle()
    assert (await world.knowledge(D1)).confirmed.covers(RangeSet.of(START_MS - 3 * DAY_MS, START_MS))
    assert await world.search.infer(stored, feed.capabilities) == RangeSet()
    assert not await world.not_listed()


async def test_closed_hours_do_not_break_the_emptiness(store: BarStore, clock: ManualClock):
    # Opens at 14:30 UTC in winter: the bucket of 14:00 is open.
    listed = START_MS + 14 * HOUR_MS
    able = capabilities(M1, H1, D1, bars_per_call=1000, folds_below=D1)
    world = World(store, clock, LongPlugin(able, (listed, listed + 6 * HOUR_MS), calendar=NY_WEEKDAYS))
    wanted = TimeRange(START_MS - 300 * DAY_MS, START_MS + 30 * DAY_MS)
    found = await world.first_bar(wanted)
    assert found.first_ms == listed
    await world.settle()
    assert await world.first_bar(wanted) == Listed(listed, settled=True, calls=0)
    assert (await world.not_listed()).covers(RangeSet.of(wanted.start_ms, listed))


async def test_a_provider_that_answers_but_accounts_for_nothing_ends_the_search(store: BarStore, clock: ManualClock):
    plugin = LongPlugin(capabilities(), (START_MS, clock.now_ms()))
    world = World(store, clock, plugin)

    async def nothing(symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Page:
        return Page([], RangeSet())

    plugin.fetch_page = nothing  # type: ignore[method-assign]
    found = await world.first_bar()
    assert (found.first_ms, found.settled, found.searched) == (None, False, False)


async def test_a_fault_is_told_and_the_next_search_goes_on(store: BarStore, clock: ManualClock):
    plugin = LongPlugin(capabilities(M1, H1), (START_MS, clock.now_ms()))
    world = World(store, clock, plugin)
    honest = plugin.fetch_page
    calls = count(1)

    async def breaks(symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Page:
        if next(calls) == 4:
            raise NetworkPluginError("the venue is down")
        return await honest(symbol, timeframe, wanted)

    plugin.fetch_page = breaks  # type: ignore[method-assign]
    with pytest.raises(PluginError, match="the venue is down"):
        await world.first_bar()
    assert (await world.first_bar()).first_ms == START_MS
    assert len({asked.start_ms for asked in plugin.asked}) == len(plugin.asked), "nothing was asked twice"


def random_stretches(rng: random.Random, now_ms: int) -> Sequence[tuple[int, int]]:
    """A market of days: listed once, listed and relisted, sparse, or gone."""
    last = now_ms if rng.random() < 0.8 else now_ms - rng.randrange(400) * DAY_MS
    days = sorted(rng.sample(range(1, 1500), rng.choice([1, 1, 1, 3, 5])))
    borders = [D1.floor(last) - day * DAY_MS for day in reversed(days)] + [last]
    return [(a, b) for n, (a, b) in enumerate(pairwise(borders)) if n % 2 == 0]


async def one_life(store: BarStore, clock: ManualClock, seed: int) -> None:
    """Searches, second looks, faults, lies and cancellations in any order; then the truth must come out."""
    rng = random.Random(seed)
    plugin = LongPlugin(
        capabilities(M1, D1, bars_per_call=rng.randrange(5, 200)),
        *random_stretches(rng, clock.now_ms()),
        jumps=rng.random() < 0.3,
    )
    plugin.rng = rng
    plugin.errors, plugin.lies = rng.choice([0, 0.1, 0.4]), rng.choice([0, 0.3, 1.0])
    world = World(store, clock, plugin)
    wanted = TimeRange(START_MS - rng.randrange(10, 1600) * DAY_MS, clock.now_ms())
    for _ in range(rng.randrange(1, 6)):
        clock.advance(minutes=rng.choice([0, 20, 60, 61, 300]))
        task: asyncio.Task[object] = asyncio.create_task(
            world.first_bar(wanted) if rng.random() < 0.6 else world.looks.run()  # type: ignore[arg-type]
        )
        await asyncio.wait({task}, timeout=rng.choice([0.002, 0.01, 30]))
        task.cancel()
        with suppress(asyncio.CancelledError, PluginError):
            await task
        assert not (await world.not_listed()) & plugin.trades, f"seed {seed}: called unlisted though it traded"
    plugin.errors = 0
    clock.advance(days=2)
    for _ in range(6):
        found = await world.first_bar(wanted)
        await world.settle()
        assert not (await world.not_listed()) & plugin.trades, f"seed {seed}: called unlisted though it traded"
        clock.advance(days=1)
    start_ms = wanted.start_ms - plugin.capabilities.bars_per_call * DAY_MS
    truth = plugin.trades & RangeSet.of(start_ms, D1.floor(clock.now_ms()))
    assert found.first_ms == truth.ranges[0].start_ms if truth else found.first_ms is None, f"seed {seed}"
    assert found.settled or not truth, f"seed {seed}: not settled"
    if found.first_ms is not None:
        unlisted = await world.not_listed()
        assert unlisted.covers(RangeSet.of(wanted.start_ms, found.first_ms)), f"seed {seed}"


@pytest.mark.parametrize("part", range(4))
async def test_no_lie_told_once_and_no_fault_makes_a_day_with_a_bar_count_as_not_listed(
    store: BarStore, clock: ManualClock, part: int
):
    begun = clock.now_ms()
    for seed in range(part * 40, part * 40 + 40):
        clock.advance(minutes=(begun - clock.now_ms()) / MINUTE_MS)
        await one_life(store, clock, seed)


def test_the_gaps_of_an_emptiness_are_probed_only_when_bar_and_emptiness_touch():
    domain = TimeRange(0, 100)
    assert not View(domain, None, RangeSet()).converged
    assert not View(domain, 50, RangeSet.of(0, 40)).converged
    assert View(domain, 50, RangeSet.of(40, 50)).converged
    assert View(domain, 50, RangeSet.of(40, 50)).unknown == RangeSet.of(0, 40)
    assert View(domain, 50, RangeSet.of(0, 40), closed=RangeSet.of(40, 50)).converged
