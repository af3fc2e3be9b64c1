"""Redis absent, flushed, slow, refusing or mad: no exception, no false answer, bounded time; and back again after."""

import asyncio
import logging
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app_extensions.redis_manager import RedisManager
from domain.bar import fold, within
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from services.cache_codec import MinuteKey
from services.cache_manager import CachedBars, CacheUnavailableError
from services.redis_cache import BreakerState, CircuitBreaker, RedisCache
from tests.services.redis_server import RedisServer, start_redis, why_unavailable
from tests.support.market import START_MS, random_minutes

DAY = RangeSet.of(START_MS, START_MS + DAY_MS)
HOURS = TimeRange(START_MS, START_MS + DAY_MS)
BARS = random_minutes(1, 1440)
FOLDED = fold(BARS, Timeframe.H1)
NOTHING = CachedBars([], RangeSet())
#: One round trip may take 0.45 s; the rest is for a slow test machine.
SOON_S = 3.0


class Ticks:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def ticks() -> Ticks:
    return Ticks()


@pytest.fixture
def breaker(ticks: Ticks) -> CircuitBreaker:
    return CircuitBreaker(failures=3, cooldown_s=5, now_s=ticks)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    missing = why_unavailable()
    if missing:
        pytest.skip(missing)
    server = start_redis(tmp_path_factory.mktemp("valkey"))
    yield server
    server.stop()


@asynccontextmanager
async def hurried(url: str, breaker: CircuitBreaker | None = None) -> AsyncIterator[RedisCache]:
    """The cache as it is in production."""
    manager = RedisManager(url, timeout_s=0.25)
    await manager.open()
    try:
        yield RedisCache(manager.client, ttl_s=60, breaker=breaker)
    finally:
        await manager.close()


@asynccontextmanager
async def patient(url: str) -> AsyncIterator[tuple[RedisCache, RedisManager]]:
    """A cache that no slow test machine can hurry."""
    manager = RedisManager(url, timeout_s=20)
    await manager.open()
    try:
        await manager.client.flushall()
        yield RedisCache(manager.client, ttl_s=60, timeout_s=20, budget_s=60), manager
    finally:
        await manager.close()


async def use(cache: RedisCache) -> None:
    """Make each call once; every answer must be either true or a miss."""
    for call in (_store, _get, _store_folded, _get_folded):
        began = time.monotonic()
        await call(cache)
        assert time.monotonic() - began < SOON_S


async def _store(cache: RedisCache) -> None:
    await cache.store_1m_bars(1, 1, BARS, DAY)


async def _get(cache: RedisCache) -> None:
    assert await cache.get_1m_bars(1, 1, DAY) in (NOTHING, CachedBars(BARS, DAY))


async def _store_folded(cache: RedisCache) -> None:
    await cache.set_resampled(1, 1, Timeframe.H1, HOURS, FOLDED)


async def _get_folded(cache: RedisCache) -> None:
    assert await cache.get_resampled(1, 1, Timeframe.H1, HOURS) in (None, FOLDED)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + 20
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def works(cache: RedisCache) -> bool:
    """Whether what is stored can be had again."""
    await use(cache)
    return await cache.get_1m_bars(1, 1, DAY) == CachedBars(BARS, DAY)


# The circuit breaker


def test_the_breaker_opens_after_failures_in_a_row_only(breaker: CircuitBreaker) -> None:
    for failing in (True, True, False, True, True):
        assert breaker.admits()
        (breaker.failed if failing else breaker.succeeded)()
    assert breaker.admits()
    assert breaker.failed(), "it says when it opens"
    assert not breaker.admits()


def test_an_open_breaker_lets_one_call_try_after_a_while(breaker: CircuitBreaker, ticks: Ticks) -> None:
    for _ in range(3):
        breaker.failed()
    ticks.now_s = 4.9
    assert not breaker.admits()
    ticks.now_s = 5
    assert breaker.admits()
    assert not breaker.admits(), "one is enough"
    assert not breaker.failed(), "it was open before"
    assert not breaker.admits()
    ticks.now_s = 10
    assert breaker.admits()
    assert breaker.succeeded()
    assert breaker.state is BreakerState.CLOSED


def test_a_cancelled_try_leaves_the_next_one_to_another(breaker: CircuitBreaker, ticks: Ticks) -> None:
    for _ in range(3):
        breaker.failed()
    ticks.now_s = 5
    assert breaker.admits()
    breaker.abandoned()
    assert breaker.admits()


# No server


