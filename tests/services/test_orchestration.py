"""The whole chain on a real database: nothing lost, doubled or made up, and no call made twice."""

import asyncio
import random

import pytest

from domain.bar import Bar, fold, within
from domain.errors import UnknownMarketError, UnknownProviderError, UnknownSymbolError, UnsupportedTimeframeError
from domain.series import Gap, Series, Verdict
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from plugins.base import Capabilities, NetworkPluginError, Page, RateLimitPluginError
from services.bar_store import BarStore
from services.bar_walk import OhlcvAnswer
from services.data_sources import plugin_source
from services.fetch import ErrandLimits
from services.fill import Fill
from tests.support.clock import ManualClock
from tests.support.house import House, make_house
from tests.support.market import START_MS, random_minutes
from tests.support.scripted import ScriptedPlugin

MARKET = random_minutes(1, 3 * 1440, holes=0.1)
FULL = random_minutes(2, 3 * 1440, holes=0)
END_MS = START_MS + 3 * DAY_MS


@pytest.fixture
def house(store: BarStore, clock: ManualClock) -> House:
    return make_house(store, clock, ScriptedPlugin({"A/B": MARKET, "FULL": FULL}))


def between(bars: list[Bar], start_ms: int, end_ms: int) -> list[Bar]:
    return within(bars, [TimeRange(start_ms, end_ms)])


def verdicts(answer: OhlcvAnswer) -> set[Verdict]:
    return {gap.verdict for gap in answer.gaps}


async def test_a_range_comes_from_the_provider_once_and_then_from_what_is_kept(house: House) -> None:
    first = await house.bars("FULL", start_ms=START_MS, end_ms=START_MS + 5 * HOUR_MS)
    calls = len(house.plugin.calls)
    again = await house.bars("FULL", start_ms=START_MS, end_ms=START_MS + 5 * HOUR_MS)
    assert first.bars == again.bars == FULL[:300]
    assert (first.sources, again.sources) == (["provider"], ["cache"])
    assert not first.gaps
    assert not again.gaps
    assert len(house.plugin.calls) == calls == 1
    await house.cache.close()
    fresh = make_house(house.store, house.clock, house.plugin)
    from_store = await fresh.bars("FULL", start_ms=START_MS, end_ms=START_MS + 5 * HOUR_MS)
    assert (from_store.bars, from_store.sources) == (first.bars, ["database"])
    assert len(house.plugin.calls) == calls


async def test_fifty_equal_cold_questions_at_once_make_one_call(house: House) -> None:
    question = {"start_ms": START_MS, "end_ms": START_MS + 5 * HOUR_MS}
    answers = await asyncio.gather(*(house.bars("FULL", **question) for _ in range(50)))
    assert all(answer.bars == FULL[:300] for answer in answers)
    assert len(house.plugin.calls) == 1
    assert house.plugin.symbol_calls == 1


async def test_fifty_questions_to_a_dead_provider_make_one_call(house: House) -> None:
    def down(_: int, __: TimeRange) -> Page | None:
        raise NetworkPluginError("connection refused")

    house.plugin.fault = down
    answers = await asyncio.gather(*(house.bars(start_ms=START_MS, end_ms=START_MS + HOUR_MS) for _ in range(50)))
    assert all(verdicts(answer) == {Verdict.FETCH_FAILED} for answer in answers)
    assert len(house.plugin.calls) == 1


async def test_only_what_is_missing_is_asked_for(house: House) -> None:
    await house.bars("FULL", start_ms=START_MS + HOUR_MS, end_ms=START_MS + 2 * HOUR_MS)
    answer = await house.bars("FULL", start_ms=START_MS, end_ms=START_MS + 2 * HOUR_MS)
    assert answer.bars == FULL[:120]
    assert [call[2] for call in house.plugin.calls] == [
        TimeRange(START_MS + HOUR_MS, START_MS + 2 * HOUR_MS),
        TimeRange(START_MS, START_MS + HOUR_MS),
    ]


