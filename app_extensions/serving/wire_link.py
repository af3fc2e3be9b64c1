"""A WebSocket beneath the application: what servers' own are missing where clients are many, slow or hostile.

* A message that is too large ends the connection, before more of it is collected.
* Pongs count as a sign of life.
* Frames are written straight to the transport, and a client that reads nothing can be cut off.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any, Protocol

from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.utilities import LocalProtocolError

#: Of a client that was told to go, no more than this is looked at for its own closing frame.
FAREWELL_BYTES = 64 << 10

#: As ASGI has it.
Message = dict[str, str | bytes | None]


class Framing(Protocol):
    """What is needed of wsproto's connections."""

    @property
    def state(self) -> ConnectionState:
        """Who has closed it."""
        ...

    def send(self, event: Event) -> bytes:
        """The frames of an event."""
        ...

    def events(self) -> Iterator[Event]:
        """What the client has said since."""
        ...


def _nothing() -> None:
    """Nobody listens yet."""


class WireLink:
    """The `Link` of one connection. The server hands what it reads to wsproto, and takes `messages()` from here."""

    def __init__(
        self,
        transport: asyncio.WriteTransport,
        framing: Callable[[], Framing | None],
        drained: Callable[[], Awaitable[None]],
        *,
        message_bytes: int,
    ) -> None:
        """Take the connection's parts.

        Args:
            transport: of the connection.
            framing: wsproto's connection; None before there is one.
            drained: waits until the transport takes more; raises ConnectionError when it is gone.
            message_bytes: longest message of the client.
        """
        self._transport, self._framing, self._drained = transport, framing, drained
        self._message_bytes = message_bytes
        self._parts: list[Any] = []
        self._size = 0
        self._patience = FAREWELL_BYTES
        self._aborted: asyncio.Event | None = None
        self._loop = asyncio.get_running_loop()
        self.heard_s = self._loop.time()
        self.on_frame: Callable[[], object] = _nothing
        self.on_too_big: Callable[[], None] = self.abort
        #: Whether the client has closed it, or spoken nonsense.
        self.is_over = False

    @property
    def is_congested(self) -> bool:
        """Whether the client reads less than it was sent."""
        return self._transport.get_write_buffer_size() > self._transport.get_write_buffer_limits()[1]

    def write(self, frames: bytes) -> None:
        """Send whole frames."""
        framing = self._framing()
        if framing is not None and framing.state is ConnectionState.OPEN:
            self._put(frames)

    async def drained(self) -> None:
        """Wait until the client has taken what it was sent."""
        await self._drained()

    def close(self, code: int, reason: str) -> None:
        """Send a closing frame, once. Whoever does must `abort()` later: the client may not answer."""
        if self._aborted is not None:
            return
        self._aborted = asyncio.Event()
        self._forget()
        framing = self._framing()
        if framing is not None:
            with suppress(LocalProtocolError):
                self._put(framing.send(CloseConnection(code=code, reason=reason)))

    def abort(self) -> None:
        """Cut the connection."""
        if self._aborted is not None:
            self._aborted.set()
        self._transport.abort()

    def has_patience(self, size: int) -> bool:
        """Whether so many bytes more are looked at: all that come before `close()`, and few after it."""
        if self._aborted is None:
            return True
        self._patience -= size
        return self._patience >= 0

    async def until_aborted(self) -> None:
        """Wait for `abort()` after `close()`."""
        assert self._aborted is not None
        await self._aborted.wait()

    def messages(self) -> Iterator[Message]:
        """The whole messages among what was read; control frames are answered on the way. May be left half-way."""
        self.heard_s = self._loop.time()
        framing = self._framing()
        assert framing is not None
        for event in framing.events():
            if isinstance(event, TextMessage | BytesMessage):
                if self._aborted is None and (message := self._take(event)) is not None:
                    yield message
            elif isinstance(event, CloseConnection):
                self.is_over = True
                self._answer(framing, event)
                return
            else:
                self.on_frame()
                if isinstance(event, Ping) and framing.state is ConnectionState.OPEN:
                    self._put(framing.send(event.response()))

    def _take(self, event: TextMessage | BytesMessage) -> Message | None:
        """A message that is whole; None where there is more to come."""
        data = event.data
        self._size += len(data.encode()) if isinstance(data, str) and not data.isascii() else len(data)
        if self._size > self._message_bytes:
            self._forget()
            self.on_too_big()
            return None
        self._parts.append(data)
        if not event.message_finished:
            self.on_frame()
            return None
        parts = self._parts
        self._forget()
        if isinstance(data, str):
            return {"type": "websocket.receive", "text": "".join(parts), "bytes": None}
        return {"type": "websocket.receive", "text": None, "bytes": b"".join(parts)}

    def _answer(self, framing: Framing, event: CloseConnection) -> None:
        """Close what the client has closed, or tell it what was wrong with its frames."""
        if framing.state is ConnectionState.REMOTE_CLOSING:
            self._put(framing.send(event.response()))
        elif framing.state is ConnectionState.OPEN:
            self._put(framing.send(CloseConnection(code=event.code)))

    def _put(self, frames: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(frames)

    def _forget(self) -> None:
        self._parts, self._size = [], 0
