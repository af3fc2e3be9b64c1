"""Serving: one process, one port, and an end within seconds of being told to stop, whatever clients do."""

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from typing import Any, TypeVar

from app import create_app
from app_extensions.serving.port import App, serve_asgi
from app_extensions.wiring import Services, running_services
from blueprints.context import STOPPING, STREAM
from config import BaseConfig
from domain.errors import CandleryError

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Of the time that the settings allow for ending, this much is kept for closing what requests used.
CLOSING_S = 1.0
#: What has not ended so long after the settings' time is ended by force: a thread stuck in a name look-up, for example.
FORCE_AFTER_S = 0.8
#: A client that takes nothing for so long is cut off.
USER_TIMEOUT_MS = 30_000
#: The kernel holds so much for a client that reads slowly, and not megabytes: what is too old is known here.
NOTSENT_BYTES = 128 << 10


class PortInUseError(CandleryError):
    """The address cannot be listened on."""


class InFlight:
    """An ASGI application that knows the tasks of its requests, so that those still running can be ended."""

    def __init__(self, app: App, ready: Callable[[], None]) -> None:
        """Take the application proper, and what is to be called once it serves."""
        self._app = app
        self._ready = ready
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass everything on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, self._telling(send))
            return
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        task = asyncio.current_task(self._loop)
        assert task is not None
        self._tasks.add(task)
        try:
            # A target without a path, `GET ?x`, is none that Quart can take.
            await self._app(scope if scope["path"] else {**scope, "path": "/"}, receive, send)
        finally:
            self._tasks.discard(task)

    def _telling(self, send: Any) -> Any:
        async def tell(message: Any) -> None:
            await send(message)
            if message["type"] == "lifespan.startup.complete":
                self._ready()

        return tell

    async def drain(self, timeout_s: float) -> None:
        """Wait for the requests under way, and end those that take longer."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        for task in self._tasks:
            task.cancel()


async def serve(config: BaseConfig) -> int:
    """Serve until SIGTERM or SIGINT; the exit code.

    Raises:
        CandleryError: it cannot start; says why in a line.
    """
    stop = asyncio.Event()
    with ExitStack() as held:
        _stop_on_signals(stop, force_after_s=config.shutdown_timeout_s + FORCE_AFTER_S)
        listening = bind(config.host, config.port)
        for sock in listening:
            held.callback(sock.close)
        async with AsyncExitStack() as stack:
            opening = stack.enter_async_context(running_services(config))
            services = await _unless(stop, asyncio.create_task(opening, name="open services"))
            if services is not None:
                await serve_app(config, services, listening, stop)
    log.info("stopped")
    return 0


def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets bound to every address of the host, not listening yet: clients are refused until the server is ready.

    Raises:
        PortInUseError: the address is taken, or none of this machine's.
    """
    bound: list[socket.socket] = []
    failure: OSError | None = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as exc:
        raise PortInUseError(f"{host} is no address of this machine: {exc.strerror}.") from exc
    for family, *_, address in dict.fromkeys(found):
        # With port 0 the first address chooses the port for all.
        target = (address[0], bound[0].getsockname()[1] if bound else port, *address[2:])
        try:
            bound.append(_bound(family, target))
        except OSError as exc:
            failure = exc
    if failure is not None and (not bound or failure.errno == errno.EADDRINUSE):
        for sock in bound:
            sock.close()
        raise PortInUseError(f"Cannot listen on {_url(host, port)}: {failure.strerror}.") from failure
    return bound


def _bound(family: int, target: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_BYTES)
        sock.bind(target)
    except OSError:
        sock.close()
        raise
    return sock


def _stop_on_signals(stop: asyncio.Event, *, force_after_s: float) -> None:
    """SIGTERM and SIGINT set the event; should the process still be there later, it is ended by force."""

    def told(number: int) -> None:
        if stop.is_set():
            return
        log.info("stopping on %s", signal.Signals(number).name)
        stop.set()
        timer = threading.Timer(force_after_s, _force)
        timer.daemon = True
        timer.start()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told, number)


def _force() -> None:
    log.error("the server did not end in time; it is ended by force")
    logging.shutdown()
    os._exit(1)


async def _unless(stop: asyncio.Event, task: asyncio.Task[T]) -> T | None:
    """The task's result; None where the event came first, and the task was cancelled and has ended."""
    stopping = asyncio.create_task(stop.wait(), name="wait for a signal")
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
    finally:
        stopping.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
    if not task.cancelled() and (failure := task.exception()) is not None:
        log.info("stopped while starting: %s", failure)
    return None


async def serve_app(
    config: BaseConfig, services: Services, listening: Sequence[socket.socket], stop: asyncio.Event
) -> None:
    """Serve the web application on bound sockets until the event is set, whatever clients do then."""
    address = _url(config.host, listening[0].getsockname()[1])
    web = create_app(config, services)
    web.extensions[STOPPING] = stop
    app = InFlight(web.asgi_app, ready=lambda: _announce(address))
    grace_s = max(0.0, config.shutdown_timeout_s - CLOSING_S)
    running = serve_asgi(
        app, listening, stop, server=config.server, grace_s=grace_s, message_bytes=config.stream_message_bytes
    )
    serving = asyncio.create_task(running, name="http server")
    stopping = asyncio.create_task(stop.wait(), name="wait for a signal")
    asyncio.get_running_loop().set_exception_handler(_but_lost_connections)
    try:
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            asyncio.get_running_loop().set_exception_handler(_but_cancellations)
            web.extensions[STREAM].stop()
            await app.drain(grace_s)
            await asyncio.wait({serving}, timeout=CLOSING_S / 2)
    finally:
        stopping.cancel()
        if not serving.done():
            # A client that reads nothing holds its connection open until it is cancelled once more.
            serving.cancel()
            await asyncio.wait({serving}, timeout=CLOSING_S / 2)
    if serving.done() and not serving.cancelled():
        serving.result()


def _but_cancellations(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Python 3.11 takes the cancelled task of a connection for a fault; here it is what was wanted."""
    if not isinstance(context.get("exception"), asyncio.CancelledError):
        _but_lost_connections(loop, context)


def _but_lost_connections(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A client that the system has given up, since it took nothing, is no fault; Hypercorn lets the error pass."""
    exc = context.get("exception")
    if isinstance(exc, OSError) and "client_connected_cb" in context.get("message", ""):
        log.info("a connection was lost: %s", exc)
    else:
        loop.default_exception_handler(context)


def _announce(address: str) -> None:
    log.info("ready at %s", address)
    sys.stdout.write(f"Candlery is ready: {address}\n")
    sys.stdout.flush()


def _url(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - what to show for it
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
