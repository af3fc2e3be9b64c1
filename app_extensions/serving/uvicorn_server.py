"""Uvicorn: HTTP/1.1 and WebSockets, several times as fast as Hypercorn; see docs/operating.md.

Only its protocols are used. Its `Server` would take over the signals, end the process by itself, wake up ten times a
second, and wait for clients.
"""

import asyncio
import logging
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, cast

from uvicorn.config import Config
from uvicorn.lifespan.on import LifespanOn
from uvicorn.server import ServerState

from app_extensions.serving import uvicorn_http
from app_extensions.serving.port import BACKLOG, KEEP_ALIVE_S, App, Limits
from app_extensions.serving.uvicorn_http import HttpProtocol
from app_extensions.serving.uvicorn_websocket import WebsocketProtocol
from domain.errors import CandleryError

if TYPE_CHECKING:
    from uvicorn._types import ASGIApplication

#: Those who wait for the requests know more; connections that are left so much later are cut.
_LONGER_S = 0.25
_LOOK_S = 0.02
_DATE_S = 1.0


async def serve(app: App, listening: Sequence[socket.socket], stop: asyncio.Event, *, limits: Limits) -> None:
    """See `Server`."""
    uvicorn_http.install()
    config = _config(app, limits)
    state = ServerState()
    async with AsyncExitStack() as stack:
        lifespan = LifespanOn(config)
        await lifespan.startup()
        if lifespan.should_exit:
            raise CandleryError("The application did not start; the log says why.")
        stack.push_async_callback(lifespan.shutdown)
        stack.callback(_cut, state)
        dating = asyncio.create_task(_tell_date(state), name="tell the date")
        stack.callback(dating.cancel)
        servers = await _listen(config, state, lifespan.state, listening)
        for server in servers:
            stack.callback(server.close)
        await stop.wait()
        for server in servers:
            server.close()
        await _part(state, limits.grace_s + _LONGER_S)


def _config(app: App, limits: Limits) -> Config:
    config = Config(
        cast("ASGIApplication", app),
        http=HttpProtocol,
        ws=WebsocketProtocol,
        interface="asgi3",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        ws_max_size=limits.message_bytes,
        ws_per_message_deflate=False,
        ws_ping_interval=None,
    )
    # It tells of each request for a WebSocket, whatever is said of access logs, and of its own steps.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    config.load()
    return config


async def _listen(
    config: Config, state: ServerState, app_state: dict[str, Any], listening: Sequence[socket.socket]
) -> list[asyncio.Server]:
    loop = asyncio.get_running_loop()

    def protocol() -> HttpProtocol:
        return HttpProtocol(config, state, app_state, loop)

    return [await loop.create_server(protocol, sock=sock, backlog=BACKLOG) for sock in listening]


async def _tell_date(state: ServerState) -> None:
    """Keep the header up to date that all answers begin with."""
    while True:
        state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        await asyncio.sleep(_DATE_S)


async def _part(state: ServerState, timeout_s: float) -> None:
    """Let connections end with the answers that are under way; the idle ones end now."""
    for connection in tuple(state.connections):
        connection.shutdown()
    loop = asyncio.get_running_loop()
    end_s = loop.time() + timeout_s
    while (state.connections or state.tasks) and loop.time() < end_s:  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(_LOOK_S)


def _cut(state: ServerState) -> None:
    """End what is left."""
    for task in tuple(state.tasks):
        task.cancel()
    for connection in tuple(state.connections):
        connection.transport.abort()
