"""Clients that are slow, silent, loud or gone cost the others nothing, and leave nothing behind."""

import asyncio
import json
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from blueprints.stream_hub import OPENINGS, Leave
from domain.bar import Bar
from services.live import BarState
from tests.support.raw_socket import BINARY, CLOSE, PING, PONG, TEXT, RawSocket, frame, raw_socket
from tests.support.servers import chosen_server, each_server  # noqa: F401
from tests.support.streaming import SERIES, StreamServer, a_bar, connected, serving, until

pytestmark = pytest.mark.usefixtures("each_server")

ROOT = Path(__file__).resolve().parents[2]
MOST_MB = 100
PAGE = [Bar(60_000 * at, 10_000.25, 20_000.5, 5_000.75, 15_000.5, 1_000.125) for at in range(1_000)]


def subscribe(subscription_id: str = "a") -> bytes:
    return frame(TEXT, json.dumps({"op": "subscribe", "id": subscription_id, **SERIES}).encode())


async def listening(socket: RawSocket, server: StreamServer) -> None:
    """Subscribe, and be live."""
    live = len(server.subscriptions.live)
    await socket.shake_hands()
    socket.writer.write(subscribe())
    await until(lambda: len(server.subscriptions.live) > live)


async def tell_until(server: StreamServer, condition: Any) -> int:
    """Closed bars of a kilobyte until the condition holds, none of them for nothing; how many."""
    async with asyncio.timeout(60):
        for number in range(1_000_000):
            if condition():
                return number
            event = a_bar(60_000 * number)
            event.wire = f'"type":"bar","number":{number},"filling":"{"x" * 1_000}","state":"closed"}}'
            server.subscriptions.tell(event)
            await asyncio.sleep(0)
    raise AssertionError


async def test_a_client_too_slow_is_told_4008_and_others_notice_nothing():
    async with serving(stream_queue_items=100) as server, connected(server) as fine, raw_socket(server.port) as slow:
        await fine.subscribe()
        await listening(slow, server)
        slow.read_nothing()
        heard: list[int] = []

        async def read() -> None:
            while True:
                heard.append((await fine.hear())["number"])

        reading = asyncio.create_task(read())
        told = await tell_until(server, lambda: server.hub.disconnects[Leave.SLOW])
        # Everything that the slow one held is free before it has read a byte of its end.
        await until(lambda: len(server.subscriptions.live) == 1)
        assert server.subscriptions.made[1].closed
        await until(lambda: len(heard) == told)
        reading.cancel()
        assert heard == list(range(told))
        slow.read_again()
        numbers = []
        while True:
            kind, payload = await slow.hear()
            if kind == CLOSE:
                break
            if b'"number"' in payload:
                numbers.append(json.loads(payload)["number"])
        assert int.from_bytes(payload[:2]) == 4008
        # No bar is left out among those that came: the client can resume after the last of them.
        assert numbers == list(range(len(numbers)))
        slow.writer.write(frame(CLOSE, payload[:2]))
        await slow.hear_end()
        await until(lambda: len(server.hub.connections) == 1)


async def test_a_client_that_is_behind_gets_all_closed_bars_and_only_the_newest_forming_one():
    async with serving() as server, raw_socket(server.port) as slow:
        await listening(slow, server)
        slow.read_nothing()
        for number in range(8_000):
            event = a_bar(60_000 * number, BarState.FORMING if number % 2 else BarState.CLOSED)
            event.wire = f'"number":{number},"filling":"{"x" * 500}"}}'
            server.subscriptions.tell(event)
            if number % 50 == 0:
                await asyncio.sleep(0)
        slow.read_again()
        numbers: list[int] = []
        while not numbers or numbers[-1] < 7_999:
            _, payload = await slow.hear()
            numbers += [json.loads(payload)["number"]] if b'"number"' in payload else []
        assert numbers == sorted(numbers)
        assert [number for number in numbers if number % 2 == 0] == list(range(0, 8_000, 2))
        assert server.hub.conflated == 8_000 - len(numbers) > 1_000


async def test_a_snapshot_goes_only_as_fast_as_the_client_reads_it():
    async with serving() as server, raw_socket(server.port) as slow:
        server.subscriptions.parts = [PAGE] * 300
        await slow.shake_hands()
        slow.read_nothing()
        slow.writer.write(subscribe())
        await until(lambda: server.subscriptions.made and server.subscriptions.made[0].parts_told > 1)
        [made] = server.subscriptions.made
        await asyncio.sleep(0.3)
        assert made.parts_told < 200
        slow.read_again()
        for _ in range(302):
            assert (await slow.hear())[0] == TEXT
        assert made.parts_told == 300


