"""Redis killed, flushed, frozen or mad under a broadcast: nobody waits, nothing raises, and messages flow again."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from app_extensions.redis_manager import RedisManager
from domain.bar import Bar
from services.broadcast_queue import MAX_WAITING, MAX_WAITING_BYTES, BroadcastQueue
from services.live import FeedState, Forming, Message, Revised, Settled, Status
from services.redis_broadcast import RedisBroadcast
from tests.services.redis_server import RedisServer, start_redis, why_unavailable
from tests.support.market import START_MS, random_minutes

#: Back-off of two seconds at most, and the rest for a slow test machine.
SOON_S = 15.0
AT_ONCE_S = 0.5


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    missing = why_unavailable()
    if missing:
        pytest.skip(missing)
    server = start_redis(tmp_path_factory.mktemp("valkey"))
    yield server
    server.stop()


class Process:
    """A broadcast as a server has it, what it heard, and how often it was told of trouble."""

    def __init__(self, manager: RedisManager, *, namespace: str = "test") -> None:
        self.manager = manager
        self.broadcast = RedisBroadcast(manager.client, namespace=namespace)
        self.heard: list[Message] = []
        self.troubles = 0
        self.broadcast.listen(self.heard.append)
        self.broadcast.on_trouble = self._count

    def _count(self) -> None:
        self.troubles += 1


@asynccontextmanager
async def a_process(url: str, *, namespace: str = "test", connected: bool = True) -> AsyncIterator[Process]:
    manager = RedisManager(url, timeout_s=0.5, connect_timeout_s=2)
    await manager.open()
    process = Process(manager, namespace=namespace)
    await process.broadcast.open()
    try:
        await process.broadcast.follow(7)
        if connected:
            await until(lambda: process.broadcast.connected)
        yield process
    finally:
        began = time.monotonic()
        await process.broadcast.close()
        assert time.monotonic() - began < 2
        await manager.close()


@pytest.fixture
async def two(server: RedisServer) -> AsyncIterator[tuple[Process, Process]]:
    async with a_process(server.url) as one, a_process(server.url) as other:
        await flows(one, other)
        yield one, other


async def until(condition: Callable[[], bool], *, within_s: float = SOON_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def flows(one: Process, other: Process) -> None:
    """Wait until what the one tells comes to the other."""
    first = number = time.monotonic_ns()
    deadline = time.monotonic() + SOON_S
    while not any(isinstance(told, Status) and told.fence >= first for told in other.heard):
        assert time.monotonic() < deadline
        one.broadcast.publish(Status(7, number, FeedState.UP))
        number += 1
        await asyncio.sleep(0.02)


async def test_a_killed_server_is_noticed_and_used_again_when_it_is_back(
    server: RedisServer, two: tuple[Process, Process], caplog: pytest.LogCaptureFixture
) -> None:
    one, other = two
    troubles = other.troubles
    with caplog.at_level(logging.INFO, "services.redis_broadcast"):
        server.kill()
        try:
            await until(lambda: not one.broadcast.connected and not other.broadcast.connected)
            assert other.troubles == troubles + 1
            began = time.monotonic()
            for fence in range(1000):
                one.broadcast.publish(Status(7, fence, FeedState.UP))
            assert time.monotonic() - began < AT_ONCE_S
            assert len(one.heard) >= 1000
        finally:
            server.start()
        await until(lambda: one.broadcast.connected and other.broadcast.connected)
        assert other.troubles == troubles + 2
        await flows(one, other)
        await flows(other, one)
    assert other.broadcast.errors > 0
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 2, "one for each process"
    assert len([text for text in caplog.messages if "again" in text]) == 2


async def test_flushing_everything_changes_nothing(two: tuple[Process, Process]) -> None:
    one, other = two
    troubles, errors = other.troubles, other.broadcast.errors
    await one.manager.client.flushall()
    await flows(one, other)
    await flows(other, one)
    assert (other.troubles, other.broadcast.errors) == (troubles, errors)


@pytest.mark.parametrize("kind", ["pubsub", "normal"])
async def test_killed_connections_are_made_again(two: tuple[Process, Process], kind: str) -> None:
    one, other = two
    troubles = (one.troubles, other.troubles)
    await one.manager.client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
    if kind == "pubsub":
        await until(lambda: one.troubles > troubles[0] and other.troubles > troubles[1])
    await flows(one, other)
    await flows(other, one)


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"x",
        b"12345678",
        b"12345678\xc1",
        b"12345678" + msgspec.msgpack.encode({"type": "settled", "series_id": "seven"}),
        b"12345678" + msgspec.msgpack.encode({"type": "nonsense", "series_id": 7}),
        b"12345678" + msgspec.msgpack.encode([1, 2, 3]),
        b"12345678" + msgspec.msgpack.encode(Revised(8)),
        b"12345678" + msgspec.msgpack.encode({"type": "status", "series_id": 7, "fence": 1, "state": b"\xff"}),
        b"\xff" * 300_000,
    ],
    ids=range(10),
)
async def test_garbage_on_a_channel_is_counted_and_nothing_else(two: tuple[Process, Process], garbage: bytes) -> None:
    one, other = two
    heard, rejected, troubles = list(other.heard), other.broadcast.rejected, other.troubles
    await one.manager.client.publish("test:live:7", garbage)
    await until(lambda: other.broadcast.rejected == rejected + 1)
    assert other.heard == heard
    await flows(one, other)
    assert other.troubles == troubles


async def test_a_server_that_stands_still_holds_nobody_up(server: RedisServer, two: tuple[Process, Process]) -> None:
    one, other = two
    troubles = other.troubles
    server.freeze()
    try:
        slowest = 0.0
        deadline = time.monotonic() + SOON_S
        while one.broadcast.connected or other.broadcast.connected:
            assert time.monotonic() < deadline
            began = time.monotonic()
            one.broadcast.publish(Forming(7, 1, Bar(START_MS, 1.0, 1.0, 1.0, 1.0, 1.0)))
            await one.broadcast.follow(int(deadline * 1000) % 1000 + 100)
            slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(0.01)
        assert slowest < AT_ONCE_S
        assert other.troubles > troubles
    finally:
        server.thaw()
    await flows(one, other)
    await flows(other, one)


@pytest.mark.parametrize("state", ["at once", "refused", "frozen", "garbled"])
async def test_it_closes_in_time_in_any_state(server: RedisServer, state: str) -> None:
    before = asyncio.all_tasks()
    async with _server_in(state, server) as url:
        manager = RedisManager(url, timeout_s=0.5)
        await manager.open()
        process = Process(manager)
        await process.broadcast.open()
        await process.broadcast.follow(7)
        process.broadcast.publish(Revised(7))
        if state == "frozen":
            await until(lambda: process.broadcast.connected)
            server.freeze()
            process.broadcast.publish(Revised(7))
            await process.broadcast.follow(8)
            await asyncio.sleep(0.05)
        if state in {"refused", "garbled"}:
            await until(lambda: process.broadcast.errors > 1)
        began = time.monotonic()
        await process.broadcast.close()
        assert time.monotonic() - began < 2
        assert asyncio.all_tasks() - before <= {task for task in asyncio.all_tasks() if "_garble" in repr(task)}
        assert process.heard[0] == Revised(7)
        if state == "frozen":
            server.thaw()
        await manager.close()


@asynccontextmanager
async def _server_in(state: str, server: RedisServer) -> AsyncIterator[str]:
    if state in {"at once", "frozen"}:
        try:
            yield server.url
        finally:
            server.thaw()
        return
    listener = await asyncio.start_server(_garble, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    if state == "refused":
        listener.close()
        await listener.wait_closed()
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        listener.close()
        await listener.wait_closed()


async def _garble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that answers whatever is asked with something else."""
    try:
        while await reader.read(1000):
            writer.write(b"*3\r\n$7\r\nmessage\r\n:7\r\n+what\r\n!!\r\n")
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def test_servers_of_two_databases_do_not_hear_each_other(server: RedisServer) -> None:
    async with a_process(server.url) as one, a_process(server.url) as same, a_process(server.url, namespace="b") as far:
        await flows(one, same)
        await one.manager.client.publish("b:live:7", b"12345678" + msgspec.msgpack.encode(Revised(7)))
        await until(lambda: Revised(7) in far.heard)
        assert far.heard == [Revised(7)]
        assert Revised(7) not in same.heard


