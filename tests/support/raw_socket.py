"""A WebSocket client that does what no library does: nothing, too much, or nonsense."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
WAIT_S = 20


def frame(kind: int, payload: bytes = b"", *, last: bool = True) -> bytes:
    """A frame of a client; a mask of zeros is a mask, too."""
    first, size = (0x80 if last else 0) | kind, len(payload)
    if size < 126:
        head = struct.pack("!BB", first, 0x80 | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", first, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", first, 0x80 | 127, size)
    return head + bytes(4) + payload


class RawSocket:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def shake_hands(self, path: str = "/api/v1/stream", *, more: str = "", behind: bytes = b"") -> str:
        """The head of the answer. `more` headers; bytes that follow at once."""
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        self.writer.write(
            f"{head}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{more}\r\n".encode() + behind
        )
        async with asyncio.timeout(WAIT_S):
            return (await self.reader.readuntil(b"\r\n\r\n")).decode()

    async def hear(self) -> tuple[int, bytes]:
        """The next frame: its first byte's low half, and its payload."""
        async with asyncio.timeout(WAIT_S):
            kind, size = await self.reader.readexactly(2)
            if size == 126:
                size = int.from_bytes(await self.reader.readexactly(2))
            elif size == 127:
                size = int.from_bytes(await self.reader.readexactly(8))
            return kind & 15, await self.reader.readexactly(size)

    async def hear_close(self) -> int:
        """Read to the closing frame; its code."""
        while True:
            kind, payload = await self.hear()
            if kind == CLOSE:
                return int.from_bytes(payload[:2])

    async def hear_end(self) -> None:
        """Read until the server has ended the connection."""
        async with asyncio.timeout(WAIT_S):
            try:
                while await self.reader.read(1 << 16):
                    pass
            except ConnectionError:
                return

    def read_nothing(self) -> None:
        """Take no byte any more."""
        self.reader._transport.pause_reading()  # type: ignore[attr-defined]

    def read_again(self) -> None:
        self.reader._transport.resume_reading()  # type: ignore[attr-defined]


@asynccontextmanager
async def raw_socket(port: int) -> AsyncIterator[RawSocket]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield RawSocket(reader, writer)
    finally:
        writer.transport.abort()
