"""What every broadcast keeps, in memory and through a real Redis: each process is told once and in order."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial

import pytest

from app_extensions.redis_manager import RedisManager
from domain.bar import Bar
from domain.series import Verdict
from services.broadcast_manager import BroadcastManager, MemoryBroadcast
from services.live import FeedState, Forming, LostRange, Message, Revised, Settled, Status
from services.redis_broadcast import RedisBroadcast
from tests.services.redis_server import RedisServer, start_redis, why_unavailable
from tests.support.market import START_MS, random_minutes

BARS = random_minutes(1, 3, holes=0)
EVERY_KIND: list[Message] = [
    Forming(7, 1, BARS[0], venue_ms=START_MS),
    Settled(
        7, 1, START_MS, START_MS + 180_000, tuple(BARS), (LostRange(START_MS, START_MS + 60_000, Verdict.NO_TRADES),)
    ),
    Settled(7, 1, START_MS, START_MS + 60_000),
    Revised(7),
    Status(7, 2, FeedState.DOWN, "the venue is away"),
    Forming(7, 1, Bar(START_MS, 1.0, 2.0, 0.5, 1.5, 9.0)),
]

Maker = Callable[[], Awaitable[BroadcastManager]]


class Heard(list[Message]):
    """What a process was told."""

    def __init__(self, broadcast: BroadcastManager) -> None:
        super().__init__()
        broadcast.listen(self.append)


async def until(condition: Callable[[], bool], *, within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    missing = why_unavailable()
    if missing:
        pytest.skip(missing)
    server = start_redis(tmp_path_factory.mktemp("valkey"))
    yield server
    server.stop()


@pytest.fixture(params=["memory", "redis"])
async def make(request: pytest.FixtureRequest) -> AsyncIterator[Maker]:
    """Makes open broadcasts, each as if in a process of its own."""
    hub: set[MemoryBroadcast] = set()
    async with AsyncExitStack() as stack:

        async def in_memory() -> BroadcastManager:
            return MemoryBroadcast(hub)

        async def through_redis() -> BroadcastManager:
            manager = RedisManager(request.getfixturevalue("server").url, timeout_s=20)
            await manager.open()
            stack.push_async_callback(manager.close)
            return RedisBroadcast(manager.client, namespace="test")

        async def make() -> BroadcastManager:
            made = await (in_memory if request.param == "memory" else through_redis)()
            await made.open()
            stack.push_async_callback(made.close)
            await until(lambda: made.connected)
            return made

        if request.param == "redis":
            request.getfixturevalue("server")
        yield make


async def pair(make: Maker, series_id: int = 7) -> tuple[BroadcastManager, BroadcastManager, Heard]:
    """Two processes; the second follows a series, and what it hears."""
    one, two = await make(), await make()
    heard = Heard(two)
    await two.follow(series_id)
    await reached(one, two, heard, series_id)
    return one, two, heard


async def reached(one: BroadcastManager, two: BroadcastManager, heard: Heard, series_id: int) -> None:
    """Wait until what the one tells comes to the other; forget what was told for that."""
    deadline = time.monotonic() + 20
    while not heard:
        assert time.monotonic() < deadline
        one.publish(Revised(series_id))
        await asyncio.sleep(0.02)
    end = Status(series_id, time.monotonic_ns(), FeedState.UP)
    one.publish(end)
    await until(lambda: end in heard)
    heard.clear()


async def test_the_own_process_is_told_in_the_same_turn_and_never_again(make: Maker) -> None:
    one, two, heard = await pair(make)
    mine = Heard(one)
    await one.follow(7)
    for message in EVERY_KIND:
        one.publish(message)
    assert mine == EVERY_KIND
    await until(lambda: EVERY_KIND[-1] in heard)
    two.publish(Revised(7))
    await until(lambda: Revised(7) in mine[len(EVERY_KIND) :])
    assert mine == [*EVERY_KIND, Revised(7)]


async def test_another_process_is_told_every_kind_as_it_was_told_and_in_order(make: Maker) -> None:
    one, two, heard = await pair(make)
    before = two.received
    for count, message in enumerate(EVERY_KIND, 1):
        one.publish(message)
        await until(partial(_has, heard, count))
    assert heard == EVERY_KIND
    assert (one.published >= len(EVERY_KIND), two.received - before) == (True, len(EVERY_KIND))


def _has(heard: Heard, count: int) -> bool:
    return len(heard) >= count


async def test_only_the_series_that_are_followed_are_told(make: Maker) -> None:
    one, two, heard = await pair(make)
    one.publish(Revised(8))
    one.publish(Status(7, 5, FeedState.UP))
    await until(lambda: len(heard) > 0)
    await two.follow(8)
    heard.clear()
    await reached(one, two, heard, 8)
    await two.unfollow(7)
    one.publish(Revised(7))
    one.publish(Revised(8))
    await until(lambda: Revised(8) in heard)
    assert heard == [Revised(8)]


async def test_both_ways_at_once_nothing_is_lost_or_doubled(make: Maker) -> None:
    one, two, heard = await pair(make)
    answers = Heard(one)
    await one.follow(7)
    await reached(two, one, answers, 7)
    heard.clear()
    for fence in range(300):
        one.publish(Status(7, 2 * fence, FeedState.UP))
        two.publish(Status(7, 2 * fence + 1, FeedState.UP))
    await until(lambda: len(heard) >= 600 and len(answers) >= 600)
    for told in (heard, answers):
        fences = [message.fence for message in told if isinstance(message, Status)]
        assert sorted(fences) == list(range(600))
        assert [fence for fence in fences if fence % 2] == list(range(1, 600, 2))
        assert [fence for fence in fences if not fence % 2] == list(range(0, 600, 2))


async def test_a_listener_that_fails_spoils_nothing(make: Maker, caplog: pytest.LogCaptureFixture) -> None:
    one, two, heard = await pair(make)

    def fail(message: Message) -> None:
        heard.append(message)
        raise ValueError("no")

    one.listen(fail)
    two.listen(fail)
    one.publish(Revised(7))
    assert heard == [Revised(7)]
    await until(lambda: len(heard) == 2)
    one.publish(Revised(7))
    await until(lambda: len(heard) == 4)
    assert "could not be taken in" in caplog.text


async def test_it_may_be_opened_closed_and_used_in_any_order(make: Maker) -> None:
    one, two, heard = await pair(make)
    await one.open()
    mine = Heard(one)
    await two.follow(7)
    await two.unfollow(9)
    await one.close()
    await one.close()
    one.publish(Revised(7))
    assert mine == [Revised(7)]
    assert not one.connected
    await one.open()
    await until(lambda: one.connected)
    await reached(one, two, heard, 7)


async def test_closing_leaves_no_task_behind(make: Maker) -> None:
    before = asyncio.all_tasks()
    one = await make()
    await one.follow(7)
    one.publish(Revised(7))
    began = time.monotonic()
    await one.close()
    assert time.monotonic() - began < 2
    assert asyncio.all_tasks() <= before
