"""Calls to a provider: retried where that can help, never faster than it allows."""

import asyncio
import time

import pytest

from domain.time_range import TimeRange
from domain.timeframe import HOUR_MS, Timeframe
from plugins.base import (
    AuthenticationPluginError,
    NetworkPluginError,
    Page,
    PluginError,
    RateLimitPluginError,
    SymbolNotFoundPluginError,
)
from services.feed import Feed, FeedLimits
from services.rate_budget import RateBudget
from tests.support.market import START_MS, random_minutes
from tests.support.scripted import ScriptedPlugin

HOUR = TimeRange(START_MS, START_MS + HOUR_MS)


def make_feed(*, faults: list[PluginError], attempts: int = 4) -> Feed:
    plugin = ScriptedPlugin({"A/B": random_minutes(1, 60, holes=0)})

    def fault(call: int, _: TimeRange) -> Page | None:
        if call <= len(faults):
            raise faults[call - 1]
        return None

    plugin.fault = fault
    return Feed(plugin, RateBudget(1000), FeedLimits(attempts=attempts, total_s=10, patience_s=0.5))


async def test_passing_faults_are_tried_again_until_they_pass() -> None:
    feed = make_feed(faults=[NetworkPluginError("reset"), RateLimitPluginError("slow", retry_after_s=0.05)])
    assert len((await feed.page("A/B", Timeframe.M1, HOUR)).bars) == 60
    assert feed.calls == 3


async def test_the_provider_is_waited_for_as_long_as_it_asked() -> None:
    feed = make_feed(faults=[RateLimitPluginError("slow", retry_after_s=0.3)])
    began = time.monotonic()
    await feed.page("A/B", Timeframe.M1, HOUR)
    assert time.monotonic() - began >= 0.29


async def test_a_long_wait_is_not_sat_out_but_told_to_the_caller_and_holds_for_all() -> None:
    feed = make_feed(faults=[RateLimitPluginError("slow", retry_after_s=60)])
    for _ in range(3):
        with pytest.raises(RateLimitPluginError) as raised:
            await feed.page("A/B", Timeframe.M1, HOUR)
        assert raised.value.retry_after_s == pytest.approx(60, abs=30)
    assert feed.calls == 1


@pytest.mark.parametrize(
    "error", [AuthenticationPluginError("bad key"), SymbolNotFoundPluginError("no"), PluginError("odd")]
)
async def test_what_cannot_pass_is_not_tried_again(error: PluginError) -> None:
    feed = make_feed(faults=[error] * 5)
    with pytest.raises(type(error)):
        await feed.page("A/B", Timeframe.M1, HOUR)
    assert feed.calls == 1


async def test_tries_are_bounded_and_the_last_fault_is_raised() -> None:
    feed = make_feed(faults=[NetworkPluginError(f"fault {n}") for n in range(9)], attempts=3)
    with pytest.raises(NetworkPluginError, match="fault 2"):
        await feed.page("A/B", Timeframe.M1, HOUR)
    assert feed.calls == 3


