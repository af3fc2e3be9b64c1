"""One exchange of CCXT Pro that can be listened to: every row as it comes in, and every way in which it falls silent.

`watch_ohlcv` alone would not do (CCXT 4.5.90):

- its rows are changed in place later on, and Binance's word that a bar is closed is dropped;
- it gives the tail of its cache: a correction of an older bar is lost, and so is the order after a late one;
- a connection that drops while nobody awaits is opened anew without a word;
- a frame that cannot be read ends the reading without an error, until a ping goes unanswered minutes later.

So rows are copied where CCXT puts them away, and a connection's end is told where CCXT notices it.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from plugins.base import NetworkPluginError, PluginConfig, PluginError
from plugins.ccxt_client import make_exchange
from plugins.ccxt_errors import translate
from plugins.ccxt_imports import ccxt_module, exchange_class

if TYPE_CHECKING:
    _Base = Any
else:
    _Base = object

MINUTE = "1m"
#: Binance is pinged so often, so that a connection that leads nowhere is noticed after three of these. CCXT's
#: own choice is three minutes; for most others it is 30 s or less.
KEEP_ALIVE_MS = 15_000
#: Rows that CCXT keeps of a symbol, beside ours; it would keep 1000.
_KEPT_ROWS = 60
#: These keep rows by symbol alone; what they return must do.
_OWN_SHELVES = frozenset({"alpaca", "cex"})
_SHORTEST_DIAL_MS = 1_000


class Word(NamedTuple):
    """What a venue said beside a row's numbers: whether the bar is closed, and its clock; None: nothing."""

    closed: bool | None = None
    venue_ms: int | None = None


class Ear(Protocol):
    """Takes rows as they come in."""

    def take(self, row: object, word: Word) -> None:
        """Take a row, which its owner may change afterwards."""


class Tape(_Base):  # type: ignore[misc]  # its other base is CCXT's ArrayCacheByTimestamp, imported when it runs
    """The place where CCXT puts a symbol's rows, read along by an ear."""

    def __init__(self, exchange: Any, ear: Ear) -> None:
        """Take who puts rows here, and who wants them."""
        super().__init__(_KEPT_ROWS)
        self._exchange = exchange
        self.ear: Ear | None = ear

    def append(self, row: Any) -> None:
        """Take a row."""
        if self.ear is not None:
            self.ear.take(row, self._exchange.word)
        super().append(row)


class Heard(_Base):  # type: ignore[misc]  # its other base is an exchange of CCXT Pro
    """Mixed into an exchange's class."""

    #: What is being said beside the row that is on its way to the tape.
    word = Word()
    #: Called with the reason when a connection has ended or can no longer be understood.
    failed: Callable[[Exception], None] | None = None

    def put_tape(self, symbol: str, ear: Ear) -> None:
        """Have the ear take the symbol's rows from now on; errors that an earlier listener left are void."""
        for client in (self.clients or {}).values():
            for topic in [topic for topic in client.rejections if symbol in str(topic)]:
                del client.rejections[topic]
        if self.id not in _OWN_SHELVES:
            self.ohlcvs.setdefault(symbol, {})[MINUTE] = _tape_class()(self, ear)

    def stop_tape(self, symbol: str) -> None:
        """Whatever still comes is for nobody."""
        tape = self.ohlcvs.get(symbol, {}).get(MINUTE)
        if isinstance(tape, Tape):
            tape.ear = None

    def client(self, url: str) -> Any:
        """The connection to an address; a new one is guarded."""
        known = url in (self.clients or {})
        client = super().client(url)
        if not known:
            _guard(self, client)
        return client

    def handle_message(self, client: Any, message: Any) -> Any:
        """Refuse what is no JSON, where nothing else is ever sent: CCXT would pass over it."""
        if isinstance(message, str) and _is_binance(self.id):
            raise NetworkPluginError(f"{self.id} sent something that is no JSON")
        return super().handle_message(client, message)

    def handle_ohlcv(self, client: Any, message: Any, *rest: Any) -> Any:
        """Note what CCXT drops, for the tape."""
        self.word = word_of(message)
        try:
            return super().handle_ohlcv(client, message, *rest)
        finally:
            self.word = Word()

    def on_error(self, client: Any, error: Exception) -> None:
        """Tell of a connection that failed."""
        super().on_error(client, error)
        self._tell(error)

    def on_close(self, client: Any, code: Any) -> None:
        """Tell of a connection that was closed."""
        super().on_close(client, code)
        self._tell(client.error or NetworkPluginError(f"{self.id} closed the connection with code {code}"))

    def _tell(self, error: Exception) -> None:
        if self.failed is not None:
            self.failed(error)