async def test_a_server_that_is_not_there_yet_is_used_once_it_is(server: RedisServer) -> None:
    server.kill()
    try:
        async with (
            a_process(server.url, connected=False) as one,
            a_process(server.url, connected=False) as other,
        ):
            await until(lambda: one.broadcast.errors > 0)
            assert not one.broadcast.connected
            server.start()
            await flows(one, other)
            await flows(other, one)
    finally:
        server.restart()


async def test_a_hundred_series_followed_in_one_turn_are_all_heard(two: tuple[Process, Process]) -> None:
    one, other = two
    for series_id in range(100, 200):
        await other.broadcast.follow(series_id)
    deadline = time.monotonic() + SOON_S
    while {told.series_id for told in other.heard} < {*range(100, 200)}:
        assert time.monotonic() < deadline
        for series_id in range(100, 200):
            one.broadcast.publish(Revised(series_id))
        await asyncio.sleep(0.05)


# What waits to be sent


def settled(minute: int, bars: int = 0) -> Settled:
    return Settled(7, 1, minute * 60_000, (minute + 1) * 60_000, tuple(random_minutes(1, bars, holes=0)))


def contents(queue: BroadcastQueue) -> list[Message]:
    decoder = msgspec.msgpack.Decoder(Message)
    return [decoder.decode(letter.content) for letter in queue.take()]


