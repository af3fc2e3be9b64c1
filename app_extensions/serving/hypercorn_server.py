"""Hypercorn: HTTP/1.1, HTTP/2 and WebSockets."""

import asyncio
import socket
import sys
from collections.abc import Sequence
from typing import cast

from hypercorn.asyncio import serve as serve_hypercorn
from hypercorn.config import Config
from hypercorn.typing import Framework

from app_extensions.logging_setup import route_hypercorn
from app_extensions.serving import hypercorn_websocket
from app_extensions.serving.port import BACKLOG, KEEP_ALIVE_S, MAX_HEAD_BYTES, App, Limits

#: It waits so much longer than those who wait for the requests, who know more.
_LONGER_S = 0.25


async def serve(app: App, listening: Sequence[socket.socket], stop: asyncio.Event, *, limits: Limits) -> None:
    """See `Server`."""
    hypercorn_websocket.install()
    settings = Config()
    # The server closes what it is given, so it is given the sockets for good.
    settings.bind = [f"fd://{sock.detach()}" for sock in listening]
    settings.backlog = BACKLOG
    settings.graceful_timeout = limits.grace_s + _LONGER_S
    settings.keep_alive_timeout = KEEP_ALIVE_S
    # It would end a connection in the midst of a client's work after a thousand requests.
    settings.keep_alive_max_requests = sys.maxsize
    settings.h11_max_incomplete_size = MAX_HEAD_BYTES
    settings.include_server_header = False
    settings.websocket_max_message_size = limits.message_bytes
    route_hypercorn(settings)
    await serve_hypercorn(cast("Framework", app), settings, shutdown_trigger=stop.wait, mode="asgi")
