"""The server as a process: it becomes ready, answers, and ends within seconds whatever its clients do."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from app_extensions import server
from tests.support.servers import chosen_server, each_server  # noqa: F401

#: What depends on the web server; the rest is the same on each.
on_each_server = pytest.mark.usefixtures("each_server")

ROOT = Path(__file__).resolve().parents[2]
#: From the signal to the end of the process.
MOST_S = 5.0
#: The server, with routes that misbehave.
SCRIPT = """
import asyncio, os, signal, sys, time
import app_extensions.server as server
from app_extensions import event_loop
from app_extensions.logging_setup import configure_logging
from config import load_config
from domain.errors import CandleryError
from quart import Response

make = server.create_app

def create_app(config, services):
    app = make(config, services)

    @app.get("/hang")
    async def hang():
        await asyncio.Event().wait()

    @app.get("/flood")
    async def flood():
        return Response(b"x" * (64 << 20))

    @app.get("/last")
    async def last():
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.3)
        return "the last words"

    @app.get("/stuck")
    async def stuck():
        await asyncio.to_thread(time.sleep, 300)

    return app

server.create_app = create_app
config = load_config(env_file=None)
configure_logging("INFO", "text")
try:
    sys.exit(event_loop.run(server.serve(config)))
except CandleryError as exc:
    sys.exit(f"candlery: {exc}")
