"""A server with a stream, told on stdin what to publish: `python -m bench.stream_server candlery|bare SCRATCH`.

Its first line on stdout ends with the port that it listens on; then it answers each line of stdin with one line. It
ends with its stdin.
Times are of the clock that all processes of the machine share.
"""

import asyncio
import os
import resource
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from hypercorn.asyncio import serve
from hypercorn.config import Config

from app_extensions import event_loop
from app_extensions.embedded_postgres import EmbeddedPostgres
from app_extensions.server import bind, serve_app
from app_extensions.wiring import Services, running_services
from bench.clock import clock_of_environment
from bench.processes import gone
from config import load_config
from domain.bar import Bar
from domain.series import Series
from domain.timeframe import MINUTE_MS
from services.live import Settled

PATH = "/api/v1/stream"
SERIES = Series("demo", "sim", "DEMO/USD")
#: What a client says first: closed bars only, since the simulated market's own forming ones are not to be counted.
HELLO = msgspec.json.encode({"op": "subscribe", "id": "a", **SERIES._asdict(), "timeframe": "1m", "bars": "closed"})
_CANDLERY, _BARE = "candlery", "bare"
_DATABASE = "CANDLERY_DATABASE_URL"
_START_S, _STOP_S = 60.0, 10.0
_MANY_FILES = 16_384
#: Above that of any claim: what the simulated market's own follower says is old from then on.
_FENCE = 1 << 40
#: What Candlery sends for one closed bar.
_FRAME = '{"id":"a","type":"bar","bar":[%d,20000.5,20010.5,19990.5,20005.25,12.5],"state":"closed"}'


class Order(msgspec.Struct, frozen=True):
    """What to publish: so many bars, so far apart. With none it only says what the process takes."""

    bars: int = 0
    pause_s: float = 0.0


class Report(msgspec.Struct, frozen=True):
    """When each bar was published, and what the process has taken: seconds of the processor, bytes of memory."""

    published_s: list[float]
    cpu_s: float
    resident: int


Publish = Callable[[], Awaitable[None]]


async def obey(publish: Publish) -> None:
    """Do what stdin says until it ends."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        order = msgspec.json.decode(line, type=Order)
        times: list[float] = []
        for _ in range(order.bars):
            times.append(time.perf_counter())
            await publish()
            await asyncio.sleep(max(0.0, times[-1] + order.pause_s - time.perf_counter()) if order.pause_s else 0)
        _say(Report(times, time.process_time(), _resident()))


class BareStream:
    """The control: an ASGI application that accepts everybody and sends everybody the same text."""

    def __init__(self) -> None:
        """Nobody is there yet."""
        self._sends: set[Any] = set()
        self._number = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One connection."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        await receive()
        await send({"type": "websocket.accept"})
        self._sends.add(send)
        while (await receive())["type"] != "websocket.disconnect":
            pass
        self._sends.discard(send)

    async def publish(self) -> None:
        """Send one bar to all."""
        self._number += 1
        message = {"type": "websocket.send", "text": _FRAME % (self._number * MINUTE_MS + 1_700_000_000_000)}
        for send in tuple(self._sends):
            await send(message)

    @staticmethod
    async def _live(receive: Any, send: Any) -> None:
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})


async def run_bare() -> None:
    """Serve the control with Hypercorn as it is."""
    app, ended = BareStream(), asyncio.Event()
    [listening] = bind("127.0.0.1", 0)
    port = listening.getsockname()[1]
    listening.listen(4096)
    settings = Config()
    settings.bind = [f"fd://{listening.detach()}"]
    settings.backlog = 4096
    settings.loglevel = "warning"
    serving = asyncio.create_task(serve(app, settings, shutdown_trigger=ended.wait, mode="asgi"))
    sys.stdout.write(f"ready: http://127.0.0.1:{port}\n")
    sys.stdout.flush()
    await obey(app.publish)
    ended.set()
    await asyncio.wait({serving}, timeout=_STOP_S)


async def run_candlery(scratch: Path) -> None:
    """Serve Candlery whole, on an embedded database where no other is named, by the clock that it is given."""
    async with AsyncExitStack() as stack:
        settings = {"CANDLERY_ENV": "testing", "CANDLERY_LOG_LEVEL": "warning", **os.environ}
        if not settings.get(_DATABASE):
            server = EmbeddedPostgres(scratch / "postgres")
            stack.push_async_callback(server.close)
            await server.open()
            settings[_DATABASE] = server.dsn
        config = load_config(settings, env_file=None)
        services = await stack.enter_async_context(running_services(config, clock=clock_of_environment()))
        ended = asyncio.Event()
        listening = bind("127.0.0.1", 0)
        serving = asyncio.create_task(serve_app(config, services, listening, ended))
        await obey(lambda: _publish(services))
        ended.set()
        await serving


async def _publish(services: Services) -> None:
    """Say that one more minute is closed, as its follower would."""
    stored = await services.store.find_series(SERIES) if not _known else None
    if stored is not None:
        _known.append(stored.id)
    [view] = services.subscriptions.overview()
    assert view.settled_ms is not None
    start_ms = view.settled_ms
    bar = Bar(start_ms, 20000.5, 20010.5, 19990.5, 20005.25, 12.5)
    services.broadcast.publish(Settled(_known[0], _FENCE, start_ms, start_ms + MINUTE_MS, (bar,)))


#: The number of the series, once it was looked up.
_known: list[int] = []


class Remote:
    """A server in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        """Take what was started."""
        self._process = process
        self.pid = process.pid
        self.address = ("127.0.0.1", port)

    async def order(self, *, bars: int = 0, pause_s: float = 0.0) -> Report:
        """Have bars published; when they were."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(Order(bars, pause_s)) + b"\n")
        return msgspec.json.decode(await self._process.stdout.readline(), type=Report)


@asynccontextmanager
async def running(kind: str, scratch: Path, settings: Mapping[str, str] | None = None) -> AsyncIterator[Remote]:
    """A server for the block: `candlery`, with these settings, or `bare`."""
    await asyncio.to_thread(scratch.mkdir, parents=True, exist_ok=True)
    pipe = asyncio.subprocess.PIPE
    command = [sys.executable, "-m", __name__, kind, str(scratch)]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=pipe, stdout=pipe, limit=1 << 24, env={**os.environ, **(settings or {})}
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_START_S):
            line = await process.stdout.readline()
        yield Remote(process, int(line.rpartition(b":")[2]))
    finally:
        process.stdin.close()
        await gone(process)


def allow_many_files() -> None:
    """Let this process have as many sockets as the machine allows it, up to what is needed."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MANY_FILES if most == resource.RLIM_INFINITY else min(_MANY_FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _say(report: Report) -> None:
    sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    sys.stdout.flush()


def _resident() -> int:
    """Bytes of memory that are in use."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    allow_many_files()
    if sys.argv[1] == _BARE:
        event_loop.run(run_bare())
    else:
        event_loop.run(run_candlery(Path(sys.argv[2])))
