"""The way to one WebSocket client, as the server gives it to the application, and how frames are written."""

import struct
from collections.abc import Awaitable, Callable
from typing import Protocol

#: Under this name the scope of a WebSocket has its `Link` among the extensions.
LINK = "candlery.link"
#: Under this name a handler leaves in the scope what is to be run with the client: it is called with `Receive`.
STAY = "candlery.stay"

#: Waits for the client's next message. It must be awaited all the time: that is how the client's end is learnt.
#: Raises `ClientGoneError` at the end.
Receive = Callable[[], Awaitable[str | bytes]]

#: A ping without words (RFC 6455, 5.5.2): every client answers it by itself as long as it reads.
PING = b"\x89\x00"
_TEXT = 0x81
_SHORT, _LONG = 126, 127
_MOST_SHORT, _MOST_MIDDLE = 125, 0xFFFF


class ClientGoneError(Exception):
    """The client's connection has ended."""


class Link(Protocol):
    """One connection. Nothing of it waits or raises but `drained()`."""

    #: By the loop's clock: when anything was heard of the client last.
    heard_s: float
    #: Told of each frame that is no whole message, and of a message that is too large.
    on_frame: Callable[[], object]
    on_too_big: Callable[[], None]

    @property
    def is_congested(self) -> bool:
        """Whether the client reads less than it was sent."""
        ...

    def write(self, frames: bytes) -> None:
        """Send whole frames, at once as far as the client takes them."""
        ...

    async def drained(self) -> None:
        """Wait until the client has taken what it was sent.

        Raises:
            ConnectionError: it is gone.
        """
        ...

    def close(self, code: int, reason: str) -> None:
        """Send a closing frame; what comes of the client after this is dropped, but for its answer."""
        ...

    def abort(self) -> None:
        """Cut the connection, whatever is still to be sent."""
        ...


def text_frame(text: str) -> bytes:
    """One text message as the server's one frame (RFC 6455, 5.2)."""
    payload = text.encode()
    size = len(payload)
    if size <= _MOST_SHORT:
        return struct.pack("!BB", _TEXT, size) + payload
    if size <= _MOST_MIDDLE:
        return struct.pack("!BBH", _TEXT, _SHORT, size) + payload
    return struct.pack("!BBQ", _TEXT, _LONG, size) + payload