def _guard(exchange: Any, client: Any) -> None:
    """See that whatever goes wrong ends the connection or reaches who listens, and is not lost on the way."""
    handle, reset, reject = client.handle_message, client.reset, client.reject

    def handle_or_end(frame: Any) -> None:
        try:
            handle(frame)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it ends the connection and reaches its listeners
            client.on_error(_unreadable(exchange.id, exc))

    def reset_and_end(error: Any) -> None:
        # CCXT stops the pings here and leaves the connection open.
        reset(error)
        client.on_error(NetworkPluginError(f"{exchange.id} is in trouble: {error}"))

    def reject_by_hash(error: Any, topic: Any = None) -> Any:
        # CCXT rejects some errors by the number of the request, for which nobody waits.
        if topic is not None and topic not in client.futures:
            ids = {str(told["id"]): own for own, told in client.subscriptions.items() if _has_id(told)}
            topic = ids.get(topic, topic)
        return reject(error, topic)

    client.handle_message, client.reset, client.reject = handle_or_end, reset_and_end, reject_by_hash


def _has_id(subscription: object) -> bool:
    return isinstance(subscription, Mapping) and "id" in subscription


def _unreadable(exchange_id: str, exc: Exception) -> PluginError:
    error = translate(exc, status=None, headers={})
    if error is not exc:
        if isinstance(error, NetworkPluginError):
            error = NetworkPluginError(f"{exchange_id} sent something that cannot be read: {error.detail}")
        error.__cause__ = exc
    return error


def word_of(message: object) -> Word:
    """What a kline message in Binance's format says beside the numbers: `k.x`, closed, and `E`, its clock."""
    kline = message.get("k") if isinstance(message, Mapping) else None
    if not isinstance(message, Mapping) or not isinstance(kline, Mapping):
        return Word()
    closed, venue_ms = kline.get("x"), message.get("E")
    return Word(closed if isinstance(closed, bool) else None, venue_ms if type(venue_ms) is int else None)


@cache
def _tape_class() -> Any:
    cache_module = ccxt_module("ccxt.async_support.base.ws.cache")
    return type("Tape", (Tape, cache_module.ArrayCacheByTimestamp), {})


@cache
def _heard_class(exchange_id: str) -> Any:
    exchange = exchange_class("ccxt.pro", exchange_id)
    return None if exchange is None else type(exchange_id, (Heard, exchange), {})


def make_stream(config: PluginConfig) -> Any:
    """An exchange of CCXT Pro, set up and not connected; None where CCXT Pro has none, or none with minutes.

    Whether there are minutes is in `has["watchOHLCV"]` of CCXT Pro's class only: the REST class says None for every
    exchange.

    Raises:
        Exception: whatever CCXT makes of wrong options.
    """
    kind = _heard_class(config.provider)
    if kind is None:
        return None
    exchange = make_exchange(config, kind=kind)
    urls = exchange.urls.get("api")
    if exchange.has.get("watchOHLCV") is not True or MINUTE not in (exchange.timeframes or {}):
        return None
    if isinstance(urls, Mapping) and not urls.get("ws"):
        # A test venue may have no stream.
        return None
    exchange.streaming = {**(exchange.streaming or {}), **_streaming(config)}
    return exchange


def _streaming(config: PluginConfig) -> Mapping[str, object]:
    """How connections are kept, where it differs from CCXT's own; what the operator set is left alone."""
    settings: dict[str, object] = {"connectionTimeout": max(_SHORTEST_DIAL_MS, int(config.timeout_s * 1000))}
    if _is_binance(config.provider):
        settings["keepAlive"] = KEEP_ALIVE_MS
    chosen = config.options.get("streaming")
    return settings | dict(chosen) if isinstance(chosen, Mapping) else settings


def _is_binance(exchange_id: str) -> bool:
    return exchange_id.startswith("binance")
