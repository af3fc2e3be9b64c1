"""One connection to Alpaca's WebSocket, and the symbols whose minutes it tells.

Facts from outside (https://docs.alpaca.markets/docs/streaming-market-data and .../real-time-stock-pricing-data):

* After `connected` there are 10 s to authenticate. `subscription` always names the full list.
* A subscription that would go over the limit (405) changes nothing. 400 may mean that a symbol is written wrongly.
* Messages come as arrays; errors name no symbol, so one request at a time is on its way.
* `b` is a minute that is over, `u` the same minute again with trades that were reported late.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from domain.bar import Bar
from plugins.alpaca_rows import minute_of
from plugins.base import (
    AuthenticationPluginError,
    Credentials,
    LiveBars,
    NetworkPluginError,
    PluginError,
    PluginFeatureNotSupportedError,
    RateLimitPluginError,
    SymbolNotFoundPluginError,
)

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger(__name__)

#: Most minutes of a symbol that wait for a reader who does not come.
MOST_WAITING = 1_000
#: Unreadable messages that one connection is forgiven.
MOST_GARBAGE = 4
#: A connection on which nothing came for so long is pinged, and is lost after half as long again; seconds.
HEARTBEAT_S = 10.0
#: How long the other side may take to say goodbye.
GOODBYE_S = 1.0
#: When to try again while somebody else holds the account's only connection.
TAKEN_S = 5.0
#: Symbols in one request, which stays well below the 16 KB that Alpaca's own clients keep to.
_BATCH = 400
#: Messages read at a stretch, so that nobody waits for more than a few milliseconds.
_CHUNK = 500
_CHANNELS = ("bars", "updatedBars")

#: What an error means for everybody on the connection; others are worth another try.
_ERRORS: Mapping[int, type[PluginError]] = {
    401: AuthenticationPluginError,  # not authenticated
    402: AuthenticationPluginError,  # auth failed
    403: AuthenticationPluginError,  # already authenticated
    404: AuthenticationPluginError,  # auth timeout
    406: RateLimitPluginError,  # connection limit exceeded
    407: NetworkPluginError,  # slow client
    408: AuthenticationPluginError,  # v2 not enabled
    409: AuthenticationPluginError,  # insufficient subscription
    411: AuthenticationPluginError,  # insufficient scope
    500: NetworkPluginError,  # internal error
}
#: What an error means for the symbol that was asked for; the others go on.
_REFUSALS: Mapping[int, type[PluginError]] = {
    400: SymbolNotFoundPluginError,  # invalid syntax
    405: PluginFeatureNotSupportedError,  # symbol limit exceeded
    410: PluginFeatureNotSupportedError,  # invalid subscribe action for this feed
}
_HANDSHAKE: Mapping[int, type[PluginError]] = {
    401: AuthenticationPluginError,
    403: AuthenticationPluginError,
    404: PluginError,
    429: RateLimitPluginError,
}


class Access(NamedTuple):
    """How the stream is reached.

    Attributes:
        url: of the feed.
        credentials: for it.
        timeout_s: for connecting with authentication, and for each answer.
        scrub: takes secrets out of what Alpaca says.
    """

    url: str
    credentials: Credentials
    timeout_s: float
    scrub: Callable[[str], str]


class _Refusal(NamedTuple):
    """Alpaca did not do what it was asked."""

    error: type[PluginError]
    said: str


class _Request(NamedTuple):
    """What Alpaca was asked; `answered` is set when it has been seen to."""

    action: str
    symbols: list[str]
    answered: asyncio.Event


class Feed:
    """One symbol's minutes that were not read yet."""

    def __init__(self, symbol: str) -> None:
        """Nothing yet."""
        self.symbol = symbol
        #: Why nothing comes after what waits.
        self.fault: PluginError | None = None
        self._waiting: dict[int, Bar] = {}
        self._news = asyncio.Event()

    def take(self, bar: Bar | str) -> None:
        """Take a minute, in place of the same one that waits; a bad one leaves a hole, so it ends the feed."""
        if self.fault is not None:
            return
        if isinstance(bar, str):
            self.fail(NetworkPluginError(f"Alpaca's stream of {self.symbol}: {bar}"))
            return
        self._waiting[bar.ts] = bar
        self._news.set()
        if len(self._waiting) >= MOST_WAITING:
            self.fail(NetworkPluginError(f"{MOST_WAITING} minutes of {self.symbol} wait to be read"))

    def fail(self, error: PluginError) -> None:
        """Let nothing more come. The first reason stays."""
        if self.fault is None:
            # Its own copy: an exception that is raised in many places gathers all their tracebacks.
            self.fault = type(error)(error.detail, retry_after_s=error.retry_after_s)
        self._news.set()

    async def hear(self) -> LiveBars:
        """Wait for what comes next.

        Raises:
            PluginError: nothing will.
        """
        while not self._waiting:
            if self.fault is not None:
                raise self.fault
            self._news.clear()
            await self._news.wait()
        waiting, self._waiting = self._waiting, {}
        return LiveBars(self.symbol, tuple(waiting[ts_ms] for ts_ms in sorted(waiting)), closed=True)


