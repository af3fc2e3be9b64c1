"""The budget of calls: never more than the rate allows, urgent callers first, and nobody past his patience."""

import asyncio
import random
from itertools import product
from typing import NamedTuple

import pytest

from plugins.base import RateLimitPluginError
from services.rate_budget import RateBudget
from tests.support.instant import at_once, now_s

#: Waits are exact but for rounding.
ROUNDING_S = 1e-6


def make_budget(rate: float, *, burst: float | None = None) -> RateBudget:
    return RateBudget(rate, burst=burst, monotonic=asyncio.get_running_loop().time)


async def spent_budget(rate: float) -> RateBudget:
    """One whose next token comes a whole period later."""
    budget = make_budget(rate, burst=1)
    await budget.take(patience_s=0)
    return budget


async def gone(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def take(budget: RateBudget, *, patience_s: float, polite: bool = False) -> asyncio.Task[None]:
    return asyncio.create_task(budget.take(patience_s=patience_s, polite=polite))


class Taken(NamedTuple):
    at_s: float
    came_s: float
    polite: bool


async def a_crowd(seed: int) -> tuple[float, float, list[Taken]]:
    """Callers of every kind, some of whom go away, and pauses: the rate, the burst, and who took when."""
    rng, loop = random.Random(seed), asyncio.get_running_loop()
    rate, burst = rng.choice([0.5, 1.0, 7.0, 300.0]), rng.choice([1.0, 2.5, 10.0])
    budget = make_budget(rate, burst=burst)
    taken: list[Taken] = []

    async def caller() -> None:
        await asyncio.sleep(rng.random() * 20 / rate)
        patience_s, polite, came_s = rng.choice([0.0, 3.0, 40.0]) / rate, rng.random() < 0.5, now_s()
        try:
            await budget.take(patience_s=patience_s, polite=polite)
            taken.append(Taken(now_s(), came_s, polite))
        finally:
            assert now_s() <= came_s + patience_s + ROUNDING_S

    callers = [asyncio.create_task(caller()) for _ in range(60)]
    for task in rng.sample(callers, 10):
        loop.call_later(rng.random() * 20 / rate, task.cancel)
    for _ in range(rng.choice([0, 2])):
        loop.call_later(rng.random() * 20 / rate, budget.pause, rng.random() * 5 / rate)
    for outcome in await asyncio.gather(*callers, return_exceptions=True):
        assert outcome is None or isinstance(outcome, asyncio.CancelledError | RateLimitPluginError)
    return rate, burst, taken


@pytest.mark.parametrize("seed", range(200))
def test_no_window_sees_too_many_calls_and_nobody_overstays_or_is_overtaken(seed: int) -> None:
    rate, burst, taken = at_once(a_crowd(seed))
    assert taken
    for (first, sooner), (last, later) in product(enumerate(taken), repeat=2):
        if first <= last:
            assert last - first + 1 <= burst + rate * (later.at_s - sooner.at_s) + ROUNDING_S
        if sooner.at_s + ROUNDING_S < later.at_s:
            if sooner.polite == later.polite:
                assert sooner.came_s <= later.came_s, "overtaken by one of its kind"
            elif sooner.polite:
                assert sooner.at_s <= later.came_s + ROUNDING_S, "an urgent one waited for this token"


def test_a_burst_is_allowed_and_then_the_rate() -> None:
    async def run() -> None:
        budget = make_budget(5)
        for _ in range(5):
            await budget.take(patience_s=1)
        assert now_s() == 0
        for _ in range(10):
            await budget.take(patience_s=1)
        assert now_s() == pytest.approx(2)

    at_once(run())


def test_a_wait_beyond_patience_is_refused_at_once_and_told() -> None:
    async def run() -> None:
        budget = await spent_budget(0.1)
        with pytest.raises(RateLimitPluginError) as raised:
            await budget.take(patience_s=1)
        assert raised.value.retry_after_s == pytest.approx(10)
        assert now_s() == 0

    at_once(run())


def test_a_longer_pause_stands() -> None:
    async def run() -> None:
        budget = make_budget(1)
        budget.pause(30)
        budget.pause(5)
        assert budget.paused_s == pytest.approx(30)
        await budget.take(patience_s=31)
        assert now_s() == pytest.approx(30)
        assert budget.paused_s == 0

    at_once(run())


def test_an_urgent_caller_goes_before_polite_ones_that_came_first() -> None:
    async def run() -> None:
        budget = await spent_budget(0.1)
        order: list[str] = []

        async def caller(name: str, *, polite: bool) -> None:
            await budget.take(patience_s=100, polite=polite)
            order.append(name)

        polite = [asyncio.create_task(caller(f"polite {n}", polite=True)) for n in range(2)]
        await asyncio.sleep(1)
        urgent = [asyncio.create_task(caller(f"urgent {n}", polite=False)) for n in range(3)]
        await asyncio.gather(*polite, *urgent)
        assert order == ["urgent 0", "urgent 1", "urgent 2", "polite 0", "polite 1"]
        assert now_s() == pytest.approx(50)

    at_once(run())


def test_a_polite_caller_in_a_long_pause_costs_an_urgent_one_nothing() -> None:
    async def run() -> None:
        budget = make_budget(1)
        budget.pause(60)
        waiting = take(budget, patience_s=120, polite=True)
        await asyncio.sleep(0)
        with pytest.raises(RateLimitPluginError) as raised:
            await budget.take(patience_s=5)
        assert (now_s(), raised.value.retry_after_s) == (0, pytest.approx(60))
        await asyncio.sleep(57)
        await budget.take(patience_s=5)
        assert now_s() == pytest.approx(60)
        await waiting
        assert now_s() == pytest.approx(61)

    at_once(run())


@pytest.mark.parametrize("polite", [False, True])
def test_who_waited_behind_a_caller_that_goes_away_moves_up(polite: bool) -> None:  # noqa: FBT001
    async def run() -> None:
        budget = await spent_budget(0.1)
        first, second = take(budget, patience_s=100), take(budget, patience_s=100)
        third = take(budget, patience_s=100, polite=polite)
        await asyncio.sleep(5)
        await gone(first)
        await second
        assert now_s() == pytest.approx(10)
        await third
        assert now_s() == pytest.approx(20)

    at_once(run())


def test_who_waited_behind_a_caller_that_is_refused_moves_up() -> None:
    async def run() -> None:
        budget = await spent_budget(0.1)
        first, second = take(budget, patience_s=15), take(budget, patience_s=100, polite=True)
        await asyncio.sleep(5)
        budget.pause(15)
        with pytest.raises(RateLimitPluginError):
            await first
        assert now_s() == pytest.approx(10)
        await second
        assert now_s() == pytest.approx(20)

    at_once(run())


def test_waits_are_counted_also_those_that_were_given_up() -> None:
    async def run() -> None:
        budget = await spent_budget(0.5)
        for _ in range(2):
            await budget.take(patience_s=5)
        waiting = take(budget, patience_s=5)
        await asyncio.sleep(1)
        await gone(waiting)
        with pytest.raises(RateLimitPluginError):
            await budget.take(patience_s=0.5)
        assert (budget.waits, budget.waited_s) == (3, pytest.approx(5))

    at_once(run())
