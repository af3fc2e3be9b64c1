"""Backfills on TimescaleDB: into old, compressed chunks, and beside the refreshes of a policy.

The aggregates are read straight from the continuous aggregates once a job is over: not by way of the store, which
folds from the minutes what is not refreshed yet.
"""

import random
from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio

from app_extensions.db_pool import DatabasePool
from app_extensions.migrations import Flavour
from domain.bar import Bar, fold
from domain.series import Series
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from plugins.base import Page
from services.backfills import JobState
from services.rollups import LEVELS
from tests.conftest import store_on
from tests.support.clock import ManualClock
from tests.support.house import House, make_house
from tests.support.market import START_MS, random_minutes
from tests.support.scripted import ScriptedPlugin

DAYS = 8
OLD = TimeRange(START_MS, START_MS + DAYS * DAY_MS)
MARKET = random_minutes(80, DAYS * 1440, holes=0.1)


class RefreshingPlugin(ScriptedPlugin):
    """While it is asked, a policy may refresh, by the same pool; it notes how often."""

    def __init__(self, pool: DatabasePool, commands: list[str], *, seed: int) -> None:
        super().__init__({"A/B": MARKET})
        self.refreshes = 0
        self._pool = pool
        self._commands = commands
        self._rng = random.Random(seed)

    async def fetch_page(self, symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Page:
        page = await super().fetch_page(symbol, timeframe, wanted)
        if self._rng.random() < 0.25:
            self.refreshes += 1
            async with self._pool.connection() as db:
                await db.execute(self._rng.choice(self._commands))
        return page


@pytest_asyncio.fixture
async def house(timescale_pool: DatabasePool, clock: ManualClock) -> AsyncIterator[House]:
    async for made in house_of(timescale_pool, clock, ScriptedPlugin({"A/B": MARKET})):
        yield made


async def house_of(pool: DatabasePool, clock: ManualClock, plugin: ScriptedPlugin) -> AsyncIterator[House]:
    made = make_house(store_on(pool, Flavour.TIMESCALEDB, clock), clock, plugin)
    async with made.workers.running():
        yield made
    await made.markets.close()


async def in_aggregate(house: House, timeframe: Timeframe) -> list[Bar]:
    """What stands in the continuous aggregate itself."""
    series = await house.store.find_series(Series("test", "scripted", "A/B"))
    assert series is not None
    query = f"SELECT ts, open, high, low, close, volume FROM bars_{timeframe.value} WHERE series_id = $1 ORDER BY ts"
    async with house.store.database.connection() as db:
        return [Bar(*row) for row in await db.fetch(query, series.id)]


async def check_all_right(house: House, market: list[Bar] = MARKET) -> None:
    series = await house.store.find_series(Series("test", "scripted", "A/B"))
    assert series is not None
    assert await house.store.read(series.id, Timeframe.M1, TimeRange(0, house.clock.now_ms())) == market
    for level in LEVELS:
        assert await in_aggregate(house, level.timeframe) == fold(market, level.timeframe), level.timeframe
    async with house.store.database.connection() as db:
        assert await db.fetchval("SELECT count(*) FROM bar_revisions") == 0


async def count(house: House, query: str) -> Any:
    async with house.store.database.connection() as db:
        return await db.fetchval(query)


async def test_a_backfill_into_old_compressed_chunks_fills_them_and_every_aggregate_is_right_at_once(
    house: House,
) -> None:
    for hour in range(0, DAYS * 24, 5):
        start_ms = OLD.start_ms + hour * HOUR_MS
        await house.bars(start_ms=start_ms, end_ms=start_ms + 2 * HOUR_MS, limit=200)
    assert await count(house, "SELECT count(*) FROM (SELECT compress_chunk(c) FROM show_chunks('bars_1m') AS c) AS t")
    compressed = (
        "SELECT count(*) FROM timescaledb_information.chunks WHERE hypertable_name = 'bars_1m' AND is_compressed"
    )
    chunks = await count(house, compressed)
    assert chunks >= 2
    job = await house.backfill(*OLD)
    assert job.state is JobState.DONE
    assert await count(house, compressed) == chunks
    assert await count(house, "SELECT count(*) FROM rollup_queue") == 0
    await check_all_right(house)


async def test_a_backfill_that_reaches_into_today_is_served_right_at_once(house: House, clock: ManualClock) -> None:
    clock._now_ms = OLD.end_ms - 7 * HOUR_MS - 20 * MINUTE_MS
    final_ms = clock.now_ms() - MINUTE_MS
    market = [bar for bar in MARKET if bar.ts < final_ms]
    job = await house.backfill(OLD.end_ms - 3 * DAY_MS, OLD.end_ms)
    assert job.state is JobState.DONE
    for timeframe in (Timeframe.M5, Timeframe.H1, Timeframe.D1):
        start_ms, end_ms = OLD.end_ms - 3 * DAY_MS, timeframe.floor(final_ms)
        calls = len(house.plugin.calls)
        answer = await house.bars(timeframe=timeframe.value, start_ms=start_ms, end_ms=end_ms, limit=5000)
        assert answer.bars == [bar for bar in fold(market, timeframe) if start_ms <= bar.ts < end_ms]
        # Of minutes nobody has confirmed yet that nothing traded in them, the provider's own bars may tell more.
        assert {wanted[1] for wanted in house.plugin.calls[calls:]} <= {Timeframe.H1, Timeframe.D1}


async def test_refreshes_of_a_policy_between_the_chunks_do_no_harm(
    timescale_pool: DatabasePool, clock: ManualClock
) -> None:
    """The windows of policies, the widest that there are, and policies' own jobs, run between any two steps of a job.

    The server of the tests has one session, so a refresh never runs at the same instant as a chunk's transaction or as
    the product's own refresh: what happens then is that one waits for the other, or fails and is done again later.
    """
    windows = [("NULL", "NULL"), ("NULL", f"to_timestamp({OLD.end_ms // 1000 - 86400 * 4})")]
    windows += [(f"to_timestamp({OLD.start_ms // 1000 + 86400})", f"to_timestamp({OLD.start_ms // 1000 + 86400 * 6})")]
    commands = [
        f"CALL refresh_continuous_aggregate('bars_{level.timeframe.value}', {start}::timestamptz, {end}::timestamptz)"
        for level in LEVELS
        for start, end in windows
    ]
    async with timescale_pool.connection() as db:
        for level in LEVELS:
            query = (
                f"SELECT add_continuous_aggregate_policy('bars_{level.timeframe.value}', start_offset => NULL, "
                "end_offset => interval '1 day', schedule_interval => interval '1 hour')"
            )
            commands += [f"CALL run_job({await db.fetchval(query)})"] * 2
    plugin = RefreshingPlugin(timescale_pool, commands, seed=81)
    async for house in house_of(timescale_pool, clock, plugin):
        await house.backfill(OLD.start_ms + 5 * DAY_MS, OLD.end_ms)
        await house.backfill(OLD.start_ms + DAY_MS, OLD.start_ms + 3 * DAY_MS)
        job = await house.backfill(*OLD)
        assert job.state is JobState.DONE
        assert plugin.refreshes >= 5
        known = await house.store.knowledge(1, Timeframe.M1, OLD)
        assert known.answered == RangeSet((OLD,))
        await check_all_right(house)
