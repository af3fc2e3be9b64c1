"""The stream of an Alpaca of one's own: one connection an account, one list of symbols, and what can befall both."""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from typing import Self

from aiohttp import WSMsgType, web

from domain.bar import Bar
from tests.loopback.alpaca import KEY, SECRET, row

_PATIENCE_S = 10.0
CONNECTED = {"T": "success", "msg": "connected"}
AUTHENTICATED = {"T": "success", "msg": "authenticated"}
MESSAGES = {
    400: "invalid syntax",
    401: "not authenticated",
    402: "auth failed",
    403: "already authenticated",
    404: "auth timeout",
    405: "symbol limit exceeded",
    406: "connection limit exceeded",
    407: "slow client",
    408: "v2 not enabled",
    409: "insufficient subscription",
    410: "invalid subscribe action for this feed",
    411: "insufficient scope",
    500: "internal error",
}


class Connection:
    """One client."""

    def __init__(self, socket: web.WebSocketResponse, request: web.Request) -> None:
        self.socket = socket
        self.path = request.path
        self._request = request
        self.authenticated = False
        self.channels: dict[str, dict[str, None]] = {"bars": {}, "updatedBars": {}}
        #: Neither reads nor answers any more, pings included.
        self.deaf = False

    async def send(self, *items: object) -> None:
        await self.send_text(json.dumps(items))

    async def send_text(self, text: str) -> None:
        if not self.deaf and not self.socket.closed:
            # A client that goes away meanwhile is no fault of ours.
            with contextlib.suppress(ConnectionError):
                await self.socket.send_str(text)

    def abort(self) -> None:
        """As if the line were cut."""
        assert self._request.transport is not None
        self._request.transport.abort()


