"""Whatever becomes of the cache, the answers stay the same."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import redis.asyncio as redis_asyncio

from domain.bar import Bar, fold, merge
from domain.packed import runs_of
from domain.series import Series
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from services.bar_store import BarStore
from services.redis_cache import RedisCache
from tests.services.redis_server import RedisServer, start_redis
from tests.support.clock import ManualClock
from tests.support.house import House, make_house
from tests.support.market import START_MS, random_minutes
from tests.support.scripted import ScriptedPlugin

FULL = random_minutes(21, 1440, holes=0)
QUESTIONS = (
    {"start_ms": START_MS, "end_ms": START_MS + 5 * HOUR_MS},
    {"start_ms": START_MS + HOUR_MS, "end_ms": START_MS + 20 * HOUR_MS, "limit": 10_000},
    {"timeframe": "1h", "start_ms": START_MS, "end_ms": START_MS + DAY_MS},
    {"end_ms": START_MS + 3 * HOUR_MS, "limit": 7},
)
TROUBLES: dict[str, Callable[[RedisServer], object]] = {
    "none": lambda server: server.pid,
    "absent": lambda server: server.kill(),
    "frozen": lambda server: server.freeze(),
    "restarted": lambda server: server.restart(),
}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    server = start_redis(tmp_path)
    yield server
    server.stop()


@pytest.fixture
async def house(store: BarStore, clock: ManualClock, server: RedisServer) -> AsyncIterator[House]:
    client = redis_asyncio.Redis.from_url(server.url, socket_timeout=0.25, socket_connect_timeout=0.25)
    cache = RedisCache(client, ttl_s=600)
    yield make_house(store, clock, ScriptedPlugin({"A/B": FULL}), cache=cache)
    await client.aclose()


async def answers(house: House) -> list[list[Bar]]:
    return [(await house.bars(**question)).bars for question in QUESTIONS]


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_a_redis_in_trouble_changes_no_answer(trouble: str, house: House, server: RedisServer) -> None:
    cold = await answers(house)
    assert cold == [FULL[:300], FULL[60:1200], fold(FULL, Timeframe.H1), FULL[173:180]]
    assert await answers(house) == cold
    TROUBLES[trouble](server)
    assert await answers(house) == cold
    assert await answers(house) == cold


async def test_a_flushed_redis_changes_no_answer_and_is_filled_again(house: House, server: RedisServer) -> None:
    cold = await answers(house)
    client = redis_asyncio.Redis.from_url(server.url)
    await client.flushall()
    await client.aclose()
    assert await answers(house) == cold
    assert (await house.bars(**QUESTIONS[0])).sources == ["cache"]


async def test_a_corrected_bar_makes_what_is_cached_unreachable(house: House) -> None:
    await answers(house)
    await answers(house)
    stored = await house.store.ensure_series(Series("test", "scripted", "A/B"))
    corrected = [Bar(START_MS + 10 * MINUTE_MS, 1.0, 9_999.0, 0.5, 2.0, 3.0)]
    await house.store.record(stored.id, Timeframe.M1, bars=corrected, answered=runs_of(corrected, Timeframe.M1))
    truth = merge(FULL, corrected)
    assert (await house.bars(**QUESTIONS[0])).bars == truth[:300]
    assert (await house.bars(timeframe="5m", start_ms=START_MS, end_ms=START_MS + 5 * HOUR_MS)).bars == fold(
        truth[:300], Timeframe.M5
    )