class Line:
    """One connection and the feeds on it. Whatever ends it ends all of them."""

    def __init__(self, access: Access) -> None:
        """Take how Alpaca is reached."""
        self._access = access
        #: By symbol, those that were asked for first first.
        self.feeds: dict[str, Feed] = {}
        #: Why it has ended, and when by the event loop's clock.
        self.fault: PluginError | None = None
        self.ended_s = 0.0
        self.authenticated = asyncio.Event()
        #: Symbols found mute since anything was told of any.
        self.doubts = 0
        #: Which runs it.
        self.task: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()
        self._changed = asyncio.Event()
        self._held: set[str] = set()
        self._batch = _BATCH
        self._asked: _Request | None = None
        self._garbage = 0

    def add(self, symbol: str) -> Feed:
        """Listen for a symbol.

        Raises:
            PluginError: somebody does already.
        """
        if symbol in self.feeds:
            raise PluginError(f"{symbol} is streamed already")
        feed = self.feeds[symbol] = Feed(symbol)
        self._changed.set()
        return feed

    def remove(self, symbol: str) -> None:
        """Listen no longer."""
        del self.feeds[symbol]
        self._changed.set()

    def end(self, error: PluginError) -> None:
        """Tell everybody, once."""
        if self.fault is None:
            self.fault, self.ended_s = error, asyncio.get_running_loop().time()
            for feed in self.feeds.values():
                feed.fail(error)

    async def run(self, session: "aiohttp.ClientSession") -> None:
        """Connect, and listen until it ends."""
        try:
            await self._converse(await self._dial(session))
        except Exception as exc:  # noqa: BLE001 - the edge of a task; it is logged there
            self.end(_plugin_error(exc))
        finally:
            self.end(NetworkPluginError("the stream of Alpaca is closed"))

    async def _dial(self, session: "aiohttp.ClientSession") -> "aiohttp.ClientWebSocketResponse[bool]":
        import aiohttp  # noqa: PLC0415 - see AlpacaPlugin.open()

        access = self._access
        try:
            async with asyncio.timeout(access.timeout_s):
                return await session.ws_connect(
                    access.url, heartbeat=HEARTBEAT_S, timeout=aiohttp.ClientWSTimeout(ws_close=GOODBYE_S)
                )
        except TimeoutError as exc:
            raise NetworkPluginError(f"Alpaca's stream did not answer within {access.timeout_s:g} s") from exc
        except aiohttp.WSServerHandshakeError as exc:
            error = _HANDSHAKE.get(exc.status, NetworkPluginError)
            wait_s = TAKEN_S if error is RateLimitPluginError else None
            raise error(f"Alpaca's stream answered {exc.status}", retry_after_s=wait_s) from None
        except aiohttp.InvalidURL as exc:
            raise PluginError("the address of Alpaca's stream in the settings is no URL") from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise NetworkPluginError(f"Alpaca's stream cannot be reached: {access.scrub(str(exc))}") from exc

    async def _converse(self, socket: "aiohttp.ClientWebSocketResponse[bool]") -> None:
        reading = asyncio.create_task(self._read(socket), name="read the stream of Alpaca")
        talking = asyncio.create_task(self._talk(socket), name="talk to the stream of Alpaca")
        try:
            done, _ = await asyncio.wait({reading, talking}, return_when=asyncio.FIRST_COMPLETED)
            self.end(_plugin_error((reading if reading in done else talking).exception()))
        finally:
            talking.cancel()
            # The reader stays for the other side's goodbye: who leaves without it may be refused for coming too soon.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE_S):
                    await socket.close()
            reading.cancel()
            await asyncio.gather(reading, talking, return_exceptions=True)

    # What we say

    async def _talk(self, socket: "aiohttp.ClientWebSocketResponse[bool]") -> None:
        await self._authenticate(socket)
        while True:
            while (request := self._next_request()) is not None:
                await self._ask(socket, request)
            self._batch = _BATCH
            self._changed.clear()
            await self._changed.wait()

    async def _authenticate(self, socket: "aiohttp.ClientWebSocketResponse[bool]") -> None:
        credentials = self._access.credentials
        try:
            async with asyncio.timeout(self._access.timeout_s):
                await self._connected.wait()
                await _send(socket, {"action": "auth", "key": credentials.key, "secret": credentials.secret})
                await self.authenticated.wait()
        except TimeoutError as exc:
            raise NetworkPluginError(f"Alpaca's stream let nobody in within {self._access.timeout_s:g} s") from exc

    def _next_request(self) -> _Request | None:
        """What to ask for, so that Alpaca tells of the symbols that are listened for, and of no others."""
        if left := self._held - self.feeds.keys():
            return _Request("unsubscribe", sorted(left)[:_BATCH], asyncio.Event())
        new = [symbol for symbol, feed in self.feeds.items() if symbol not in self._held and feed.fault is None]
        return _Request("subscribe", new[: self._batch], asyncio.Event()) if new else None

    async def _ask(self, socket: "aiohttp.ClientWebSocketResponse[bool]", request: _Request) -> None:
        self._asked = request
        try:
            async with asyncio.timeout(self._access.timeout_s):
                await _send(socket, {"action": request.action, **dict.fromkeys(_CHANNELS, request.symbols)})
                await request.answered.wait()
        except TimeoutError as exc:
            raise NetworkPluginError(f"Alpaca's stream did not answer to {request.action!r}") from exc

    def _settle(self, answer: frozenset[str] | _Refusal) -> None:
        """Take note of what Alpaca lists, or refuses, in answer to a request or by itself."""
        request, self._asked = self._asked, None
        if request is not None:
            request.answered.set()
            if request.action == "unsubscribe":
                # Whatever it says: what still comes of them is for nobody, and asking again would be no use.
                self._held.difference_update(request.symbols)
        asked = request.symbols if request is not None and request.action == "subscribe" else []
        if isinstance(answer, _Refusal):
            self._be_refused(asked, answer)
            return
        for symbol in self._held - answer:
            self._fail(symbol, NetworkPluginError(f"Alpaca's stream dropped {symbol}"))
        for symbol in set(asked) - answer:
            self._fail(symbol, PluginFeatureNotSupportedError(f"Alpaca's stream did not take {symbol}"))
        self._held = (self._held & answer) | answer.intersection(asked)

    def _be_refused(self, symbols: Sequence[str], refusal: _Refusal) -> None:
        """Nothing of it was done. Find those that can be had by asking for fewer."""
        if len(symbols) > 1:
            self._batch = len(symbols) // 2
        for symbol in symbols if len(symbols) == 1 else ():
            self._fail(symbol, refusal.error(f"{refusal.said}; {symbol} cannot be streamed beside the others"))

    def _fail(self, symbol: str, error: PluginError) -> None:
        if symbol in self.feeds:
            self.feeds[symbol].fail(error)

    # What Alpaca says

    async def _read(self, socket: "aiohttp.ClientWebSocketResponse[bool]") -> None:
        import aiohttp  # noqa: PLC0415 - see AlpacaPlugin.open()

        while True:
            message = await socket.receive()
            if message.type not in {aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY}:
                reason = socket.exception() or (message.data if isinstance(message.data, Exception) else None)
                why = f": {reason}" if reason is not None else f" ({socket.close_code})"
                raise NetworkPluginError(f"the connection to Alpaca's stream is lost{why}")
            items = _decoded(message.data)
            if items is None:
                self._spoil("a frame that is no JSON array")
                continue
            for n, item in enumerate(items, 1):
                self._hear(item)
                if n % _CHUNK == 0:
                    await asyncio.sleep(0)

    def _hear(self, item: object) -> None:
        kind = item.get("T") if isinstance(item, dict) else None
        if not isinstance(item, dict) or not isinstance(kind, str):
            self._spoil("an item without a type")
        elif kind in {"b", "u"}:
            self._take(item)
        elif kind == "subscription":
            self._be_answered(item)
        elif kind == "error":
            self._be_told_off(item)
        elif kind == "success" and item.get("msg") == "connected":
            self._connected.set()
        elif kind == "success" and item.get("msg") == "authenticated":
            self.authenticated.set()

    def _take(self, item: Mapping[str, object]) -> None:
        symbol = item.get("S")
        if not isinstance(symbol, str):
            self._spoil("a bar of nothing")
        elif symbol in self.feeds:
            self.doubts = 0
            self.feeds[symbol].take(minute_of(item))

    def _be_answered(self, item: Mapping[str, object]) -> None:
        bars = item.get("bars")
        if not isinstance(bars, list):
            self._spoil("a subscription without a list of bars")
        else:
            self._settle(frozenset(symbol for symbol in bars if isinstance(symbol, str)))

    def _be_told_off(self, item: Mapping[str, object]) -> None:
        code, message = item.get("code"), item.get("msg")
        said = self._access.scrub(f"Alpaca's stream says {code}: {message}"[:200])
        if isinstance(code, int) and code in _REFUSALS and self._asked is not None:
            self._settle(_Refusal(_REFUSALS[code], said))
            return
        error = _ERRORS.get(code, NetworkPluginError) if isinstance(code, int) else NetworkPluginError
        raise error(said, retry_after_s=TAKEN_S if error is RateLimitPluginError else None)

    def _spoil(self, what: str) -> None:
        self._garbage += 1
        log.warning("the stream of Alpaca brought %s (%d so far)", what, self._garbage)
        if self._garbage > MOST_GARBAGE:
            raise NetworkPluginError(f"Alpaca's stream brings rubbish: {what}")


async def _send(socket: "aiohttp.ClientWebSocketResponse[bool]", message: Mapping[str, object]) -> None:
    try:
        await socket.send_str(msgspec.json.encode(message).decode())
    except OSError as exc:
        raise NetworkPluginError("the connection to Alpaca's stream is lost") from exc


def _plugin_error(reason: BaseException | None) -> PluginError:
    if isinstance(reason, PluginError):
        return reason
    log.error("the stream of Alpaca failed", exc_info=reason)
    return NetworkPluginError(f"the stream of Alpaca failed: {type(reason).__name__}")


def _decoded(data: str | bytes) -> list[object] | None:
    try:
        items = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return items if isinstance(items, list) else None
