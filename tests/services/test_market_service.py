"""Instances of plugins: made once, shared, closed when idle."""

import asyncio

import pytest

from domain.series import Series
from plugins.base import NetworkPluginError
from services.bar_store import BarStore
from tests.support.clock import ManualClock
from tests.support.house import House, make_house
from tests.support.market import random_minutes
from tests.support.scripted import ScriptedPlugin


class Door(ScriptedPlugin):
    """Counts how often it is opened and closed; opening takes a moment."""

    def __init__(self) -> None:
        super().__init__({"A/B": random_minutes(1, 60)})
        self.opened = self.closed = 0
        self.open_fault: Exception | None = None

    async def open(self) -> None:
        await asyncio.sleep(0.01)
        self.opened += 1
        if self.open_fault is not None:
            raise self.open_fault

    async def close(self) -> None:
        self.closed += 1


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.fixture
def house(store: BarStore, clock: ManualClock, door: Door) -> House:
    return make_house(store, clock, door)


async def test_many_first_uses_at_once_open_one_instance(house: House, door: Door) -> None:
    feeds = await asyncio.gather(*(house.markets.feed("test", "scripted") for _ in range(20)))
    assert len(set(feeds)) == 1
    assert door.opened == 1


async def test_an_idle_instance_is_closed_and_made_anew_on_use(house: House, door: Door, clock: ManualClock) -> None:
    first = await house.markets.feed("test", "scripted")
    await house.markets.close_idle()
    assert door.closed == 0
    clock.advance(minutes=2)
    await house.markets.close_idle()
    assert door.closed == 1
    assert await house.markets.feed("test", "scripted") is not first
    await house.markets.close()
    assert door.closed == 2


async def test_it_tells_when_providers_are_opened_and_closed(store: BarStore, clock: ManualClock):
    house = make_house(store, clock, ScriptedPlugin({"A/B": []}))
    told: list[int] = []
    house.markets.on_change = lambda: told.append(len(house.markets.open_providers()))
    await house.markets.symbols("test", "scripted")
    await house.markets.symbols("test", "scripted")
    await house.markets.close_idle()
    clock.advance(days=1)
    await house.markets.close_idle()
    assert told == [1, 0]


async def test_a_provider_keeps_its_pause_when_its_instance_is_made_anew(house: House, clock: ManualClock) -> None:
    first = await house.markets.feed("test", "scripted")
    first.budget.pause(60)
    clock.advance(minutes=2)
    await house.markets.close_idle()
    second = await house.markets.feed("test", "scripted")
    assert second is not first
    assert second.budget.paused_s > 50


async def test_a_failed_opening_is_cleaned_up_and_tried_again(house: House, door: Door) -> None:
    door.open_fault = NetworkPluginError("connection refused")
    with pytest.raises(NetworkPluginError):
        await house.markets.feed("test", "scripted")
    assert door.closed == 1
    door.open_fault = None
    await house.markets.feed("test", "scripted")
    assert door.opened == 2


async def test_a_caller_that_goes_away_does_not_spoil_the_opening_for_others(house: House, door: Door) -> None:
    impatient = asyncio.create_task(house.markets.feed("test", "scripted"))
    await asyncio.sleep(0)
    patient = asyncio.create_task(house.markets.feed("test", "scripted"))
    await asyncio.sleep(0)
    impatient.cancel()
    assert (await patient).plugin is door
    assert door.opened == 1


async def test_symbols_are_listed_once_in_a_while_and_an_old_list_outlives_a_failure(
    house: House, door: Door, clock: ManualClock
) -> None:
    await asyncio.gather(*(house.markets.symbols("test", "scripted") for _ in range(5)))
    assert door.symbol_calls == 1
    clock.advance(minutes=11)
    door.symbols_fault = NetworkPluginError("connection refused")
    assert set(await house.markets.symbols("test", "scripted")) == {"A/B"}
    assert set(await house.markets.symbols("test", "scripted")) == {"A/B"}
    assert door.symbol_calls == 2


async def test_a_provider_that_cannot_list_is_left_alone_for_a_moment(
    house: House, door: Door, clock: ManualClock
) -> None:
    door.symbols_fault = NetworkPluginError("connection refused")
    for _ in range(3):
        with pytest.raises(NetworkPluginError):
            await house.markets.find(Series("test", "scripted", "A/B"))
    assert door.symbol_calls == 1
    clock.advance(minutes=1)
    door.symbols_fault = None
    assert (await house.markets.find(Series("test", "scripted", "A/B"))).feed is not None


async def test_an_adopted_series_needs_no_word_of_its_provider(house: House, door: Door) -> None:
    door.symbols_fault = NetworkPluginError("connection refused")
    stored = await house.markets.adopt(Series("test", "scripted", "FROM/FILE"))
    assert (await house.markets.find(Series("test", "scripted", "FROM/FILE"))).stored == stored
    assert door.symbol_calls == 0


async def test_providers_are_listed_with_what_they_can_do(house: House, door: Door) -> None:
    listed = await house.markets.providers("test")
    assert [(one.info.id, one.capabilities) for one in listed] == [("scripted", door.capabilities)]


async def test_what_was_asked_of_a_provider_still_counts_when_its_instance_is_closed(
    house: House, clock: ManualClock
) -> None:
    seen = []
    for _ in range(3):
        await house.markets.symbols("test", "scripted")
        seen.append(house.markets.upstream_use()["test", "scripted"].calls)
        clock.advance(minutes=20)
        await house.markets.close_idle()
        seen.append(house.markets.upstream_use()["test", "scripted"].calls)
    assert seen == [1, 1, 2, 2, 3, 3]
    await house.markets.symbols("test", "scripted")
    await house.markets.close()
    assert house.markets.upstream_use()["test", "scripted"].calls == 4


async def test_what_waited_for_a_budget_still_counts_when_its_instance_is_closed(
    house: House, clock: ManualClock
) -> None:
    feed = await house.markets.feed("test", "scripted")
    feed.budget.pause(0.02)
    await house.markets.symbols("test", "scripted")
    clock.advance(minutes=20)
    await house.markets.close_idle()
    waits, waited_s = house.markets.upstream_waits()["scripted"]
    assert waits == 1
    assert waited_s > 0.015
