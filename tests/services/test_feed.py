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


class Ticking:
    """Monotonic time that moves when somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        real_sleep = asyncio.sleep

        async def sleep(seconds: float) -> None:
            self.now += seconds
            await real_sleep(0)

        monkeypatch.setattr("services.rate_budget.asyncio.sleep", sleep)

    def __call__(self) -> float:
        return self.now


async def test_the_budget_allows_a_burst_and_then_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Ticking(monkeypatch)
    budget = RateBudget(5, monotonic=clock)
    for _ in range(5):
        await budget.take(patience_s=1)
    assert clock.now == 0
    for _ in range(10):
        await budget.take(patience_s=1)
    assert clock.now == pytest.approx(2.0)


async def test_the_budget_refuses_a_wait_beyond_patience_and_says_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Ticking(monkeypatch)
    budget = RateBudget(0.1, monotonic=clock)
    await budget.take(patience_s=1)
    with pytest.raises(RateLimitPluginError) as raised:
        await budget.take(patience_s=1)
    assert raised.value.retry_after_s == pytest.approx(10)
    budget.pause(30)
    budget.pause(5)
    assert budget.paused_s == pytest.approx(30)


async def test_polite_calls_leave_places_to_urgent_ones() -> None:
    feed = make_feed(faults=[])
    held, under_way = asyncio.Event(), 0
    honest = feed.plugin.fetch_page

    async def slow(symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Page:
        nonlocal under_way
        under_way += 1
        await held.wait()
        return await honest(symbol, timeframe, wanted)

    feed.plugin.fetch_page = slow  # type: ignore[method-assign]
    calls = [asyncio.create_task(feed.page("A/B", Timeframe.M1, HOUR, polite=True)) for _ in range(10)]
    await asyncio.sleep(0.05)
    assert under_way == 4
    calls += [asyncio.create_task(feed.page("A/B", Timeframe.M1, HOUR)) for _ in range(10)]
    await asyncio.sleep(0.05)
    assert under_way == 8
    held.set()
    await asyncio.gather(*calls)
    assert under_way == 20


async def test_a_polite_call_sits_out_a_pause_that_an_urgent_one_does_not() -> None:
    feed = make_feed(faults=[RateLimitPluginError("slow", retry_after_s=0.7)])
    with pytest.raises(RateLimitPluginError):
        await feed.page("A/B", Timeframe.M1, HOUR)
    assert len((await feed.page("A/B", Timeframe.M1, HOUR, polite=True)).bars) == 60


async def test_a_recovery_is_told_once_and_what_happened_is_counted() -> None:
    feed = make_feed(faults=[NetworkPluginError("reset"), NetworkPluginError("reset")])
    told: list[bool] = []
    feed.recovered = lambda: told.append(True)
    for _ in range(3):
        await feed.page("A/B", Timeframe.M1, HOUR)
    assert told == [True]
    assert (feed.calls, feed.retries, feed.failures) == (5, 2, 2)