def forming(series_id: int, price: float) -> Forming:
    return Forming(series_id, 1, Bar(START_MS, price, price, price, price, 1.0))


def test_of_each_series_only_the_newest_forming_minute_waits() -> None:
    queue = BroadcastQueue(b"")
    for price in range(1, 1000):
        assert queue.put(forming(7, price)) == 0
        assert queue.put(forming(8, price)) == 0
    assert len(queue) == 2
    assert contents(queue) == [forming(7, 999), forming(8, 999)]
    assert contents(queue) == []


def test_what_waits_keeps_its_order() -> None:
    queue = BroadcastQueue(b"")
    told: list[Message] = [settled(1), Revised(7), forming(8, 1), Status(7, 1, FeedState.UP), settled(2), forming(7, 1)]
    for message in told:
        assert queue.put(message) == 0
    assert contents(queue) == told


def test_the_oldest_is_dropped_when_too_much_waits() -> None:
    queue = BroadcastQueue(b"")
    assert sum(queue.put(settled(minute)) for minute in range(MAX_WAITING + 10)) == 10
    assert queue.put(forming(8, 1)) == 0
    waiting = contents(queue)
    assert waiting[0] == settled(10)
    assert waiting[-2:] == [settled(MAX_WAITING + 9), forming(8, 1)]
    assert len(waiting) == MAX_WAITING + 1


def test_what_waits_is_bounded_in_bytes_and_a_giant_is_not_sent() -> None:
    queue = BroadcastQueue(b"")
    assert queue.put(settled(1, bars=20_000)) == 1
    assert len(queue) == 0
    lost = sum(queue.put(settled(minute, bars=2_000)) for minute in range(200))
    assert lost > 0
    waiting = queue.take()
    assert len(waiting) == 200 - lost
    assert MAX_WAITING_BYTES / 2 < sum(len(letter.content) for letter in waiting) <= MAX_WAITING_BYTES
