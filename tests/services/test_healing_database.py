"""Watched series on a real database: kept complete without anybody asking, and healed when the provider is back."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest_asyncio

from app_extensions.supervisor import Supervisor
from app_extensions.wiring import running_services
from config import TestingConfig
from domain.clock import SystemClock
from domain.series import Series, Verdict, WatchedSeries
from domain.time_range import TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from plugins.base import NetworkPluginError, Page
from services.backfills import Job, JobState, Origin
from services.bar_store import BarStore
from services.healing import Healer
from tests.support.clock import ManualClock
from tests.support.house import House, make_house
from tests.support.market import START_MS, random_minutes
from tests.support.scripted import ScriptedPlugin

SERIES = Series("test", "scripted", "A/B")
LATER = Series("test", "scripted", "C/D")


@pytest_asyncio.fixture
async def house(store: BarStore, clock: ManualClock) -> AsyncIterator[House]:
    clock.advance(days=-29)
    plugin = ScriptedPlugin({"A/B": random_minutes(5, 1440), "C/D": random_minutes(6, 1440)})
    house = make_house(store, clock, plugin)
    async with house.workers.running():
        yield house
    await house.markets.close()


def healer_of(house: House, *watched: WatchedSeries) -> Healer:
    return Healer(house.backfills, watched, house.clock, least_pause_s=0.05)


async def healed(house: House, healer: Healer) -> list[Job]:
    """Look once, and wait for the jobs of it."""
    made = await healer.run()
    jobs = [job for job in await house.backfills.jobs() if job.origin is Origin.HEALING][:made]
    return [await house.finished(job.id) for job in jobs]


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await holds():  # noqa: ASYNC110 - what is waited for stands in the database
            await asyncio.sleep(0.05)


async def is_complete(house: House, start_ms: int, end_ms: int) -> bool:
    verdicts = {tile.verdict for tile in await house.coverage(start_ms, end_ms)}
    return verdicts <= {Verdict.DATA, Verdict.UNCONFIRMED_EMPTY}


async def test_holes_of_watched_series_are_filled_each_from_its_own_start(house: House) -> None:
    await house.bars(start_ms=START_MS + 3 * HOUR_MS, end_ms=START_MS + 5 * HOUR_MS, limit=500)
    healer = healer_of(house, WatchedSeries(SERIES, START_MS), WatchedSeries(LATER, START_MS + 20 * HOUR_MS))
    (job,) = await healed(house, healer)
    assert job.state is JobState.DONE
    assert await is_complete(house, START_MS, START_MS + DAY_MS - HOUR_MS)
    before = await house.coverage(START_MS, START_MS + 20 * HOUR_MS, symbol="C/D")
    assert [tile.verdict for tile in before] == [Verdict.NEVER_FETCHED]
    assert await healer.run() == 0
    assert [status.missing_minutes for status in healer.status()] == [0, 0]


async def test_new_minutes_are_healed_at_the_next_look(house: House, clock: ManualClock) -> None:
    healer = healer_of(house, WatchedSeries(SERIES, START_MS))
    await healed(house, healer)
    calls = len(house.plugin.calls)
    now_ms = clock.now_ms()
    clock.advance(minutes=10)
    assert len(await healed(house, healer)) == 1
    assert [wanted for _, _, wanted in house.plugin.calls[calls:]] == [TimeRange(now_ms - 60_000, now_ms + 9 * 60_000)]


async def test_an_unknown_symbol_stops_no_other(house: House) -> None:
    healer = healer_of(
        house, WatchedSeries(Series("test", "scripted", "A/C"), START_MS), WatchedSeries(SERIES, START_MS)
    )
    (job,) = await healed(house, healer)
    assert (job.state, job.request.symbols) == (JobState.DONE, ("A/B",))
    assert "lists no symbol 'A/C'" in str(healer.status()[0].problem)
    assert healer.status()[1].problem is None


async def test_holes_are_healed_without_anybody_asking_and_again_when_the_provider_is_back(
    house: House, clock: ManualClock
) -> None:
    """The next look is an hour away: only the start and the recovery can bring it about."""
    await house.bars(start_ms=START_MS + 2 * HOUR_MS, end_ms=START_MS + 4 * HOUR_MS, limit=500)
    await house.bars(start_ms=START_MS + 9 * HOUR_MS, end_ms=START_MS + 11 * HOUR_MS, limit=500)
    end_ms = clock.now_ms() - 2 * MINUTE_MS
    healer = healer_of(house, WatchedSeries(SERIES, START_MS))
    house.markets.on_recovery = healer.wake
    away = True

    def fault(_: int, wanted: TimeRange) -> Page | None:
        if away:
            raise NetworkPluginError("unreachable")
        return None

    async def it_failed() -> bool:
        jobs = await house.backfills.jobs()
        return [job.state for job in jobs] == [JobState.FAILED]

    house.plugin.fault = fault
    supervisor = Supervisor()
    supervisor.every(3600, "heal", healer.run, woken=healer.woken)
    try:
        await until(it_failed)
        assert not await is_complete(house, START_MS, end_ms)
        away = False
        await house.bars(symbol="C/D", start_ms=START_MS, end_ms=START_MS + HOUR_MS, limit=60)
        await until(lambda: is_complete(house, START_MS, end_ms))
    finally:
        await supervisor.close()
    stored = await house.bars(start_ms=START_MS, end_ms=end_ms, limit=1440)
    assert stored.bars == [bar for bar in house.plugin.market["A/B"] if bar.ts < end_ms]


async def test_the_server_heals_what_is_watched_from_its_start_on(database_url: str, tmp_path: Path) -> None:
    end_ms = Timeframe.H1.floor(SystemClock().now_ms())
    series = Series("demo", "sim", "KELP/USD")
    config = TestingConfig(
        database_url=database_url, data_dir=tmp_path, watch=(WatchedSeries(series, end_ms - 2 * HOUR_MS),)
    )
    async with running_services(config) as services:

        async def done() -> bool:
            wanted = TimeRange(end_ms - 2 * HOUR_MS, end_ms)
            tiles = await services.ohlcv.coverage(series, Timeframe.M1, wanted)
            return Verdict.NEVER_FETCHED not in {tile.verdict for tile in tiles}

        await until(done)
        jobs = await services.backfills.jobs()
    assert {job.origin for job in jobs} == {Origin.HEALING}
