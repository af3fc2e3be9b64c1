"""What every cache holds to: the one in memory, and the one in a real Valkey."""

import asyncio
import os
import random
import sys
from collections.abc import AsyncIterator, Iterator
from itertools import count
from uuid import uuid4

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app_extensions.redis_manager import RedisManager
from domain.bar import Bar, fold, within
from domain.packed import PackedBars, Rows, texts_of
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from services.cache_codec import MinuteKey
from services.cache_manager import Cache, CachedBars, CacheStats, MemoryCache, NoCache
from services.day_block import DayBlock, Hour
from services.redis_cache import RedisCache
from tests.services.redis_server import start_redis, why_unavailable
from tests.support.clock import ManualClock
from tests.support.market import START_MS, random_bar, random_minutes

DAY = RangeSet.of(START_MS, START_MS + DAY_MS)
NOTHING = CachedBars([], RangeSet())
_fresh_revision = count(1000)


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The Redis that is named, or a Valkey of our own."""
    named = os.environ.get("CANDLERY_TEST_REDIS_URL")
    if named:
        yield named
        return
    missing = why_unavailable()
    if missing:
        pytest.skip(missing)
    server = start_redis(tmp_path_factory.mktemp("valkey"))
    yield server.url
    server.stop()


@pytest.fixture(params=["memory", "redis"])
async def cache(request: pytest.FixtureRequest, clock: ManualClock) -> AsyncIterator[Cache]:
    cache: Cache
    manager = None
    if request.param == "memory":
        cache = MemoryCache(max_bytes=64 << 20, ttl_s=3600, clock=clock)
    else:
        # Time-outs of a slow test machine, so that a hiccup is not taken for a miss.
        manager = RedisManager(request.getfixturevalue("redis_url"), timeout_s=10)
        await manager.open()
        namespace = f"candlery-test-{uuid4().hex}"
        cache = RedisCache(manager.client, ttl_s=60, namespace=namespace, timeout_s=20, budget_s=60)
    await cache.open()
    yield cache
    await cache.close()
    if manager:
        await manager.close()


def minutes(start: int, end: int) -> RangeSet:
    return RangeSet.of(START_MS + start * MINUTE_MS, START_MS + end * MINUTE_MS)


async def test_an_empty_cache_knows_nothing(cache: Cache) -> None:
    assert await cache.get_1m_bars(1, 1, DAY) == NOTHING
    assert await cache.get_resampled(1, 1, Timeframe.H1, TimeRange(START_MS, START_MS + DAY_MS)) is None


async def test_it_answers_a_ping(cache: Cache) -> None:
    await cache.ping()


async def test_it_gives_back_minutes_over_many_days(cache: Cache) -> None:
    days = 20
    bars = random_minutes(1, days * 1440)
    known = RangeSet.of(START_MS, START_MS + days * DAY_MS)
    await cache.store_1m_bars(1, 1, bars, known)
    assert await cache.get_1m_bars(1, 1, known) == CachedBars(bars, known)


async def test_it_gives_no_more_than_is_wanted(cache: Cache) -> None:
    bars = random_minutes(2, 1440, holes=0)
    await cache.store_1m_bars(1, 1, bars, DAY)
    wanted = minutes(10, 20) | minutes(700, 701)
    assert await cache.get_1m_bars(1, 1, wanted) == CachedBars(within(bars, wanted), wanted)


async def test_a_known_minute_without_a_bar_is_known_to_have_none(cache: Cache) -> None:
    await cache.store_1m_bars(1, 1, [], minutes(5, 8))
    assert await cache.get_1m_bars(1, 1, DAY) == CachedBars([], minutes(5, 8))


async def test_stores_add_up(cache: Cache) -> None:
    bars = random_minutes(3, 300, holes=0)
    for part in (minutes(100, 200), minutes(0, 50), minutes(200, 300)):
        await cache.store_1m_bars(1, 1, within(bars, part), part)
    known = minutes(0, 50) | minutes(100, 300)
    assert await cache.get_1m_bars(1, 1, DAY) == CachedBars(within(bars, known), known)


async def test_bars_outside_of_what_is_said_to_be_known_are_left_out(cache: Cache) -> None:
    bars = random_minutes(4, 100, holes=0)
    await cache.store_1m_bars(1, 1, bars, minutes(20, 30))
    assert await cache.get_1m_bars(1, 1, DAY) == CachedBars(bars[20:30], minutes(20, 30))


async def test_parts_of_minutes_are_never_known(cache: Cache) -> None:
    bars = random_minutes(5, 3, holes=0)
    await cache.store_1m_bars(1, 1, bars, RangeSet.of(START_MS + 1, START_MS + 2 * MINUTE_MS + 1))
    assert await cache.get_1m_bars(1, 1, DAY) == CachedBars(bars[1:2], minutes(1, 2))
    assert await cache.get_1m_bars(1, 1, RangeSet.of(START_MS + MINUTE_MS + 1, START_MS + DAY_MS)) == NOTHING


async def test_series_and_revisions_are_kept_apart(cache: Cache) -> None:
    bars = random_minutes(6, 60, holes=0)
    hour = TimeRange(START_MS, START_MS + HOUR_MS)
    await cache.store_1m_bars(1, 1, bars, minutes(0, 60))
    await cache.set_resampled(1, 1, Timeframe.H1, hour, fold(bars, Timeframe.H1))
    for series_id, revision in ((1, 2), (2, 1), (11, 1), (1, 11)):
        assert await cache.get_1m_bars(series_id, revision, DAY) == NOTHING
        assert await cache.get_resampled(series_id, revision, Timeframe.H1, hour) is None


async def test_resampled_bars_come_back_for_exactly_their_range(cache: Cache) -> None:
    range_ = TimeRange(START_MS, START_MS + DAY_MS)
    bars = fold(random_minutes(7, 1440), Timeframe.H1)
    await cache.set_resampled(1, 1, Timeframe.H1, range_, bars)
    assert await cache.get_resampled(1, 1, Timeframe.H1, range_) == bars
    assert await cache.get_resampled(1, 1, Timeframe.H2, range_) is None
    assert await cache.get_resampled(1, 1, Timeframe.H1, TimeRange(START_MS, START_MS + HOUR_MS)) is None


async def test_minutes_and_months_are_not_mixed_up(cache: Cache) -> None:
    range_ = TimeRange(1_669_852_800_000, 1_672_531_200_000)  # December 2022
    month = [random_bar(random.Random(8), range_.start_ms)]
    await cache.set_resampled(1, 1, Timeframe.MN1, range_, month)
    assert await cache.get_resampled(1, 1, Timeframe.M1, range_) is None
    assert await cache.get_resampled(1, 1, Timeframe.MN1, range_) == month


async def test_an_answer_without_bars_is_an_answer(cache: Cache) -> None:
    range_ = TimeRange(START_MS, START_MS + DAY_MS)
    await cache.set_resampled(1, 1, Timeframe.D1, range_, [])
    assert await cache.get_resampled(1, 1, Timeframe.D1, range_) == []


async def test_no_cache_forgets_everything_at_once() -> None:
    cache = NoCache()
    await cache.open()
    range_ = TimeRange(START_MS, START_MS + DAY_MS)
    await cache.store_1m_bars(1, 1, random_minutes(1, 10), DAY)
    await cache.set_resampled(1, 1, Timeframe.H1, range_, [])
    assert await cache.get_1m_bars(1, 1, DAY) == CachedBars((), RangeSet())
    assert await cache.get_resampled(1, 1, Timeframe.H1, range_) is None
    await cache.ping()
    assert cache.stats() == CacheStats()
    await cache.close()


async def test_what_is_too_large_is_not_kept(clock: ManualClock) -> None:
    cache = MemoryCache(max_bytes=1 << 20, ttl_s=60, clock=clock, max_value_bytes=10_000)
    await cache.store_1m_bars(1, 1, random_minutes(9, 1440, holes=0), DAY)
    await cache.set_resampled(1, 1, Timeframe.M1, TimeRange(START_MS, START_MS + DAY_MS), random_minutes(9, 1440))
    assert cache.stats().entries == 0


async def test_hits_and_misses_are_counted(cache: Cache) -> None:
    await cache.store_1m_bars(1, 1, [], DAY)
    assert cache.stats()[:4] == (0, 0, 0, 0), "storing is not asking"
    await cache.get_1m_bars(1, 1, RangeSet.of(START_MS, START_MS + 2 * DAY_MS))
    await cache.get_resampled(1, 1, Timeframe.H1, TimeRange(START_MS, START_MS + DAY_MS))
    assert cache.stats()[:4] == (1, 2, 0, 0)


_step = st.tuples(st.booleans(), st.integers(0, 60), st.integers(1, 60), st.integers(0, 12), st.integers(0, 2**16))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(_step, min_size=1, max_size=12))
async def test_any_stores_and_gets_equal_a_simple_model(
    cache: Cache, steps: list[tuple[bool, int, int, int, int]]
) -> None:
    revision = next(_fresh_revision)
    model: dict[int, Bar | None] = {}
    unit = 53  # minutes; so that ranges cross days anywhere
    for is_store, first, length, gap, seed in steps:
        start = first * unit
        ranges = minutes(start, start + length * unit) - minutes(start + unit, start + (1 + gap) * unit)
        if is_store:
            bars = within(random_minutes(seed, (first + length) * unit, holes=0.5), ranges)
            await cache.store_1m_bars(7, revision, bars, ranges)
            model |= dict.fromkeys(_stamps(ranges)) | {bar.ts: bar for bar in bars}
        else:
            found = await cache.get_1m_bars(7, revision, ranges)
            expected = [ts for ts in _stamps(ranges) if ts in model]
            assert list(_stamps(found.known)) == expected
            bars = [bar for ts in expected if (bar := model[ts])]
            assert found.bars == bars
            assert b"".join(texts_of(found.bars)) == msgspec.json.encode(bars)


def _stamps(ranges: RangeSet) -> Iterator[int]:
    for start_ms, end_ms in ranges:
        yield from range(start_ms, end_ms, MINUTE_MS)


# The cache in memory


@pytest.fixture
def memory(clock: ManualClock) -> MemoryCache:
    return MemoryCache(max_bytes=760_000, ttl_s=60, clock=clock)


async def _store_days(cache: Cache, first: int, days: int) -> None:
    for day in range(first, first + days):
        start_ms = START_MS + day * DAY_MS
        bars = random_minutes(day, 1440, start_ms=start_ms, holes=0)
        await cache.store_1m_bars(1, 1, bars, RangeSet.of(start_ms, start_ms + DAY_MS))


async def test_memory_stays_within_its_bytes_and_loses_the_least_recently_used(memory: MemoryCache) -> None:
    await _store_days(memory, 0, 4)
    assert (await memory.get_1m_bars(1, 1, DAY)).known == DAY
    await _store_days(memory, 4, 3)
    stats = memory.stats()
    assert stats.entries == 4
    assert stats.bytes is not None
    assert stats.bytes <= 760_000
    assert (await memory.get_1m_bars(1, 1, DAY)).known == DAY, "it was used last before the new ones came"
    second = RangeSet.of(START_MS + DAY_MS, START_MS + 2 * DAY_MS)
    assert await memory.get_1m_bars(1, 1, second) == NOTHING


async def test_memory_counts_what_it_really_takes(memory: MemoryCache) -> None:
    for revision in range(50):
        await memory.store_1m_bars(1, revision, [], DAY)
    await _store_days(memory, 0, 2)
    hours = fold(random_minutes(7, 60_000), Timeframe.H1)
    await memory.set_resampled(1, 1, Timeframe.H1, TimeRange(START_MS, START_MS + 42 * DAY_MS), hours)
    real = _taken(memory._entries, set())
    counted = memory.stats().bytes
    assert counted is not None
    assert 0.9 * real <= counted <= 1.5 * real
    await memory.get_1m_bars(1, 1, RangeSet.of(START_MS, START_MS + 2 * DAY_MS))
    assert 0.9 * _taken(memory._entries, set()) <= counted, "reading takes no more"


def _taken(thing: object, seen: set[int]) -> int:
    """Bytes of memory that a thing takes with all that only it holds."""
    if id(thing) in seen or thing is None:
        return 0
    seen.add(id(thing))
    parts: list[object] = []
    if isinstance(thing, dict):
        parts = [*thing.keys(), *thing.values()]
    elif isinstance(thing, list | tuple):
        parts = list(thing)
    elif isinstance(thing, DayBlock | Hour | PackedBars | Rows):
        parts = [getattr(thing, name) for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
    return sys.getsizeof(thing) + sum(_taken(part, seen) for part in parts)


async def test_memory_forgets_when_time_is_up(memory: MemoryCache, clock: ManualClock) -> None:
    await memory.store_1m_bars(1, 1, [], DAY)
    clock.advance(minutes=0.9)
    assert (await memory.get_1m_bars(1, 1, DAY)).known == DAY
    clock.advance(minutes=0.2)
    assert await memory.get_1m_bars(1, 1, DAY) == NOTHING
    assert memory.stats().bytes == 0


async def test_an_entry_too_large_for_all_of_memory_displaces_nothing(clock: ManualClock) -> None:
    cache = MemoryCache(max_bytes=80_000, ttl_s=60, clock=clock)
    await cache.store_1m_bars(1, 1, [], DAY)
    await _store_days(cache, 5, 1)
    assert (await cache.get_1m_bars(1, 1, DAY)).known == DAY


async def test_stores_at_once_lose_nothing_in_memory(memory: MemoryCache) -> None:
    bars = random_minutes(10, 1440, holes=0)
    parts = [minutes(start, start + 60) for start in range(0, 1440, 60)]
    await asyncio.gather(*(memory.store_1m_bars(1, 1, within(bars, part), part) for part in parts))
    assert await memory.get_1m_bars(1, 1, DAY) == CachedBars(bars, DAY)


async def test_reading_a_long_range_lets_others_run_in_between(memory: MemoryCache) -> None:
    await memory.store_1m_bars(1, 1, [], RangeSet.of(START_MS, START_MS + 40 * DAY_MS))
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(count_turns())
    await memory.get_1m_bars(1, 1, RangeSet.of(START_MS, START_MS + 40 * DAY_MS))
    other.cancel()
    assert turns >= 4


async def test_closing_gives_the_memory_back(memory: MemoryCache) -> None:
    await _store_days(memory, 0, 1)
    await memory.close()
    assert memory.stats()[4:6] == (0, 0)


def test_a_key_names_the_version_the_series_the_revision_and_the_day() -> None:
    assert str(MinuteKey(3, 9, START_MS)) == f"3:m:3:9:{START_MS // DAY_MS}"