async def test_without_a_server_everything_is_a_miss_and_soon_costs_nothing(
    unused_url: str, breaker: CircuitBreaker, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "services.redis_cache"):
        async with hurried(unused_url, breaker) as cache:
            await use(cache)
            assert cache.stats().state == "open"
            assert cache.stats().errors == 3
            began = time.monotonic()
            for _ in range(500):
                assert await cache.get_1m_bars(1, 1, DAY) == NOTHING
            assert time.monotonic() - began < 1
            assert cache.stats().errors == 3
            with pytest.raises(CacheUnavailableError):
                await cache.ping()
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 2


@pytest.fixture
async def unused_url() -> str:
    """A port that belongs to us, and refuses connections once the listener is closed."""
    listener = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    listener.close()
    await listener.wait_closed()
    return f"redis://:hunter2@127.0.0.1:{port}/0"


async def test_the_cache_comes_back_with_its_server(
    server: RedisServer, breaker: CircuitBreaker, ticks: Ticks, caplog: pytest.LogCaptureFixture
) -> None:
    async with hurried(server.url, breaker) as cache:

        async def ready() -> bool:
            ticks.now_s += 10
            return await works(cache)

        await until(ready)
        server.kill()
        await use(cache)
        assert cache.stats().state == "open"
        server.start()
        assert await cache.get_1m_bars(1, 1, DAY) == NOTHING, "it is left alone for a while"
        with caplog.at_level(logging.INFO, "services.redis_cache"):
            await until(ready)
        assert cache.stats().state == "closed"
        assert "The cache answers again" in caplog.messages


async def test_a_restart_between_two_calls_is_not_noticed(server: RedisServer) -> None:
    async with patient(server.url) as (cache, _):
        assert await works(cache)
        server.restart()
        assert await cache.get_1m_bars(1, 1, DAY) == NOTHING
        assert await works(cache)
        assert cache.stats().errors == 0


async def test_a_flushed_cache_is_filled_again(server: RedisServer) -> None:
    async with patient(server.url) as (cache, manager):
        assert await works(cache)
        await manager.client.flushall()
        assert await cache.get_1m_bars(1, 1, DAY) == NOTHING
        assert await cache.get_resampled(1, 1, Timeframe.H1, HOURS) is None
        assert await works(cache)
        assert cache.stats().rejected == 0


async def test_a_server_that_stands_still_holds_nobody_up(
    server: RedisServer, breaker: CircuitBreaker, ticks: Ticks
) -> None:
    async with hurried(server.url, breaker) as cache:

        async def ready() -> bool:
            ticks.now_s += 10
            return await works(cache)

        await until(ready)
        server.freeze()
        try:
            began = time.monotonic()
            answers = await asyncio.gather(*(cache.get_1m_bars(1, 1, DAY) for _ in range(50)))
            assert time.monotonic() - began < SOON_S
            assert answers == [NOTHING] * 50
            assert cache.stats().state == "open"
            with pytest.raises(CacheUnavailableError):
                await cache.ping()
        finally:
            server.thaw()
        await until(ready)


async def test_a_cancelled_call_is_cancelled_and_spoils_no_later_one(server: RedisServer) -> None:
    async with patient(server.url) as (cache, _):
        assert await works(cache)
        server.freeze()
        try:
            call = asyncio.create_task(cache.get_1m_bars(1, 1, DAY))
            await asyncio.sleep(0.05)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        finally:
            server.thaw()
        assert await cache.get_1m_bars(2, 1, DAY) == NOTHING, "the first call's answer is not taken for this one's"
        assert await works(cache)
        assert cache.stats().state == "closed"


