"""The WebSocket of a Binance of one's own: minutes as Binance sends them, and whatever can befall a connection."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from aiohttp import WSMsgType, web

from domain.bar import Bar
from domain.clock import Clock
from domain.timeframe import MINUTE_MS
from tests.loopback.exchange import Listed, decimal, forming

_PATIENCE_S = 10.0


class Venue(Protocol):
    """Whose stream it is."""

    clock: Clock
    listed: dict[str, Listed]


class Frame(NamedTuple):
    """One recorded frame and when it came; seconds since the epoch."""

    at_s: float
    text: str


class Connection:
    """One client."""

    def __init__(self, socket: web.WebSocketResponse, request: web.Request) -> None:
        self.socket = socket
        self._request = request
        self.streams: set[str] = set()
        #: Neither reads nor answers any more, pings included.
        self.deaf = False

    async def send(self, text: str) -> None:
        if not self.deaf and not self.socket.closed:
            # A client that goes away meanwhile is no fault of ours.
            with contextlib.suppress(ConnectionError):
                await self.socket.send_str(text)

    def abort(self) -> None:
        """As if the line were cut."""
        assert self._request.transport is not None
        self._request.transport.abort()


class BinanceStream:
    """`SUBSCRIBE` and `UNSUBSCRIBE` of `<symbol>@kline_1m`; `told` are the requests as they came in."""

    def __init__(self, venue: Venue) -> None:
        self._venue = venue
        self.connections: list[Connection] = []
        self.told: list[dict[str, object]] = []
        #: Connections so far, those that ended included.
        self.opened = 0
        #: How often each stream was subscribed to.
        self.subscriptions: Counter[str] = Counter()
        #: Statuses that refuse the next handshakes, with headers.
        self.refusals: list[tuple[int, dict[str, str]]] = []
        #: Error bodies that answer the next requests.
        self.errors: list[dict[str, object]] = []
        #: Requests whose method is in here are not answered.
        self.unanswered: set[str] = set()
        self._changed = asyncio.Condition()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        if self.refusals:
            status, headers = self.refusals.pop(0)
            return web.Response(status=status, headers=headers)
        socket = web.WebSocketResponse(autoping=False, compress=False)
        await socket.prepare(request)
        connection = Connection(socket, request)
        self.connections.append(connection)
        self.opened += 1
        await self._change()
        try:
            async for message in socket:
                if connection.deaf:
                    continue
                if message.type is WSMsgType.PING:
                    await socket.pong(message.data)
                elif message.type is WSMsgType.TEXT:
                    await self._answer(connection, json.loads(message.data))
        finally:
            self.connections.remove(connection)
            await self._change()
        return socket

    async def _answer(self, connection: Connection, asked: dict[str, object]) -> None:
        self.told.append(asked)
        streams = asked.get("params")
        assert isinstance(streams, list)
        if self.errors:
            answer: dict[str, object] = {"error": self.errors.pop(0), "id": asked["id"]}
        else:
            answer = {"result": None, "id": asked["id"]}
            if asked["method"] == "SUBSCRIBE":
                connection.streams |= set(streams)
                self.subscriptions.update(streams)
            else:
                connection.streams -= set(streams)
        if asked["method"] not in self.unanswered:
            await connection.send(json.dumps(answer))
        await self._change()

    async def _change(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds that follows from connections and requests."""
        async with asyncio.timeout(_PATIENCE_S), self._changed:
            await self._changed.wait_for(holds)

    async def subscribed(self, *ids: str) -> None:
        """Wait until each of the symbols has a subscriber."""
        wanted = {stream_of(id_) for id_ in ids}
        await self.until(lambda: wanted <= self.streams)

    async def deserted(self) -> None:
        """Wait until there is no connection."""
        await self.until(lambda: not self.connections)

    @property
    def streams(self) -> set[str]:
        """What any client is subscribed to."""
        return {stream for connection in self.connections for stream in connection.streams}

    # What it says

    async def say(self, id_: str, bar: Bar, *, closed: bool = False, at_ms: int | None = None) -> None:
        """Tell the symbol's subscribers of its minute."""
        now_ms = self._venue.clock.now_ms() if at_ms is None else at_ms
        text, stream = kline(id_, bar, closed=closed, at_ms=now_ms), stream_of(id_)
        for connection in list(self.connections):
            if stream in connection.streams:
                await connection.send(text)

    async def play(self, id_: str, bars: Iterable[Bar], *, updates: int = 1) -> None:
        """Let minutes pass: each is told `updates` times while it forms, then closed. The venue's clock follows."""
        for bar in bars:
            for n in range(updates):
                await self.say(id_, forming(bar), at_ms=bar.ts + (n + 1) * MINUTE_MS // (updates + 1))
            await self.say(id_, bar, closed=True, at_ms=bar.ts + MINUTE_MS)

    async def shout(self, text: str) -> None:
        """Send anything to everybody."""
        for connection in list(self.connections):
            await connection.send(text)

    async def replay(self, frames: Sequence[Frame]) -> None:
        """Send recorded frames to everybody, without the pauses between them."""
        for frame in frames:
            await self.shout(frame.text)

    # What befalls it

    def cut(self) -> None:
        """All lines go dead at once, and both ends notice."""
        for connection in list(self.connections):
            connection.abort()

    async def close_all(self, code: int = 1001) -> None:
        """Part politely."""
        for connection in list(self.connections):
            await connection.socket.close(code=code)

    def fall_silent(self) -> None:
        """The lines stay open and lead nowhere: nothing is sent, and pings go unanswered."""
        for connection in self.connections:
            connection.deaf = True

    @contextlib.asynccontextmanager
    async def chatting(self, id_: str, bars: Sequence[Bar], *, pause_s: float = 0.005) -> AsyncIterator[None]:
        """Play the minutes to whoever subscribes, once somebody does, with a pause after each."""

        async def chat() -> None:
            await self.subscribed(id_)
            for bar in bars:
                await self.play(id_, [bar])
                await asyncio.sleep(pause_s)

        task = asyncio.create_task(chat(), name=f"chat about {id_}")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})


def stream_of(id_: str) -> str:
    """The name of a symbol's stream of minutes."""
    return f"{id_.lower()}@kline_1m"


def kline(id_: str, bar: Bar, *, closed: bool, at_ms: int) -> str:
    """A frame as Binance sends it."""
    told = {
        "t": bar.ts,
        "T": bar.ts + MINUTE_MS - 1,
        "s": id_,
        "i": "1m",
        "f": 1,
        "L": 1,
        "o": decimal(float(bar.open)),
        "c": decimal(float(bar.close)),
        "h": decimal(float(bar.high)),
        "l": decimal(float(bar.low)),
        "v": decimal(float(bar.volume)),
        "n": 1,
        "x": closed,
        "q": "0",
        "V": "0",
        "Q": "0",
        "B": "0",
    }
    return json.dumps({"e": "kline", "E": at_ms, "s": id_, "k": told}, separators=(",", ":"))


def read_frames(path: Path) -> list[Frame]:
    """The frames of a recording, which are its lines of `<epoch>: <frame>`; others begin with an address."""
    frames = []
    for line in path.read_text("utf-8").splitlines():
        at_s, colon, text = line.partition(": ")
        if colon and at_s.replace(".", "", 1).isdigit():
            frames.append(Frame(float(at_s), text))
    return frames