async def test_pages_from_a_start_hold_every_bar_once(house: House) -> None:
    bars, pages = await house.every_page(start_ms=START_MS, end_ms=END_MS, limit=700)
    assert bars == MARKET
    assert pages == -(-len(MARKET) // 700)


async def test_the_last_bars_before_an_end_are_found_through_thin_trade(store: BarStore, clock: ManualClock) -> None:
    thin = random_minutes(3, 6 * 1440, holes=0.97)
    house = make_house(store, clock, ScriptedPlugin({"A/B": thin}))
    answer = await house.bars(end_ms=START_MS + 6 * DAY_MS, limit=100)
    assert answer.bars == thin[-100:]
    assert answer.next_ms is None


async def test_many_last_bars_of_a_thin_symbol_are_all_found(store: BarStore, clock: ManualClock) -> None:
    thin = random_minutes(4, 25 * 1440, holes=0.95)
    capabilities = Capabilities(timeframes=(Timeframe.M1,), bars_per_call=10_000, calls_per_second=1e4)
    house = make_house(store, clock, ScriptedPlugin({"A/B": thin}, capabilities=capabilities))
    answer = await house.bars(end_ms=START_MS + 25 * DAY_MS, limit=1500)
    assert answer.bars == thin[-1500:]


async def test_the_first_bars_after_a_start_are_found_behind_years_of_nothing(
    store: BarStore, clock: ManualClock
) -> None:
    class Jumping(ScriptedPlugin):
        """Answers with the first bars at or after the start, as venues with a `since` do."""

        def honest_page(self, symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Page:
            bars = between(fold(self.market[symbol], timeframe), *wanted)[:500]
            end = timeframe.next(bars[-1].ts) if len(bars) == 500 else wanted.end_ms
            return Page(bars, RangeSet.of(wanted.start_ms, end))

    house = make_house(store, clock, Jumping({"A/B": MARKET}))
    answer = await house.bars(start_ms=0, limit=300)
    assert answer.bars == MARKET[:300]
    assert len(house.plugin.calls) <= 5
    assert answer.gaps[0] == Gap(TimeRange(0, MARKET[0].ts), Verdict.UNCONFIRMED_EMPTY)
    clock.advance(hours=2)
    again = await house.bars(start_ms=0, limit=300)
    assert (again.bars, again.gaps) == (answer.bars, [])
    assert len(house.plugin.calls) <= 10


async def test_an_emptiness_is_provisional_until_it_is_given_again_an_hour_later(
    house: House, clock: ManualClock
) -> None:
    question = {"start_ms": START_MS, "end_ms": START_MS + HOUR_MS}
    first = await house.bars(**question)
    assert verdicts(first) == {Verdict.UNCONFIRMED_EMPTY}
    assert sum(gap.range.length_ms for gap in first.gaps) == (60 - len(first.bars)) * MINUTE_MS
    await house.bars(**question)
    assert len(house.plugin.calls) == 1
    clock.advance(hours=1.1)
    confirmed = await house.bars(**question)
    assert (confirmed.bars, confirmed.gaps) == (first.bars, [])
    assert len(house.plugin.calls) == 2
    tiles = await house.coverage(START_MS, START_MS + HOUR_MS)
    assert {tile.verdict for tile in tiles} == {Verdict.DATA, Verdict.NO_TRADES}
    assert all(tile.attempts == 2 for tile in tiles if tile.verdict is Verdict.NO_TRADES)


async def test_a_bar_that_comes_late_takes_the_place_of_an_emptiness(house: House, clock: ManualClock) -> None:
    late = house.plugin.market["FULL"].pop(30)
    question = {"start_ms": START_MS, "end_ms": START_MS + HOUR_MS}
    first = await house.bars("FULL", **question)
    assert late not in first.bars
    house.plugin.market["FULL"] = FULL
    clock.advance(hours=2)
    answer = await house.bars("FULL", **question)
    assert answer.bars == FULL[:60]
    assert not answer.gaps


async def test_a_dead_provider_leaves_what_is_stored_and_says_what_is_missing(house: House, clock: ManualClock) -> None:
    await house.bars("FULL", start_ms=START_MS, end_ms=START_MS + HOUR_MS)

    def down(_: int, __: TimeRange) -> Page | None:
        raise NetworkPluginError("connection refused")

    house.plugin.fault = down
    answer = await house.bars("FULL", start_ms=START_MS, end_ms=START_MS + 2 * HOUR_MS)
    assert answer.bars == FULL[:60]
    assert [(gap.range, gap.verdict) for gap in answer.gaps] == [
        (TimeRange(START_MS + HOUR_MS, START_MS + 2 * HOUR_MS), Verdict.FETCH_FAILED)
    ]
    assert isinstance(answer.error, NetworkPluginError)
    house.plugin.fault = None
    clock.advance(minutes=1)
    assert (await house.bars("FULL", start_ms=START_MS, end_ms=START_MS + 2 * HOUR_MS)).bars == FULL[:120]


async def test_all_that_is_stored_is_served_in_one_answer_when_the_provider_fails_on_the_way(house: House) -> None:
    hour = HOUR_MS
    await house.bars("FULL", start_ms=START_MS, end_ms=START_MS + hour)
    await house.bars("FULL", start_ms=START_MS + 5 * hour, end_ms=START_MS + 6 * hour)

    def down(_: int, __: TimeRange) -> Page | None:
        raise NetworkPluginError("connection refused")

    house.plugin.fault = down
    stored = FULL[:60] + FULL[300:360]
    calls = len(house.plugin.calls)
    first = await house.bars("FULL", start_ms=START_MS, end_ms=START_MS + 8 * hour, limit=100)
    assert first.bars == stored[:100]
    assert len(house.plugin.calls) == calls + 1
    last = await house.bars("FULL", end_ms=START_MS + 6 * hour, limit=60)
    assert last.bars == stored[60:]


async def test_a_stored_series_is_served_though_its_provider_cannot_even_list_it(
    house: House, store: BarStore, clock: ManualClock
) -> None:
    await house.bars("FULL", start_ms=START_MS, end_ms=START_MS + HOUR_MS)
    gone = ScriptedPlugin({})
    gone.symbols_fault = NetworkPluginError("connection refused")
    later = make_house(store, clock, gone)
    answer = await later.bars("FULL", start_ms=START_MS, end_ms=START_MS + HOUR_MS)
    assert (answer.bars, gone.calls, gone.symbol_calls) == (FULL[:60], [], 0)
    with pytest.raises(NetworkPluginError, match="refused"):
        await later.bars("A/B", start_ms=START_MS, end_ms=START_MS + HOUR_MS)


async def test_a_rate_limit_pauses_every_question_to_the_provider(house: House) -> None:
    def limited(_: int, __: TimeRange) -> Page | None:
        raise RateLimitPluginError("slow down", retry_after_s=60)

    await house.bars("FULL", start_ms=START_MS, end_ms=START_MS + HOUR_MS)
    house.plugin.fault = limited
    answer = await house.bars("FULL", start_ms=START_MS + HOUR_MS, end_ms=START_MS + 2 * HOUR_MS)
    calls = len(house.plugin.calls)
    other = await house.bars("FULL", start_ms=START_MS + 5 * HOUR_MS, end_ms=START_MS + 6 * HOUR_MS)
    assert isinstance(answer.error, RateLimitPluginError)
    assert isinstance(other.error, RateLimitPluginError)
    assert other.error.retry_after_s == pytest.approx(60, abs=30)
    assert len(house.plugin.calls) == calls


async def test_a_row_that_was_thrown_away_is_asked_for_again_and_never_counts_as_empty(house: House) -> None:
    bad = FULL[10].ts

    def without_one(call: int, wanted: TimeRange) -> Page | None:
        page = house.plugin.honest_page("FULL", Timeframe.M1, wanted)
        hole = RangeSet.of(bad, bad + MINUTE_MS)
        bars = [bar for bar in page.bars if bar.ts != bad]
        return Page(bars, page.covered - hole, rejected=["high 1.0 is below low 2.0"])

    house.plugin.fault = without_one
    answer = await house.bars("FULL", start_ms=START_MS, end_ms=START_MS + HOUR_MS)
    assert [(gap.range.start_ms, gap.verdict) for gap in answer.gaps] == [(bad, Verdict.FETCH_FAILED)]
    assert [call[2] for call in house.plugin.calls[1:]] == [TimeRange(bad, bad + MINUTE_MS)]
    known = await house.store.knowledge(1, Timeframe.M1, TimeRange(START_MS, START_MS + HOUR_MS))
    assert not known.answered & RangeSet.of(bad, bad + MINUTE_MS)


@pytest.mark.parametrize("seed", range(20))
async def test_after_any_faults_the_store_ends_equal_to_the_market(
    seed: int, store: BarStore, clock: ManualClock
) -> None:
    """0 bars lost, 0 doubled, 0 invented, and every minute has its verdict. The faults last less than an hour: a
    provider that denies a bar twice, an hour apart, is believed.
    """
    rng = random.Random(seed)
    market = random_minutes(seed, 2000, holes=rng.choice([0.0, 0.1, 0.8]))
    end_ms = START_MS + 2000 * MINUTE_MS
    house = make_house(store, clock, ScriptedPlugin({"A/B": market}))

    def trouble(_: int, wanted: TimeRange) -> Page | None:
        page = house.plugin.honest_page("A/B", Timeframe.M1, wanted)
        kind = rng.randrange(8)
        if kind == 0:
            raise NetworkPluginError("reset by peer")
        if kind == 1:
            raise RateLimitPluginError("slow down", retry_after_s=0.001)
        if kind == 2:
            return Page([], page.covered)
        if kind == 3:
            return Page([], RangeSet())
        if kind == 4:
            bars = page.bars[: len(page.bars) // 2]
            return Page(bars, RangeSet.of(wanted.start_ms, bars[-1].ts + MINUTE_MS) if bars else RangeSet())
        if kind == 5:
            return Page([bar for bar in page.bars if rng.random() < 0.7], page.covered)
        return None

    house.plugin.fault = trouble
    for _ in range(6):
        start = START_MS + rng.randrange(2000) * MINUTE_MS
        await house.bars(start_ms=start, end_ms=min(end_ms, start + rng.randrange(1, 900) * MINUTE_MS))
        clock.advance(hours=rng.choice([0, 0.01, 0.1]))
    house.plugin.fault = None
    for _ in range(3):
        clock.advance(hours=2)
        house.markets._instances.clear()
        bars, _ = await house.every_page(start_ms=START_MS, end_ms=end_ms, limit=1000)
    assert bars == market
    tiles = await house.coverage(START_MS, end_ms)
    assert RangeSet(tile.range for tile in tiles) == RangeSet.of(START_MS, end_ms)
    by_minute = {ts: tile.verdict for tile in tiles for ts in range(*tile.range, MINUTE_MS)}
    has_bar = {bar.ts for bar in market}
    assert by_minute == {
        ts: Verdict.DATA if ts in has_bar else Verdict.NO_TRADES for ts in range(START_MS, end_ms, MINUTE_MS)
    }


async def test_hours_are_folded_from_minutes_where_those_are_known_and_asked_for_where_not(house: House) -> None:
    await house.bars("FULL", start_ms=START_MS, end_ms=START_MS + 12 * HOUR_MS)
    calls = len(house.plugin.calls)
    question = {"timeframe": "1h", "start_ms": START_MS, "end_ms": START_MS + 24 * HOUR_MS}
    answer = await house.bars("FULL", **question)
    assert answer.bars == fold(FULL, Timeframe.H1)[:24]
    assert answer.sources == ["aggregate", "provider"]
    assert [(call[1], call[2]) for call in house.plugin.calls[calls:]] == [
        (Timeframe.H1, TimeRange(START_MS + 12 * HOUR_MS, START_MS + 24 * HOUR_MS))
    ]
    assert (await house.bars("FULL", **question)).sources == ["cache"]


async def test_hours_of_thin_minutes_are_still_served_when_the_provider_is_gone(house: House) -> None:
    """The provider's own hours would be better; without it the folded minutes are, and are told as provisional."""
    day = {"start_ms": START_MS, "end_ms": START_MS + DAY_MS}
    await house.bars(**day, limit=2000)

    def down(_: int, __: TimeRange) -> Page | None:
        raise NetworkPluginError("connection refused")

    house.plugin.fault = down
    hours = await house.bars(timeframe="1h", **day)
    assert hours.bars == fold(between(MARKET, START_MS, START_MS + DAY_MS), Timeframe.H1)
    assert verdicts(hours) == {Verdict.UNCONFIRMED_EMPTY}
    tiles = await house.coverage(START_MS, START_MS + DAY_MS, "1h")
    assert {tile.verdict for tile in tiles} <= {Verdict.UNCONFIRMED_EMPTY, Verdict.DATA}


@pytest.mark.parametrize("timeframe", ["3m", "5m", "30m", "2h", "4h", "12h", "3d"])
async def test_a_timeframe_that_the_provider_lacks_is_folded_from_the_coarsest_it_has(
    house: House, timeframe: str
) -> None:
    wanted = Timeframe(timeframe)
    start, end = wanted.ceil(START_MS), START_MS + 3 * DAY_MS
    answer = await house.bars(timeframe=timeframe, start_ms=start, end_ms=end, limit=10_000)
    complete = [bar for bar in fold(MARKET, wanted) if start <= bar.ts and wanted.next(bar.ts) <= end]
    assert [bar for bar in answer.bars if wanted.next(bar.ts) <= end] == complete
    native = {call[1] for call in house.plugin.calls}
    assert len(native) == 1
    assert next(iter(native)).divides(wanted)


async def test_official_daily_bars_of_stocks_are_never_folded_from_minutes(store: BarStore, clock: ManualClock) -> None:
    capabilities = Capabilities(
        timeframes=(Timeframe.M1, Timeframe.D1), bars_per_call=1000, folds_below=Timeframe.D1, calls_per_second=1e4
    )
    house = make_house(store, clock, ScriptedPlugin({"A/B": FULL}, capabilities=capabilities))
    await house.every_page(start_ms=START_MS, end_ms=END_MS, limit=5000)
    calls = len(house.plugin.calls)
    await house.bars(timeframe="1d", start_ms=START_MS, end_ms=END_MS)
    assert {call[1] for call in house.plugin.calls[calls:]} == {Timeframe.D1}
    before = len(house.plugin.calls)
    assert (await house.bars(timeframe="1h", start_ms=START_MS, end_ms=END_MS)).bars == fold(FULL, Timeframe.H1)
    assert len(house.plugin.calls) == before


async def test_a_timeframe_that_cannot_be_had_is_refused_with_those_that_can(
    store: BarStore, clock: ManualClock
) -> None:
    capabilities = Capabilities(timeframes=(Timeframe.H1, Timeframe.D1), bars_per_call=1000)
    house = make_house(store, clock, ScriptedPlugin({"A/B": FULL}, capabilities=capabilities))
    with pytest.raises(UnsupportedTimeframeError, match="it has 1h, 2h, 4h"):
        await house.bars(timeframe="5m", start_ms=START_MS)


async def test_the_forming_bar_is_shown_only_on_demand_and_never_stored(house: House, clock: ManualClock) -> None:
    clock._now_ms = START_MS + 100 * MINUTE_MS + 30_000
    closed = await house.bars("FULL", limit=5)
    assert [bar.ts for bar in closed.bars] == [START_MS + minute * MINUTE_MS for minute in range(95, 100)]
    shown = await house.bars("FULL", limit=5, include_forming=True)
    assert shown.bars == FULL[96:101]
    assert shown.forming == [START_MS + 100 * MINUTE_MS]
    everything = TimeRange(START_MS, END_MS)
    assert max(bar.ts for bar in await house.store.read(1, Timeframe.M1, everything)) < START_MS + 100 * MINUTE_MS
    known = await house.store.knowledge(1, Timeframe.M1, everything)
    assert known.answered.span is not None
    assert known.answered.span.end_ms == START_MS + 100 * MINUTE_MS


async def test_a_minute_within_the_settling_time_is_not_known_yet(store: BarStore, clock: ManualClock) -> None:
    capabilities = Capabilities(timeframes=(Timeframe.M1,), bars_per_call=500, settle_ms=20_000, calls_per_second=1e4)
    house = make_house(store, clock, ScriptedPlugin({"A/B": FULL}, capabilities=capabilities))
    clock._now_ms = START_MS + 100 * MINUTE_MS + 10_000
    assert (await house.bars(limit=3)).bars == FULL[96:99]
    clock._now_ms += 10_000
    assert (await house.bars(limit=3)).bars == FULL[97:100]


async def test_the_venues_own_clock_decides_when_it_is_behind_ours(house: House, clock: ManualClock) -> None:
    clock._now_ms = START_MS + 100 * MINUTE_MS + 30_000

    def slow_clock(_: int, wanted: TimeRange) -> Page | None:
        page = house.plugin.honest_page("FULL", Timeframe.M1, wanted)
        return Page(page.bars, page.covered, venue_ms=START_MS + 98 * MINUTE_MS + 30_000)

    house.plugin.fault = slow_clock
    answer = await house.bars("FULL", limit=5)
    assert answer.bars[-1].ts == START_MS + 97 * MINUTE_MS
    known = await house.store.knowledge(1, Timeframe.M1, TimeRange(START_MS, END_MS))
    assert known.answered.span is not None
    assert known.answered.span.end_ms == START_MS + 98 * MINUTE_MS


async def test_what_lies_beyond_a_providers_memory_is_not_asked_for(store: BarStore, clock: ManualClock) -> None:
    capabilities = Capabilities(timeframes=(Timeframe.M1,), bars_per_call=720, history_bars=720, calls_per_second=1e4)
    house = make_house(store, clock, ScriptedPlugin({"A/B": FULL}, capabilities=capabilities))
    clock._now_ms = END_MS
    old = await house.bars(start_ms=START_MS, end_ms=START_MS + HOUR_MS)
    assert (old.bars, verdicts(old), house.plugin.calls) == ([], {Verdict.NEVER_FETCHED}, [])
    from_long_ago = await house.bars(start_ms=START_MS - 3000 * DAY_MS, limit=100)
    remembered = START_MS + 3 * DAY_MS - 719 * MINUTE_MS
    assert from_long_ago.bars == between(FULL, remembered, remembered + 100 * MINUTE_MS)
    assert from_long_ago.gaps == [Gap(TimeRange(START_MS - 3000 * DAY_MS, remembered), Verdict.NEVER_FETCHED)]
    assert len(house.plugin.calls) <= 2
    assert (await house.bars(limit=700)).bars == FULL[-701:-1]


async def test_nothing_is_asked_from_before_a_symbols_listing(store: BarStore, clock: ManualClock) -> None:
    listed = START_MS + DAY_MS
    later = between(FULL, listed, END_MS)
    house = make_house(store, clock, ScriptedPlugin({"A/B": later}, listed_ms=listed))
    answer = await house.bars(start_ms=START_MS, limit=100)
    assert answer.bars == later[:100]
    assert min(call[2].start_ms for call in house.plugin.calls) >= listed
    tiles = await house.coverage(START_MS, listed + HOUR_MS)
    assert (tiles[0].range, tiles[0].verdict) == (TimeRange(START_MS, listed), Verdict.NOT_LISTED)
    assert (await house.bars(end_ms=listed + 50 * MINUTE_MS, limit=500)).bars == later[:50]


async def test_closed_hours_are_not_asked_for_and_a_bar_in_them_is_data(store: BarStore, clock: ManualClock) -> None:
    """2022-12-13 is a Tuesday; the built-in New York weekdays are open from 14:30 to 21:00 UTC in winter."""
    open_ms = START_MS + 14 * HOUR_MS + 30 * MINUTE_MS
    trade = [*between(FULL, open_ms, open_ms + 390 * MINUTE_MS)]
    house = make_house(store, clock, ScriptedPlugin({"A/B": trade}, calendar="NY_WEEKDAYS"))
    night = await house.bars(start_ms=START_MS, end_ms=START_MS + 10 * HOUR_MS)
    assert (night.bars, night.gaps, house.plugin.calls) == ([], [], [])
    day = await house.bars(start_ms=START_MS, end_ms=START_MS + DAY_MS)
    assert (day.bars, day.gaps) == (trade, [])
    tiles = await house.coverage(START_MS, START_MS + DAY_MS)
    assert [(tile.verdict, tile.range.length_ms // MINUTE_MS) for tile in tiles] == [
        (Verdict.CLOSED_SESSION, 870),
        (Verdict.DATA, 390),
        (Verdict.CLOSED_SESSION, 180),
    ]
    series = await store.find_series((await house.markets.find(Series("test", "scripted", "A/B"))).series)
    assert series is not None
    stray = [FULL[0]]
    await store.record(series.id, Timeframe.M1, bars=stray, answered=RangeSet.of(START_MS, START_MS + MINUTE_MS))
    assert (await house.bars(start_ms=START_MS, end_ms=START_MS + HOUR_MS)).bars == stray
    assert (await house.coverage(START_MS, START_MS + HOUR_MS))[0].verdict is Verdict.DATA


async def test_the_last_bars_of_a_closed_market_lie_behind_the_weekend(store: BarStore, clock: ManualClock) -> None:
    friday = START_MS + 3 * DAY_MS + 14 * HOUR_MS + 30 * MINUTE_MS
    trade = random_minutes(9, 390, start_ms=friday, holes=0)
    house = make_house(store, clock, ScriptedPlugin({"A/B": trade}, calendar="NY_WEEKDAYS"))
    sunday = START_MS + 5 * DAY_MS + 12 * HOUR_MS
    answer = await house.bars(end_ms=sunday, limit=5)
    assert (answer.bars, answer.gaps) == (trade[-5:], [])


async def test_filling_is_a_marked_view_and_stores_nothing(house: House, clock: ManualClock) -> None:
    question = {"start_ms": START_MS, "end_ms": START_MS + 3 * HOUR_MS}
    plain = await house.bars(**question)
    clock.advance(hours=2)
    filled = await house.bars(**question, fill=Fill.PREVIOUS)
    real = {bar.ts: bar for bar in plain.bars}
    assert [bar for bar in filled.bars if bar.ts not in filled.filled] == plain.bars
    assert set(filled.filled).isdisjoint(real)
    close = None
    for bar in filled.bars:
        if bar.ts in real:
            close = bar.close
        else:
            assert (bar.open, bar.high, bar.low, bar.close, bar.volume) == (close, close, close, close, 0.0)
    first = plain.bars[0].ts
    assert len(filled.bars) == (START_MS + 3 * HOUR_MS - first) // MINUTE_MS
    assert (await house.bars(**question)).bars == plain.bars
    paged, _ = await house.every_page(**question, fill=Fill.PREVIOUS, limit=37)
    assert paged == filled.bars


async def test_what_is_not_known_is_never_filled(house: House) -> None:
    def down(_: int, wanted: TimeRange) -> Page | None:
        if wanted.start_ms >= START_MS + HOUR_MS:
            raise NetworkPluginError("connection refused")
        return None

    await house.bars("FULL", start_ms=START_MS, end_ms=START_MS + HOUR_MS)
    house.plugin.fault = down
    answer = await house.bars("FULL", start_ms=START_MS, end_ms=START_MS + 2 * HOUR_MS, fill=Fill.PREVIOUS)
    assert (answer.bars, answer.filled) == (FULL[:60], [])


async def test_unknown_names_are_refused_with_a_hint(house: House) -> None:
    with pytest.raises(UnknownSymbolError, match="Did you mean FULL"):
        await house.bars("FULLL", start_ms=START_MS)
    with pytest.raises(UnknownMarketError):
        await house.markets.find(Series("moon", "scripted", "A/B"))
    with pytest.raises(UnknownProviderError):
        await house.markets.find(Series("test", "moon", "A/B"))
    assert await house.store.find_series(Series("test", "scripted", "FULLL")) is None


async def test_coarser_coverage_speaks_of_buckets(house: House, clock: ManualClock) -> None:
    await house.bars("FULL", start_ms=START_MS, end_ms=START_MS + 90 * MINUTE_MS)
    tiles = await house.coverage(START_MS, START_MS + 3 * HOUR_MS, "1h", "FULL")
    assert [(tile.range.start_ms - START_MS, tile.verdict) for tile in tiles] == [
        (0, Verdict.DATA),
        (HOUR_MS, Verdict.NEVER_FETCHED),
    ]


async def test_more_than_one_question_may_fetch_comes_page_by_page(
    store: BarStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin_source, "QUESTION", ErrandLimits(calls=3, seconds=60))
    capabilities = Capabilities(timeframes=(Timeframe.M1,), bars_per_call=100, calls_per_second=1e4, vouches_empty=True)
    house = make_house(store, clock, ScriptedPlugin({"A/B": MARKET}, capabilities=capabilities))
    bars, pages = await house.every_page(start_ms=START_MS, end_ms=START_MS + DAY_MS, limit=5000)
    assert bars == between(MARKET, START_MS, START_MS + DAY_MS)
    assert pages == 5


async def test_what_was_not_reached_of_the_last_bars_is_the_oldest_part(
    store: BarStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin_source, "QUESTION", ErrandLimits(calls=3, seconds=60))
    capabilities = Capabilities(timeframes=(Timeframe.M1,), bars_per_call=100, calls_per_second=1e4)
    house = make_house(store, clock, ScriptedPlugin({"A/B": FULL}, capabilities=capabilities))
    end = START_MS + DAY_MS
    answer = await house.bars(end_ms=end, limit=1000)
    assert answer.bars == between(FULL, end - 300 * MINUTE_MS, end)
    assert [(gap.range, gap.verdict) for gap in answer.gaps] == [
        (TimeRange(end - 1000 * MINUTE_MS, end - 300 * MINUTE_MS), Verdict.NEVER_FETCHED)
    ]
    for _ in range(3):
        answer = await house.bars(end_ms=end, limit=1000)
    assert answer.bars == between(FULL, end - 1000 * MINUTE_MS, end)
    assert not answer.gaps