async def test_who_stops_reading_in_the_midst_of_a_snapshot_is_cut_off_and_all_is_freed():
    async with serving(heartbeat_s=0.15) as server, raw_socket(server.port) as slow:
        server.services.config = server.hub.settings = quick(server)
        server.subscriptions.parts = [PAGE] * 300
        await slow.shake_hands()
        slow.read_nothing()
        slow.writer.write(subscribe())
        await until(lambda: server.hub.disconnects[Leave.TIMEOUT])
        assert server.subscriptions.made[0].closed
        assert server.hub.subscriptions == 0
        await until(lambda: not server.hub.connections)


def quick(server: StreamServer, *, timeout_s: float = 0.6) -> Any:
    """The same settings with a time-out that no operator would be allowed."""
    config = server.services.config
    object.__setattr__(config, "stream_timeout_s", timeout_s)
    return config


async def test_who_answers_no_ping_is_cut_off_and_who_does_stays():
    async with serving(heartbeat_s=0.15) as server, connected(server) as fine, raw_socket(server.port) as mute:
        quick(server)
        await mute.shake_hands()
        answering = asyncio.create_task(fine.hear())
        assert await mute.hear_close() == 4008
        await mute.hear_end()
        await until(lambda: server.hub.disconnects[Leave.TIMEOUT] == 1)
        await asyncio.sleep(1)
        await fine.say(op="ping")
        assert await answering == {"type": "pong"}
        assert server.hub.disconnects[Leave.TIMEOUT] == 1


async def test_a_message_too_large_ends_the_connection_however_it_is_cut_up():
    async with serving(stream_message_bytes=1024) as server:
        whole = frame(TEXT, b"x" * 1025)
        pieces = frame(TEXT, b"x", last=False) + frame(0, b"x" * 600, last=False) * 2
        binary = frame(BINARY, b"x" * 2000)
        beginning = frame(TEXT, b"x" * (1 << 20))[:5000]
        for message in (whole, pieces, binary, beginning):
            async with raw_socket(server.port) as socket:
                await socket.shake_hands()
                socket.writer.write(message)
                assert await socket.hear_close() == 1009
        assert server.hub.disconnects[Leave.TOO_BIG] == 4
        async with raw_socket(server.port) as socket:
            await socket.shake_hands()
            socket.writer.write(frame(TEXT, b" " * 1008 + b'{"op": "ping"}  '))
            assert await socket.hear() == (TEXT, b'{"type":"pong"}')


FLOODS = {
    "messages": frame(TEXT, b'{"op": "ping"}') * 100,
    "pings": frame(PING, b"x") * 100,
    "pongs": frame(PONG) * 100,
    "pieces": frame(TEXT, last=False) + frame(0, last=False) * 100,
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_too_many_frames_are_an_error_and_more_the_end(kind: str):
    async with serving(stream_message_rate=1, stream_message_burst=10) as server, raw_socket(server.port) as socket:
        await socket.shake_hands()
        socket.writer.write(FLOODS[kind])
        assert await socket.hear_close() == 1008
        assert server.hub.disconnects[Leave.RATE] == 1
        await until(lambda: not server.hub.clients)


async def test_a_message_too_many_is_dropped_with_an_error_before_the_client_must_go():
    async with serving(stream_message_rate=0.1, stream_message_burst=3) as server, connected(server) as socket:
        told = [await socket.ask(op="ping") for _ in range(6)]
        assert [one.get("code") for one in told] == [None] * 3 + ["rate_limited"] * 3
        await socket.say(op="ping")
        assert await socket.closing_code() == 1008


NONSENSE = [
    (b"\x83\x80" + bytes(4), 1002),
    (b"\xc1\x80" + bytes(4), 1002),
    (b"\x81\x01x", 1002),
    (frame(0, b"x"), 1002),
    (frame(TEXT, b"\xff"), 1007),
    (frame(CLOSE, b"\x00\x01"), 1002),
]


@pytest.mark.parametrize(("frames", "code"), NONSENSE)
async def test_frames_that_are_none_end_the_connection(frames: bytes, code: int):
    async with serving() as server, raw_socket(server.port) as socket:
        await socket.shake_hands()
        socket.writer.write(frames)
        assert await socket.hear_close() == code
        await socket.hear_end()
        await until(lambda: not server.hub.connections)


async def test_the_end_of_the_server_is_told_with_1001_and_mute_clients_do_not_hold_it_up():
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving())
        fine = await stack.enter_async_context(connected(server))
        await fine.subscribe()
        server.subscriptions.parts = [PAGE] * 300
        for _ in range(20):
            mute = await stack.enter_async_context(raw_socket(server.port))
            await mute.shake_hands()
            mute.read_nothing()
            mute.writer.write(subscribe())
        await until(lambda: sum(one.parts_told for one in server.subscriptions.made) > 40)
        began = time.monotonic()
        server.stop.set()
        assert await fine.closing_code() == 1001
        async with asyncio.timeout(20):
            await server.ended.wait()
        assert time.monotonic() - began < 4
        assert server.hub.disconnects[Leave.STOPPING] == 21
        assert not server.hub.connections
        assert all(one.closed for one in server.subscriptions.made)