class SlowPlugin(ScriptedPlugin):
    """Answers when `let_go` is set, and notes how many calls are under way."""

    def __init__(self) -> None:
        super().__init__({"A/B": random_minutes(1, 60, holes=0)})
        self.let_go = asyncio.Event()
        self.under_way = 0

    async def fetch_page(self, symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Page:
        self.under_way += 1
        try:
            await self.let_go.wait()
            return await super().fetch_page(symbol, timeframe, wanted)
        finally:
            self.under_way -= 1


def ask(feed: Feed, *, calls: int, polite: bool = False) -> list[asyncio.Task[Page]]:
    return [asyncio.create_task(feed.page("A/B", Timeframe.M1, HOUR, polite=polite)) for _ in range(calls)]


async def turns() -> None:
    """Let every task come as far as it can."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_polite_calls_leave_places_to_urgent_ones() -> None:
    plugin = SlowPlugin()
    feed = Feed(plugin, RateBudget(1000), FeedLimits(concurrency=6))
    calls = ask(feed, calls=10, polite=True)
    await turns()
    assert plugin.under_way == 3
    calls += ask(feed, calls=10)
    await turns()
    assert plugin.under_way == 6
    plugin.let_go.set()
    assert [len(page.bars) for page in await asyncio.gather(*calls)] == [60] * 20


async def test_a_call_that_finds_no_place_is_refused_when_its_patience_ends() -> None:
    plugin = SlowPlugin()
    feed = Feed(plugin, RateBudget(1000), FeedLimits(concurrency=1, patience_s=0.05))
    first = ask(feed, calls=1)
    await turns()
    began = time.monotonic()
    with pytest.raises(RateLimitPluginError, match="under way"):
        await feed.page("A/B", Timeframe.M1, HOUR)
    assert time.monotonic() - began < 5
    assert (feed.calls, feed.retries, feed.failures) == (1, 0, 1)
    plugin.let_go.set()
    assert [len(page.bars) for page in await asyncio.gather(*first)] == [60]


async def test_a_call_that_rests_between_two_tries_holds_no_place() -> None:
    plugin = ScriptedPlugin({"A/B": random_minutes(1, 60, holes=0)})

    def fault(call: int, _: TimeRange) -> Page | None:
        if call == 1:
            raise NetworkPluginError("busy", retry_after_s=2)
        return None

    plugin.fault = fault
    feed = Feed(plugin, RateBudget(1000), FeedLimits(concurrency=1))
    (resting,) = ask(feed, calls=1)
    await turns()
    assert len((await feed.page("A/B", Timeframe.M1, HOUR)).bars) == 60
    assert not resting.done()
    assert len((await resting).bars) == 60


async def test_cancelled_calls_leave_their_places_to_others() -> None:
    plugin = SlowPlugin()
    feed = Feed(plugin, RateBudget(1000), FeedLimits(concurrency=2))
    calls = ask(feed, calls=5) + ask(feed, calls=5, polite=True)
    await turns()
    for call in calls:
        call.cancel()
    await asyncio.wait(calls, timeout=5)
    plugin.let_go.set()
    pages = await asyncio.gather(*ask(feed, calls=3), *ask(feed, calls=3, polite=True))
    assert (len(pages), plugin.under_way) == (6, 0)


async def test_a_polite_call_sits_out_a_pause_that_an_urgent_one_does_not() -> None:
    feed = make_feed(faults=[RateLimitPluginError("slow", retry_after_s=0.7)])
    with pytest.raises(RateLimitPluginError):
        await feed.page("A/B", Timeframe.M1, HOUR)
    assert len((await feed.page("A/B", Timeframe.M1, HOUR, polite=True)).bars) == 60


async def test_an_urgent_call_is_not_held_up_by_polite_ones_that_sit_out_a_pause() -> None:
    feed = make_feed(faults=[])
    feed.budget.pause(60)
    polite = ask(feed, calls=20, polite=True)
    await turns()
    began = time.monotonic()
    with pytest.raises(RateLimitPluginError) as raised:
        await feed.page("A/B", Timeframe.M1, HOUR)
    assert time.monotonic() - began < 5
    assert raised.value.retry_after_s == pytest.approx(60, abs=10)
    for call in polite:
        call.cancel()
    await asyncio.wait(polite, timeout=5)


async def test_a_recovery_is_told_once_and_what_happened_is_counted() -> None:
    feed = make_feed(faults=[NetworkPluginError("reset"), NetworkPluginError("reset")])
    told: list[bool] = []
    feed.recovered = lambda: told.append(True)
    for _ in range(3):
        await feed.page("A/B", Timeframe.M1, HOUR)
    assert told == [True]
    assert (feed.calls, feed.retries, feed.failures) == (5, 2, 0)


async def test_an_outage_that_outlasted_a_call_is_over_with_the_next_that_succeeds() -> None:
    feed = make_feed(faults=[NetworkPluginError("away")] * 2, attempts=2)
    told: list[bool] = []
    feed.recovered = lambda: told.append(True)
    with pytest.raises(NetworkPluginError):
        await feed.page("A/B", Timeframe.M1, HOUR)
    assert (told, feed.failures) == ([], 1)
    await feed.page("A/B", Timeframe.M1, HOUR)
    assert told == [True]


@pytest.mark.parametrize(
    "error", [SymbolNotFoundPluginError("no"), PluginError("odd"), RateLimitPluginError("slow", retry_after_s=0.01)]
)
async def test_what_is_no_outage_ends_in_no_recovery(error: PluginError) -> None:
    feed = make_feed(faults=[error], attempts=1)
    told: list[bool] = []
    feed.recovered = lambda: told.append(True)
    with pytest.raises(type(error)):
        await feed.page("A/B", Timeframe.M1, HOUR)
    await feed.page("A/B", Timeframe.M1, HOUR)
    assert told == []
