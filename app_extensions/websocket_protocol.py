"""WebSockets beneath the application: what Hypercorn's own are missing where clients are many, slow or hostile.

* No permessage-deflate: it is negotiated with everybody who offers it, and takes some 300 KB a client.
* A message that is too large ends the connection; Hypercorn goes on collecting it.
* Pongs count as a sign of life; Hypercorn drops them without a word.
* Frames are written without a task, a lock and five objects each, and a client that reads nothing can be cut off.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

from hypercorn.protocol import h2, h11
from hypercorn.protocol.events import Data, Event, Request, StreamClosed
from hypercorn.protocol.ws_stream import ASGIWebsocketState, FrameTooLargeError, WSStream
from hypercorn.typing import AppWrapper
from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.utilities import LocalProtocolError

from blueprints.stream_link import LINK

_EXTENSIONS = b"sec-websocket-extensions"
#: Of a client that was told to go, no more than this is looked at for its own closing frame.
FAREWELL_BYTES = 64 << 10


def install() -> None:
    """Let Hypercorn make its WebSockets of this kind."""
    for module in (h11, h2):
        module.WSStream = LinkedStream  # type: ignore[attr-defined]


def _nothing() -> None:
    """Nobody listens yet."""


class LinkedStream(WSStream):
    """A WebSocket that is its application's `Link`, over HTTP/1.1; over HTTP/2 there is none."""

    def __init__(self, app: Any, *args: Any) -> None:
        """Take what Hypercorn gives."""
        super().__init__(app, *args)
        self._app = app
        self.app = cast("AppWrapper", self._with_link)
        self._loop = asyncio.get_running_loop()
        self.heard_s = self._loop.time()
        self.on_frame: Callable[[], object] = _nothing
        self.on_too_big: Callable[[], None] = self.abort
        self._aborted: asyncio.Event | None = None
        self._patience = FAREWELL_BYTES
        self._writer = _writer_behind(self.send)

    async def _with_link(self, scope: Any, *rest: Any) -> None:
        if self._writer is not None:
            scope["extensions"][LINK] = self
        await self._app(scope, *rest)

    async def handle(self, event: Event) -> None:
        """Take an event of the connection."""
        if isinstance(event, Request):
            headers = [(name, value) for name, value in event.headers if name.lower() != _EXTENSIONS]
            event = replace(event, headers=headers)
        elif isinstance(event, Data) and self._aborted is not None:
            self._patience -= len(event.data)
            if self._patience < 0:
                # Taking no more holds the client up; dropping it unread would keep the processor busy.
                await self._aborted.wait()
                return
        await super().handle(event)

    @property
    def is_congested(self) -> bool:
        """Whether the client reads less than it was sent."""
        transport = self._transport
        return transport.get_write_buffer_size() > transport.get_write_buffer_limits()[1]

    def write(self, frames: bytes) -> None:
        """Send whole frames."""
        if self.state is ASGIWebsocketState.CONNECTED and self._aborted is None and not self._transport.is_closing():
            self._transport.write(frames)

    async def drained(self) -> None:
        """Wait until the client has taken what it was sent."""
        assert self._writer is not None
        await self._writer.drain()

    def close(self, code: int, reason: str) -> None:
        """Send a closing frame, once. Whoever does must `abort()` later: the client may not answer."""
        if self._aborted is not None:
            return
        with suppress(LocalProtocolError):
            frame = self.connection.send(CloseConnection(code=code, reason=reason))
            self.write(frame)
        self._aborted = asyncio.Event()
        self.buffer.clear()

    def abort(self) -> None:
        """Cut the connection."""
        if self._aborted is not None:
            self._aborted.set()
        self._transport.abort()

    @property
    def _transport(self) -> asyncio.WriteTransport:
        assert self._writer is not None
        return self._writer.transport

    async def _handle_events(self) -> None:
        self.heard_s = self._loop.time()
        for event in self.connection.events():
            if isinstance(event, TextMessage | BytesMessage):
                await self._take(event)
            elif isinstance(event, CloseConnection):
                await self._end(event)
            else:
                self.on_frame()
                if isinstance(event, Ping):
                    await self._send_wsproto_event(event.response())

    async def _take(self, event: TextMessage | BytesMessage) -> None:
        """A message, or a part of one."""
        if self._aborted is not None:
            return
        try:
            self.buffer.extend(event)
        except FrameTooLargeError:
            self.buffer.clear()
            self.on_too_big()
            return
        if not event.message_finished:
            self.on_frame()
            return
        message = self.buffer.to_message()
        self.buffer.clear()
        assert self.app_put is not None
        await self.app_put(message)

    async def _end(self, event: CloseConnection) -> None:
        """The client has closed it, or spoken nonsense."""
        if self.connection.state is ConnectionState.REMOTE_CLOSING:
            await self._send_wsproto_event(event.response())
        elif self.connection.state is ConnectionState.OPEN:
            self.write(self.connection.send(CloseConnection(code=event.code)))
        await self.send(StreamClosed(stream_id=self.stream_id))


def _writer_behind(send: Any) -> asyncio.StreamWriter | None:
    """Where a stream's `send` ends up; None where other streams share the connection."""
    protocol = send.__self__
    if type(protocol) is not h11.H11Protocol:
        return None
    server: Any = cast("Any", protocol.send).__self__
    return cast("asyncio.StreamWriter", server.writer)