"""


class Child:
    """A server process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.port = 0
        self._writers: list[asyncio.StreamWriter] = []

    async def ready(self) -> None:
        assert self.process.stdout is not None
        async with asyncio.timeout(60):
            line = (await self.process.stdout.readline()).decode()
        found = re.fullmatch(r"Candlery is ready: http://127\.0\.0\.1:(\d+)\n", line)
        assert found, (line, await self.errors())
        self.port = int(found[1])

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection that stays open until the test is over."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers.append(writer)
        return reader, writer

    async def send(self, head: bytes) -> asyncio.StreamReader:
        reader, writer = await self.connect()
        writer.write(head)
        await writer.drain()
        return reader

    async def get(self, path: str) -> tuple[int, bytes]:
        """One request on a connection of its own, to its end."""
        reader = await self.send(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        async with asyncio.timeout(30):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        return int(head.split()[1]), body

    async def end(self, number: int) -> float:
        """Seconds from the signal to the end."""
        began = time.monotonic()
        self.process.send_signal(number)
        async with asyncio.timeout(60):
            await self.process.wait()
        return time.monotonic() - began

    async def gone(self) -> None:
        """Leave nothing behind."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.communicate()
        for writer in self._writers:
            writer.transport.abort()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def errors(self) -> str:
        assert self.process.stderr is not None
        async with asyncio.timeout(30):
            return (await self.process.stderr.read()).decode()


Start = Callable[..., Awaitable[Child]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    children: list[Child] = []

    async def begin(*command: str, **settings: object) -> Child:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("CANDLERY_")}
        environ["CANDLERY_SERVER"] = chosen_server()
        environ |= {f"CANDLERY_{name.upper()}": str(value) for name, value in settings.items()}
        environ |= {"CANDLERY_PORT": environ.get("CANDLERY_PORT", "0"), "PYTHONPATH": str(ROOT)}
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = await asyncio.create_subprocess_exec(
            sys.executable, *(command or ("-c", SCRIPT)), cwd=tmp_path, env=environ, **pipes
        )
        children.append(Child(process))
        return children[-1]

    yield begin
    for child in children:
        await child.gone()


@on_each_server
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_server_answers_and_ends_cleanly_on_a_signal(start: Start, database_url: str, number: int):
    child = await start(database_url=database_url)
    await child.ready()
    assert await child.get("/healthz") == (200, b'{"status":"ok"}')
    assert (await child.get("/readyz"))[0] == 200
    await child.connect()
    reader = await child.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(30):
        await reader.readuntil(b'"ok"}')
    assert await child.end(number) < MOST_S
    assert child.process.returncode == 0
    errors = await child.errors()
    assert "Traceback" not in errors
    assert errors.rstrip().endswith("stopped")


@on_each_server
async def test_requests_that_never_end_and_clients_that_never_read_do_not_hold_up_the_end(
    start: Start, database_url: str
):
    child = await start(database_url=database_url)
    await child.ready()
    await child.send(b"GET /hang HTTP/1.1\r\nHost: x\r\n\r\n")
    flooded = await child.send(b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(30):
        await flooded.read(1)
    assert (await child.get("/healthz"))[0] == 200
    assert await child.end(signal.SIGTERM) < MOST_S
    assert child.process.returncode == 0
    assert "Traceback" not in await child.errors()


@on_each_server
async def test_a_request_under_way_is_finished(start: Start, database_url: str):
    child = await start(database_url=database_url)
    await child.ready()
    assert await child.get("/last") == (200, b"the last words")
    async with asyncio.timeout(30):
        assert await child.process.wait() == 0


@on_each_server
async def test_event_streams_end_at_once_and_do_not_hold_up_the_end(start: Start, database_url: str):
    child = await start(database_url=database_url, shutdown_timeout_s=60)
    await child.ready()
    body = b'{"market": "demo", "provider": "sim", "symbols": ["DEMO/USD"], "start": "2015-01-01"}'
    head = b"Host: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    made = await child.send(b"POST /api/v1/backfills HTTP/1.1\r\n" + head + body)
    async with asyncio.timeout(30):
        found = re.search(rb"location: (\S+)", await made.read())
    assert found
    streams = [await child.send(b"GET %s/events HTTP/1.1\r\nHost: x\r\n\r\n" % found[1]) for _ in range(3)]
    async with asyncio.timeout(30):
        for reader in streams:
            await reader.readuntil(b"event: progress")
    # Far less than the time that requests have to finish; those who work on the job have to stop too.
    assert await child.end(signal.SIGTERM) < 4 * MOST_S
    async with asyncio.timeout(30):
        rest = [await reader.read() for reader in streams]
    # Each was ended as answers are, and by nobody's mistake taken for the end of the job.
    assert [(text.endswith(b"\r\n0\r\n\r\n"), b"event: end" in text) for text in rest] == [(True, False)] * 3
    assert child.process.returncode == 0
    errors = await child.errors()
    assert "Traceback" not in errors, errors


@on_each_server
async def test_a_thread_that_is_stuck_is_ended_by_force(start: Start, database_url: str):
    child = await start(database_url=database_url, shutdown_timeout_s=0.5)
    await child.ready()
    await child.send(b"GET /stuck HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await child.get("/healthz"))[0] == 200
    assert await child.end(signal.SIGTERM) < MOST_S
    assert child.process.returncode == 1
    assert "ended by force" in await child.errors()


async def test_a_port_in_use_is_told_in_one_line(start: Start, database_url: str):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        child = await start("-m", "cli", "serve", database_url=database_url, port=port)
        errors = await child.errors()
        assert await child.process.wait() == 1
    assert errors == f"candlery: Cannot listen on http://127.0.0.1:{port}: Address already in use.\n"


async def test_an_address_of_another_machine_is_told_in_one_line(start: Start):
    child = await start("-m", "cli", "serve", host="192.0.2.1")
    errors = await child.errors()
    assert await child.process.wait() == 1
    assert errors.startswith("candlery: Cannot listen on http://192.0.2.1:0:")
    assert errors.count("\n") == 1


async def test_a_database_out_of_reach_is_told_and_ends_the_server(start: Start):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    child = await start("-m", "cli", "serve", database_url=f"postgresql://candlery@127.0.0.1:{port}/none")
    errors = await child.errors()
    assert await child.process.wait() == 1
    assert "candlery: The database cannot be reached" in errors
    assert "Traceback" not in errors


async def test_a_server_that_is_still_starting_can_be_stopped(start: Start):
    accepted = asyncio.Event()
    held: list[asyncio.StreamWriter] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)
        accepted.set()

    # A database that takes connections and says nothing.
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    child = await start(database_url=f"postgresql://candlery@127.0.0.1:{port}/none?sslmode=disable")
    async with asyncio.timeout(60):
        await accepted.wait()
    assert await child.end(signal.SIGTERM) < MOST_S
    assert child.process.returncode == 0
    assert "Traceback" not in await child.errors()
    for writer in held:
        writer.close()
    server.close()


async def test_with_the_embedded_database_the_command_serves_and_leaves_nothing_running(start: Start, tmp_path: Path):
    child = await start("-m", "cli", "serve", data_dir=tmp_path / "data")
    await child.ready()
    assert json.loads((await child.get("/health/db"))[1])["checks"]["database"]["ok"] is True
    await child.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
    assert await child.end(signal.SIGTERM) < MOST_S
    assert child.process.returncode == 0
    assert not (tmp_path / "data" / "postgres" / "postmaster.pid").exists()


GARBAGE = [
    b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET ?x=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /api/v1/ohlcv?symbol=\xff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /%ff%00?%zz=%f HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET http://other/healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n",
    b"GET /healthz HTTP/1.0\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: \xff\r\nConnection: close\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Request-ID: \xff\r\nConnection: close\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 50 + b"\r\n\r\n",
]


@on_each_server
async def test_garbage_on_the_wire_is_no_fault_of_ours(start: Start, database_url: str):
    child = await start(database_url=database_url)
    await child.ready()
    for garbage in GARBAGE:
        reader = await child.send(garbage)
        async with asyncio.timeout(30):
            answer = await reader.read()
        assert int(answer.split()[1]) < 500, (garbage[:80], answer)
    assert (await child.get("/healthz"))[0] == 200
    await child.end(signal.SIGTERM)
    assert "Traceback" not in await child.errors()


@on_each_server
async def test_head_answers_the_same_head_and_no_body(start: Start, database_url: str):
    child = await start(database_url=database_url)
    await child.ready()
    reader = await child.send(b"HEAD /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(30):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert b"content-length: 15" in head.lower()
    assert body == b""
    await child.end(signal.SIGTERM)


@pytest.mark.parametrize(
    ("context", "told"),
    [
        (
            {"message": "Unhandled exception in client_connected_cb", "exception": TimeoutError(110, "timed out")},
            ["INFO"],
        ),
        ({"message": "Unhandled exception in client_connected_cb", "exception": ValueError("a fault")}, ["ERROR"]),
        ({"message": "Task exception was never retrieved", "exception": TimeoutError(110, "timed out")}, ["ERROR"]),
    ],
)
async def test_only_a_connection_that_was_lost_is_no_fault(
    context: dict[str, object], told: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="app_extensions.server"):
        server._but_lost_connections(asyncio.get_running_loop(), context)
    assert [record.levelname for record in caplog.records] == told
