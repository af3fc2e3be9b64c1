"""The budget of calls: never more than the rate allows, urgent callers first, and nobody past his patience."""

import asyncio
import random
import time

import pytest

from plugins.base import RateLimitPluginError
from services.rate_budget import RateBudget


@pytest.mark.parametrize("seed", range(20))
async def test_no_window_sees_more_calls_than_the_rate_and_the_burst_allow(seed: int) -> None:
    rng = random.Random(seed)
    rate, burst = rng.choice([20.0, 100.0, 400.0]), rng.choice([1.0, 5.0])
    budget = RateBudget(rate, burst=burst)
    taken: list[float] = []

    async def caller() -> None:
        await asyncio.sleep(rng.random() * 0.05)
        try:
            await budget.take(patience_s=rng.choice([0.0, 0.05, 1.0]), polite=rng.random() < 0.5)
        except RateLimitPluginError:
            return
        taken.append(time.monotonic())

    callers = [asyncio.create_task(caller()) for _ in range(30)]
    for task in rng.sample(callers, 5):
        asyncio.get_running_loop().call_later(rng.random() * 0.05, task.cancel)
    await asyncio.gather(*callers, return_exceptions=True)
    for first, start in enumerate(taken):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst + rate * (taken[last] - start) + 1.01


async def test_an_urgent_caller_goes_before_polite_ones_that_came_first() -> None:
    budget = RateBudget(20, burst=1)
    await budget.take(patience_s=0)
    order: list[str] = []

    async def caller(name: str, *, polite: bool) -> None:
        await budget.take(patience_s=10, polite=polite)
        order.append(name)

    tasks = [asyncio.create_task(caller(f"polite {n}", polite=True)) for n in range(2)]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(caller(f"urgent {n}", polite=False)) for n in range(3)]
    await asyncio.gather(*tasks)
    assert order == ["urgent 0", "urgent 1", "urgent 2", "polite 0", "polite 1"]


async def test_a_polite_caller_in_a_long_pause_costs_an_urgent_one_no_patience() -> None:
    budget = RateBudget(1000)
    budget.pause(60)
    waiting = asyncio.create_task(budget.take(patience_s=120, polite=True))
    await asyncio.sleep(0)
    began = time.monotonic()
    with pytest.raises(RateLimitPluginError) as raised:
        await budget.take(patience_s=0.05)
    assert time.monotonic() - began < 5
    assert raised.value.retry_after_s == pytest.approx(60, abs=5)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_a_caller_that_goes_away_leaves_its_turn_to_the_next() -> None:
    budget = RateBudget(50, burst=1)
    await budget.take(patience_s=0)
    gone = asyncio.create_task(budget.take(patience_s=10))
    await asyncio.sleep(0)
    kept = asyncio.create_task(budget.take(patience_s=10))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait_for(kept, 5)
    assert gone.cancelled()


async def test_waits_are_counted() -> None:
    budget = RateBudget(100, burst=1)
    for _ in range(3):
        await budget.take(patience_s=1)
    assert budget.waits == 2
    assert budget.waited_s >= 0.015