async def test_a_server_without_memory_is_still_read_from(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with patient(server.url) as (cache, manager):
        assert await works(cache)
        await manager.client.config_set("maxmemory", "1")
        try:
            for _ in range(5):
                await cache.store_1m_bars(2, 1, BARS, DAY)
            assert await cache.get_1m_bars(1, 1, DAY) == CachedBars(BARS, DAY)
            assert cache.stats()[:5] == (4, 0, 0, 5, None)
            assert len([text for text in caplog.messages if "refuses" in text]) == 1
        finally:
            await manager.client.config_set("maxmemory", "0")


async def test_a_wrong_password_is_a_miss(server: RedisServer) -> None:
    async with hurried(f"redis://:wrong@127.0.0.1:{server.port}/0") as cache:
        await use(cache)
        assert cache.stats().hits == 0
        assert cache.stats().state == "open"


# Spoilt entries


def block_name(series_id: int = 1, day: int = 0) -> str:
    return f"candlery:{MinuteKey(series_id, 1, START_MS + day * DAY_MS)}"


async def test_a_spoilt_entry_is_a_miss_and_is_deleted(server: RedisServer) -> None:
    rng = random.Random(3)
    async with patient(server.url) as (cache, manager):
        await use(cache)
        client = manager.client
        answer = next(key.decode() for key in await client.keys() if key.decode() != block_name())
        for bad in _spoilt(rng, await client.get(answer)):
            await client.set(answer, bad)
            await _get_folded(cache)
            assert await client.exists(answer) == 0
        for bad in _spoilt(rng, await client.hget(block_name(), "7")):
            await client.hset(block_name(), "7", bad)
            seven = TimeRange(START_MS + 7 * HOUR_MS, START_MS + 8 * HOUR_MS)
            assert (await cache.get_1m_bars(1, 1, DAY)).known == DAY - RangeSet((seven,))
            assert not await client.hexists(block_name(), "7")
        assert cache.stats().rejected == 12
        assert await works(cache)


def _spoilt(rng: random.Random, good: bytes) -> list[bytes]:
    place = rng.randrange(len(good))
    return [b"", b"rubbish", good[:-1], good[:9], good + b"x", good[:place] + b"\xff\xfe" + good[place:]]


async def test_another_entry_copied_in_is_a_miss(server: RedisServer) -> None:
    async with patient(server.url) as (cache, manager):
        await use(cache)
        for name in (block_name(series_id=2), block_name(day=1)):
            await manager.client.copy(block_name(), name)
        assert await cache.get_1m_bars(2, 1, DAY) == NOTHING
        two_days = RangeSet.of(START_MS, START_MS + 2 * DAY_MS)
        assert await cache.get_1m_bars(1, 1, two_days) == CachedBars(BARS, DAY)
        assert cache.stats().rejected == 48, "every hour of both"


async def test_storing_over_a_spoilt_entry_mends_it(server: RedisServer) -> None:
    async with patient(server.url) as (cache, manager):
        await manager.client.hset(block_name(), "0", b"rubbish")
        hour = RangeSet.of(START_MS, START_MS + HOUR_MS)
        await cache.store_1m_bars(1, 1, [], hour)
        assert await cache.get_1m_bars(1, 1, DAY) == CachedBars([], hour)


async def test_keys_of_another_type_are_a_miss_and_overwritten(server: RedisServer) -> None:
    async with patient(server.url) as (cache, manager):
        for part in (DAY, RangeSet.of(START_MS, START_MS + HOUR_MS + MINUTE_MS)):
            await manager.client.delete(block_name())
            await manager.client.rpush(block_name(), "a", "list")
            assert await cache.get_1m_bars(1, 1, DAY) == NOTHING
            await cache.store_1m_bars(1, 1, BARS, part)
            assert await cache.get_1m_bars(1, 1, DAY) == CachedBars(within(BARS, part), part)
        assert 0 < await manager.client.pttl(block_name()) <= 60_000
        assert await works(cache)


async def test_only_the_hours_that_are_wanted_are_read_and_only_those_that_are_new_are_written(
    server: RedisServer,
) -> None:
    async with patient(server.url) as (cache, manager):
        await use(cache)
        before = await manager.client.hgetall(block_name())
        minute = RangeSet.of(START_MS + 5 * HOUR_MS, START_MS + 5 * HOUR_MS + MINUTE_MS)
        await manager.client.hset(block_name(), "6", b"rubbish")
        newer = random_minutes(9, 1, start_ms=START_MS + 5 * HOUR_MS, holes=0)
        await cache.store_1m_bars(1, 1, newer, minute)
        assert (await cache.get_1m_bars(1, 1, minute)).bars == newer
        after = await manager.client.hgetall(block_name())
        assert {field for field in before if after[field] != before[field]} == {b"5", b"6"}
        assert cache.stats().rejected == 0, "nobody looked at the sixth hour"


async def test_entries_expire(server: RedisServer) -> None:
    async with patient(server.url) as (cache, manager):
        await use(cache)
        for name in await manager.client.keys():
            assert 0 < await manager.client.pttl(name) <= 60_000


async def test_namespaces_are_kept_apart(server: RedisServer) -> None:
    async with patient(server.url) as (cache, manager):
        await use(cache)
        other = RedisCache(manager.client, ttl_s=60, namespace="other", timeout_s=20)
        assert await other.get_1m_bars(1, 1, DAY) == NOTHING


async def test_a_call_over_many_days_gives_up_with_what_it_has(server: RedisServer) -> None:
    async with patient(server.url) as (cache, manager):
        span = RangeSet.of(START_MS, START_MS + 100 * DAY_MS)
        await cache.store_1m_bars(1, 1, [], span)
        brief = RedisCache(manager.client, ttl_s=60, timeout_s=20, budget_s=0)
        found = await brief.get_1m_bars(1, 1, span)
        assert found == CachedBars([], RangeSet.of(START_MS, START_MS + RedisCache.batch * DAY_MS))


# A mad server


@asynccontextmanager
async def mad_server(reply: bytes) -> AsyncIterator[str]:
    """Answers everything with the same bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(1 << 16):
                writer.write(reply)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}/0"
    finally:
        listener.close()
        await listener.wait_closed()


MAD = {
    "http": b"HTTP/1.1 400 Bad Request\r\n\r\n<html>",
    "zeros": bytes(1000),
    "random": random.Random(1).randbytes(5000),
    "text for a number": b"$abc\r\n\r\n",
    "a number": b":1\r\n",
    "a text": b"$5\r\nhello\r\n",
    "a status": b"+OK\r\n",
    "an error": b"-ERR go away\r\n",
    "loading": b"-LOADING Redis is loading the dataset in memory\r\n",
    "an empty list": b"*0\r\n",
    "a list of numbers": b"*1\r\n:5\r\n",
    "a list of a list": b"*1\r\n*1\r\n$1\r\na\r\n",
    "a list of rubbish": b"*1\r\n$7\r\nrubbish\r\n",
    "too long a list": b"*2\r\n$1\r\na\r\n$1\r\nb\r\n",
    "a list without end": b"*999999999\r\n",
    "a text without end": b"$999999999\r\nabc",
    "nothing at all, twice": b"*1\r\n$-1\r\n" * 2,
    "bytes that are no text": b"+\xff\xfe\r\n",
    "deep lists": b"*1\r\n" * 3000,
    "a push": b">2\r\n$1\r\na\r\n$1\r\nb\r\n",
    "half a line": b"*1",
}


@pytest.mark.parametrize("reply", MAD.values(), ids=MAD.keys())
async def test_a_mad_server_is_never_believed(reply: bytes) -> None:
    async with mad_server(reply) as url, hurried(url) as cache:
        for _ in range(2):
            await use(cache)
        assert await cache.get_1m_bars(1, 1, DAY) == NOTHING
        assert await cache.get_resampled(1, 1, Timeframe.H1, HOURS) is None
        assert cache.stats().hits == 0


async def test_a_connection_that_breaks_once_is_tried_again(server: RedisServer) -> None:
    """A proxy that cuts its first connection before the reply."""
    cuts = 0

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal cuts
        cuts += 1
        if cuts > 1:
            await relay(reader, writer)
        writer.close()

    relay = _relay_to(server.port)
    listener = await asyncio.start_server(proxy, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    manager = RedisManager(server.url.replace(f":{server.port}/", f":{port}/"), timeout_s=20)
    await manager.open()
    cache = RedisCache(manager.client, ttl_s=60, timeout_s=20)
    await cache.ping()
    assert cuts == 2
    assert cache.stats().errors == 0
    await manager.close()
    listener.close()
    await listener.wait_closed()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
    writer.close()


# The client's manager


async def test_nothing_connects_before_it_is_used(unused_url: str) -> None:
    manager = RedisManager(unused_url)
    with pytest.raises(CacheUnavailableError):
        _ = manager.client
    await manager.open()
    await manager.close()
    await manager.close()
    with pytest.raises(CacheUnavailableError):
        _ = manager.client


async def test_no_password_is_ever_shown(unused_url: str, caplog: pytest.LogCaptureFixture) -> None:
    manager = RedisManager(unused_url)
    assert "hunter2" not in repr(manager)
    assert "hunter2" not in repr(RedisManager("redis://u:hunter2@cache:6379/1?password=hunter2"))
    with caplog.at_level(logging.DEBUG):
        async with hurried(unused_url) as cache:
            await use(cache)
    assert caplog.records
    assert "hunter2" not in caplog.text


async def test_a_unix_socket_will_do(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("u") / "s"  # The names of sockets must be short.
    listener = await asyncio.start_unix_server(_relay_to(server.port), path)
    password = server.url.split(":")[2].partition("@")[0]
    async with patient(f"unix://:{password}@{path}?db=0") as (cache, _):
        assert await works(cache)
    listener.close()
    await listener.wait_closed()


def _relay_to(port: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))

    return relay


# The tests' own server


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_the_tests_server_ends_with_the_process_that_started_it(server: RedisServer, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.services.redis_server import start_redis\n"
        "print(start_redis(Path(sys.argv[1])).pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while _runs(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"
