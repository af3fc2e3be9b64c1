"""What a web server must do for the application, and what holds for all of them."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple, Protocol, cast

#: Whatever speaks ASGI 3.
App = Callable[[Any, Any, Any], Awaitable[None]]

KEEP_ALIVE_S = 75
#: For the request line and headers: a page token for many symbols is long.
MAX_HEAD_BYTES = 64 << 10
BACKLOG = 512
#: Under this name the message that begins an answer may have its `WrittenHead`, for a server that can use it.
HEAD = "candlery.head"
_MODULES = {
    "hypercorn": "app_extensions.serving.hypercorn_server",
    "uvicorn": "app_extensions.serving.uvicorn_server",
}


@dataclass(frozen=True)
class Limits:
    """How long answers under way may take at the end, and how long a client's WebSocket message may be."""

    grace_s: float
    message_bytes: int


class WrittenHead(NamedTuple):
    """The headers of an answer as they go over the wire in HTTP/1.1, checked already, for a body of so many bytes."""

    lines: bytes
    length: int


def written(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Headers as they go over the wire."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


class Server(Protocol):
    """A web server."""

    async def __call__(
        self, app: App, listening: Sequence[socket.socket], stop: asyncio.Event, *, limits: Limits
    ) -> None:
        """Serve on sockets that listen, and close them, until the event is set and answers under way are sent.

        The application's lifespan is opened before the first connection and closed after the last one. The scope of a
        WebSocket has its `Link`. Being cancelled ends it at once, whatever clients do.
        """
        ...


async def serve_asgi(
    app: App,
    sockets: Sequence[socket.socket],
    stop: asyncio.Event,
    *,
    server: str = "hypercorn",
    grace_s: float = 3.0,
    message_bytes: int = 64 << 10,
) -> None:
    """Serve any ASGI application on bound sockets as the product is served, until the event is set.

    Args:
        app: the application.
        sockets: they are closed in the end.
        stop: ends it.
        server: the server's name, as in the settings.
        grace_s: for answers under way.
        message_bytes: longest message of a WebSocket client.
    """
    chosen = cast("Server", import_module(_MODULES[server]).serve)
    for sock in sockets:
        sock.listen(BACKLOG)
    await chosen(app, sockets, stop, limits=Limits(grace_s, message_bytes))
