"""WebSocket clients that cost next to nothing: they count what comes and when, and understand none of it."""

import asyncio
import base64
import os
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import msgspec

_TEXT, _CLOSE, _PING = 0x81, 0x88, 0x89
#: An empty one, with a mask of zeros.
_PONG = b"\x8a\x80" + bytes(4)
_SHORT, _LONG = 126, 127
_JOIN_TIMEOUT_S = 60.0
#: Sockets that connect at once.
_ABREAST = 100


class Client(asyncio.Protocol):
    """One socket. `wanted` says of a text frame whether it counts."""

    def __init__(self, wanted: Callable[[bytes], bool]) -> None:
        """Begin with nothing."""
        self._wanted = wanted
        self._buffer = b""
        self._upgraded = False
        self._transport: asyncio.Transport | None = None
        self.opened = asyncio.Event()
        #: Frames that counted, and when each came, by the clock of all processes of this machine.
        self.arrivals: list[float] = []
        self.is_live = False
        self.lost: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way to send."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def greet(self, host: str, path: str) -> None:
        """Ask for the upgrade."""
        key = base64.b64encode(os.urandom(16)).decode()
        self._write(
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )

    def send(self, text: bytes) -> None:
        """Send a text frame of less than 64 KiB; a mask of zeros is a mask, too."""
        size = len(text)
        head = bytes((_TEXT, 0x80 | size)) if size < _SHORT else struct.pack("!BBH", _TEXT, 0x80 | _SHORT, size)
        self._write(head + bytes(4) + text)

    def data_received(self, data: bytes) -> None:
        """Count the frames in it."""
        now_s = time.perf_counter()
        data = self._buffer + data
        at = 0 if self._upgraded else self._end_of_head(data)
        while self._upgraded and len(data) >= at + 2:
            size, start = data[at + 1], at + 2
            if size == _SHORT and len(data) >= at + 4:
                size, start = int.from_bytes(data[at + 2 : at + 4]), at + 4
            elif size == _LONG and len(data) >= at + 10:
                size, start = int.from_bytes(data[at + 2 : at + 10]), at + 10
            if len(data) < start + size:
                break
            self._take(data[at], data[start : start + size], now_s)
            at = start + size
        self._buffer = data[at:]

    def connection_lost(self, exc: Exception | None) -> None:
        """Remember it: nobody may leave while it is measured."""
        self.lost = self.lost or repr(exc)

    def close(self) -> None:
        """Go without a word."""
        if self._transport is not None:
            self._transport.abort()

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def _end_of_head(self, data: bytes) -> int:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return 0
        if not data.startswith(b"HTTP/1.1 101"):
            self.lost = data[:end].decode(errors="replace")
        self._upgraded = True
        self.opened.set()
        return end + 4

    def _take(self, kind: int, payload: bytes, now_s: float) -> None:
        if kind == _CLOSE:
            self.lost = f"closed with {int.from_bytes(payload[:2])}"
        elif kind == _PING:
            self._write(_PONG)
        elif kind == _TEXT:
            self.is_live = self.is_live or b'"type":"live"' in payload
            if self._wanted(payload):
                self.arrivals.append(now_s)


class Flock:
    """Many clients of one server."""

    def __init__(self, clients: list[Client]) -> None:
        """Take those that have joined."""
        self.clients = clients

    async def until_live(self, *, timeout_s: float = 60) -> None:
        """Wait until each client was told that its subscription is live."""
        async with asyncio.timeout(timeout_s):
            while not all(client.is_live for client in self.clients):  # noqa: ASYNC110 - many sockets
                await asyncio.sleep(0.01)

    async def until(self, count: int, *, timeout_s: float = 60) -> None:
        """Wait until each client has got so many frames that count.

        Raises:
            RuntimeError: somebody left, or it took too long.
        """
        ends_s = time.perf_counter() + timeout_s
        while any(len(client.arrivals) < count for client in self.clients):
            gone = next((client.lost for client in self.clients if client.lost), None)
            if gone is not None:
                raise RuntimeError(f"a client was lost: {gone}")
            if time.perf_counter() > ends_s:
                short = sum(len(client.arrivals) < count for client in self.clients)
                raise RuntimeError(f"{short} of {len(self.clients)} clients did not get {count} bars")
            await asyncio.sleep(0.005)

    @property
    def last_arrival_s(self) -> float:
        """When the last frame came to the last client."""
        return max(client.arrivals[-1] for client in self.clients)

    def forget(self) -> None:
        """Count from nothing again."""
        for client in self.clients:
            client.arrivals.clear()


async def subscribed(crowd: Flock, symbols: Iterable[str]) -> None:
    """The only client subscribes to the minutes of these symbols of the exchange on the loopback."""
    [client] = crowd.clients
    for number, symbol in enumerate(symbols):
        asked = {"op": "subscribe", "id": str(number), "market": "crypto", "provider": "binance", "symbol": symbol}
        client.send(msgspec.json.encode(asked | {"timeframe": "1m"}))
        await asyncio.sleep(0.02)


@asynccontextmanager
async def flock(
    address: tuple[str, int],
    path: str,
    count: int,
    *,
    hello: bytes | None,
    wanted: Callable[[bytes], bool],
) -> AsyncIterator[Flock]:
    """So many clients that have joined, and said hello; they leave at the end of the block."""
    places = asyncio.Semaphore(_ABREAST)
    loop = asyncio.get_running_loop()
    clients: list[Client] = []

    async def join() -> None:
        async with places:
            _, client = await loop.create_connection(lambda: Client(wanted), *address)
            clients.append(client)
            client.greet(f"{address[0]}:{address[1]}", path)
            await client.opened.wait()
            if hello is not None:
                client.send(hello)

    try:
        async with asyncio.timeout(_JOIN_TIMEOUT_S):
            await asyncio.gather(*(join() for _ in range(count)))
        yield Flock(clients)
    finally:
        for client in clients:
            client.close()
        await asyncio.sleep(0.1)