async def test_a_crowd_that_comes_at_once_is_not_let_loose_on_the_database():
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving())
        server.subscriptions.gate = asyncio.Event()
        for _ in range(6):
            socket = await stack.enter_async_context(raw_socket(server.port))
            await socket.shake_hands()
            socket.writer.write(b"".join(subscribe(str(number)) for number in range(40)))
        await until(lambda: (server.subscriptions.opening, server.hub.subscriptions) == (OPENINGS, 240))
        server.subscriptions.gate.set()
        await until(lambda: len(server.subscriptions.live) == 240)
        assert server.subscriptions.most_opening == OPENINGS


class Child:
    """A server in a process of its own, since its memory is measured."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, pid: int) -> None:
        self.process, self.port, self._pid = process, port, pid

    @property
    def megabytes(self) -> float:
        text = Path(f"/proc/{self._pid}/status").read_text("ascii")
        found = re.search(r"VmRSS:\s+(\d+)", text)
        assert found
        return int(found[1]) / 1024

    async def get(self, path: str) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        async with asyncio.timeout(60):
            answer = (await reader.read()).decode()
        writer.close()
        return answer.partition("\r\n\r\n")[2]

    async def held(self) -> dict[str, int]:
        held: dict[str, int] = json.loads(await self.get("/held"))
        return held


@pytest.fixture
async def child() -> AsyncIterator[Child]:
    if not Path("/proc/self/status").exists():
        pytest.skip("only where there is /proc")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.support.stream_child", json.dumps({"stream_queue_items": 2_000, "server": chosen_server()})),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        line = await process.stdout.readline()
        await process.stdout.readline()
    yield Child(process, *map(int, line.split()))
    if process.returncode is None:
        process.kill()
    await process.communicate()


LOUD = {
    "messages": (b"", frame(TEXT, b"x" * 60_000)),
    "small messages": (b"", frame(TEXT, b'{"op": "ping"}') * 3_000),
    "an endless message in pieces": (frame(TEXT, last=False), frame(0, b"x" * 60_000, last=False)),
    "an endless frame": (frame(TEXT, b"x" * (1 << 20))[:2] + (1 << 40).to_bytes(8) + bytes(4), b"x" * 60_000),
    "pings": (b"", frame(PING, b"x" * 120) * 500),
}


@pytest.mark.parametrize("kind", LOUD)
async def test_a_gigabyte_of_frames_does_not_fill_the_memory(child: Child, kind: str):
    before = child.megabytes
    most, first, again = before, *LOUD[kind]
    async with raw_socket(child.port) as socket:
        await socket.shake_hands()
        socket.read_nothing()
        socket.writer.write(first)
        try:
            for number in range((1 << 30) // len(again)):
                socket.writer.write(again)
                await socket.writer.drain()
                if number % 100 == 0:
                    most = max(most, child.megabytes)
        except ConnectionError:
            # It was cut off, and that is all right.
            pass
        most = max(most, child.megabytes)
        assert await child.get("/healthz") == '{"status":"ok"}'
    assert most - before < MOST_MB
    assert child.process.returncode is None


async def test_two_hundred_clients_that_never_read_do_not_fill_the_memory(child: Child):
    await child.get("/parts/100")
    before = child.megabytes
    most = before
    async with AsyncExitStack() as stack:
        for number in range(200):
            socket = await stack.enter_async_context(raw_socket(child.port))
            await socket.shake_hands()
            socket.read_nothing()
            for other in range(10):
                socket.writer.write(subscribe(f"s{other}"))
            if number == 99:
                # The others get no snapshot, so that they are live.
                await child.get("/parts/0")
        async with asyncio.timeout(30):
            while (await child.held())["live"] < 1_000:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.05)
        for _ in range(10):
            await child.get("/tell/400")
            most = max(most, child.megabytes)
        # Those that were too slow are gone, though they never read that, and the rest is waited for.
        held = await child.held()
        assert (held["live"], held["told"] < 100 * 100) == (0, True)
        began = time.monotonic()
        child.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            _, errors = await child.process.communicate()
        assert time.monotonic() - began < 5
    assert most - before < MOST_MB
    assert child.process.returncode == 0
    assert b"Traceback" not in errors, errors.decode()
