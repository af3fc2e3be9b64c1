"""Backfill jobs: what they fetch, what they leave alone, and how they end."""

from collections.abc import AsyncIterator

import pytest_asyncio

from domain.series import Series
from domain.time_range import TimeRange
from domain.timeframe import DAY_MS, Timeframe
from services.backfills import JobState
from services.bar_store import BarStore
from tests.support.clock import ManualClock
from tests.support.house import House, make_house
from tests.support.market import START_MS, random_minutes
from tests.support.scripted import ScriptedPlugin

DAY = TimeRange(START_MS, START_MS + DAY_MS)


@pytest_asyncio.fixture
async def house(any_store: BarStore, clock: ManualClock) -> AsyncIterator[House]:
    plugin = ScriptedPlugin({"A/B": random_minutes(5, 1440), "C/D": random_minutes(6, 1440)})
    yield (made := make_house(any_store, clock, plugin))
    await made.workers.close()
    await made.markets.close()


async def stored(house: House, symbol: str = "A/B", timeframe: Timeframe = Timeframe.M1) -> list[object]:
    found = await house.store.find_series(Series("test", "scripted", symbol))
    assert found is not None
    return list(await house.store.read(found.id, timeframe, TimeRange(0, START_MS + 400 * DAY_MS)))


async def test_a_job_fetches_each_missing_minute_once_and_is_done(house: House) -> None:
    house.workers.open()
    job = await house.backfill(*DAY)
    assert job.state is JobState.DONE
    assert await stored(house) == house.plugin.market["A/B"]
    assert job.progress.chunks_done == job.progress.chunks_total == 3
    assert job.progress.bars_written == len(house.plugin.market["A/B"])
    assert len(house.plugin.calls) == 3