class AlpacaStreamLoopback:
    """`/v2/{feed}`, `/v1beta1/{feed}` and `/v1beta3/crypto/us`; `told` are the requests for symbols as they came in."""

    def __init__(self, *, symbols: Collection[str] | None = None) -> None:
        #: Those whose writing is accepted; None: all.
        self.symbols = symbols
        #: Most symbols of one connection.
        self.limit = 10_000
        #: Connections at once, to one address.
        self.connections_allowed = 1
        self.connections: list[Connection] = []
        #: Connections so far, those that ended or were refused included, and whose keys were looked at.
        self.opened = 0
        self.told: list[dict[str, object]] = []
        #: Statuses that refuse the next handshakes, with headers.
        self.refusals: deque[tuple[int, dict[str, str]]] = deque()
        #: Codes of errors that answer the next authentications.
        self.auth_errors: deque[int] = deque()
        #: Codes of errors that answer the next requests.
        self.errors: deque[int] = deque()
        #: Actions that are not answered (`connect`, `auth`, `subscribe`, `unsubscribe`).
        self.unanswered: set[str] = set()
        #: Symbols that are left out of what is subscribed to, without a word.
        self.left_out: set[str] = set()
        #: Pings so far.
        self.pings = 0
        #: A client's closing frame is not answered.
        self.rude = False
        self._changed = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        app = web.Application()
        for path in ("/v2/{feed}", "/v1beta1/{feed}", "/v1beta3/crypto/us"):
            app.router.add_get(path, self._serve)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"ws://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in list(self.connections):
            connection.abort()
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def options(self) -> dict[str, object]:
        """The plugin's options that lead here."""
        return {"stream_url": self.url}

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.opened += 1
        if self.refusals:
            status, headers = self.refusals.popleft()
            await self._change()
            return web.Response(status=status, headers=headers)
        socket = web.WebSocketResponse(autoping=False, autoclose=not self.rude)
        await socket.prepare(request)
        connection = Connection(socket, request)
        self.connections.append(connection)
        await self._change()
        try:
            if "connect" not in self.unanswered:
                await connection.send(CONNECTED)
            async for message in socket:
                if connection.deaf:
                    continue
                if message.type is WSMsgType.PING:
                    await socket.pong(message.data)
                    self.pings += 1
                    await self._change()
                elif message.type is WSMsgType.TEXT:
                    await self._answer(connection, json.loads(message.data))
            if self.rude:
                await asyncio.Event().wait()
        finally:
            self.connections.remove(connection)
            await self._change()
        return socket

    async def _answer(self, connection: Connection, asked: dict[str, object]) -> None:
        if asked["action"] == "auth":
            await self._authenticate(connection, asked)
        else:
            self.told.append(asked)
            if asked["action"] not in self.unanswered:
                await self._subscribe(connection, asked)
        await self._change()

    async def _authenticate(self, connection: Connection, asked: Mapping[str, object]) -> None:
        others = [other for other in self.connections if other.authenticated and other.path == connection.path]
        if "auth" in self.unanswered:
            return
        if self.auth_errors:
            await self._refuse(connection, self.auth_errors.popleft())
        elif connection.authenticated:
            await self._refuse(connection, 403)
        elif (asked["key"], asked["secret"]) != (KEY, SECRET):
            await self._refuse(connection, 402)
        elif len(others) >= self.connections_allowed:
            await self._refuse(connection, 406)
        else:
            connection.authenticated = True
            await connection.send(AUTHENTICATED)

    async def _refuse(self, connection: Connection, code: int) -> None:
        """Say it, and part, as Alpaca does after errors of authentication."""
        await connection.send(error(code))
        await connection.socket.close()

    async def _subscribe(self, connection: Connection, asked: Mapping[str, object]) -> None:
        code = self.errors.popleft() if self.errors else self._fault_of(connection, asked)
        if code is not None:
            await connection.send(error(code))
            return
        for channel, held in connection.channels.items():
            symbols = asked[channel]
            assert isinstance(symbols, list)
            for symbol in symbols:
                if asked["action"] == "unsubscribe":
                    held.pop(symbol, None)
                elif symbol not in self.left_out:
                    held[symbol] = None
        await connection.send(subscription(connection))

    def _fault_of(self, connection: Connection, asked: Mapping[str, object]) -> int | None:
        symbols = asked["bars"]
        assert isinstance(symbols, list)
        if not connection.authenticated:
            return 401
        if asked["action"] == "unsubscribe":
            return None
        if self.symbols is not None and not set(symbols) <= set(self.symbols):
            return 400
        return 405 if len(connection.channels["bars"].keys() | set(symbols)) > self.limit else None

    async def _change(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds that follows from connections and messages."""
        async with asyncio.timeout(_PATIENCE_S), self._changed:
            await self._changed.wait_for(holds)

    async def subscribed(self, *symbols: str) -> None:
        """Wait until each of them has a subscriber, and nothing else has."""
        await self.until(lambda: self.subscriptions == set(symbols))

    async def deserted(self) -> None:
        """Wait until there is no connection."""
        await self.until(lambda: not self.connections)

    @property
    def subscriptions(self) -> set[str]:
        """What any client is told of."""
        return {symbol for connection in self.connections for symbol in connection.channels["bars"]}

    # What it says

    async def say(self, symbol: str, *bars: Bar, kind: str = "b") -> None:
        """Tell whoever subscribed of minutes, all in one frame."""
        channel = "bars" if kind == "b" else "updatedBars"
        for connection in list(self.connections):
            if symbol in connection.channels[channel]:
                await connection.send(*(item(symbol, bar, kind) for bar in bars))

    async def shout(self, text: str) -> None:
        """Send anything to everybody."""
        for connection in list(self.connections):
            await connection.send_text(text)

    async def shout_items(self, *items: object) -> None:
        """Send a frame of anything to everybody."""
        await self.shout(json.dumps(items))

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
    async def chatting(self, symbol: str, bars: Sequence[Bar]) -> AsyncIterator[None]:
        """Tell the minutes one by one to whoever subscribes, once somebody does."""

        async def chat() -> None:
            await self.subscribed(symbol)
            for bar in bars:
                await self.say(symbol, bar)
                await asyncio.sleep(0.01)

        task = asyncio.create_task(chat(), name=f"chat about {symbol}")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})


def item(symbol: str, bar: Bar, kind: str = "b") -> dict[str, object]:
    """A minute as the stream writes it."""
    return {"T": kind, "S": symbol, **row(bar)}


def error(code: int) -> dict[str, object]:
    return {"T": "error", "code": code, "msg": MESSAGES[code]}


def subscription(connection: Connection) -> dict[str, object]:
    """The full list, channels that nobody asked for included."""
    lists: dict[str, Iterable[str]] = {name: list(held) for name, held in connection.channels.items()}
    return {"T": "subscription", "trades": [], "quotes": [], **lists, "dailyBars": [], "statuses": []}
