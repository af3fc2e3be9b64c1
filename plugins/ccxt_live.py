"""Live minutes by CCXT Pro: one connection for all symbols of a plugin, from the first to the last of them."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from itertools import groupby
from typing import Any

from domain.bar import Bar, bar_from_row
from domain.timeframe import Timeframe
from plugins.base import LiveBars, NetworkPluginError, PluginConfig, PluginError, RateLimitPluginError
from plugins.ccxt_errors import retry_after_s, translate
from plugins.ccxt_stream import MINUTE, Word, make_stream

log = logging.getLogger(__name__)

#: Most minutes that wait for a reader who does not come.
MOST_WAITING = 5_000
#: How long an exchange may take to let a symbol go, and to say goodbye; seconds.
LEAVE_S = 10.0
GOODBYE_S = 1.0
#: So many symbols found mute, without a word on any in between, and the connections are taken for mute.
MOST_DOUBTS = 2
#: How far a minute may begin after the instant that the venue names; milliseconds.
_CLOCK_SLACK_MS = 1_000
_TOO_MANY = frozenset({418, 429})


class Feed:
    """What came in about one symbol and was not read yet. Pure: rows in, `LiveBars` out."""

    def __init__(self, symbol: str) -> None:
        """Nothing yet."""
        self.symbol = symbol
        #: Why the rows after those that wait cannot be trusted.
        self.fault: str | None = None
        #: Whether any row came straight from the exchange's hands.
        self.taken = False
        self._waiting: dict[int, tuple[Bar, Word]] = {}
        self._closed_ms: int | None = None

    def take(self, row: object, word: Word) -> None:
        """Take a row; of several of one minute the last one stays, unless it was called closed before."""
        self.taken = True
        bar = bar_from_row(row, Timeframe.M1)
        if isinstance(bar, str):
            self.fault = self.fault or bar
        elif word.venue_ms is not None and bar.ts > word.venue_ms + _CLOCK_SLACK_MS:
            self.fault = self.fault or f"time {bar.ts} lies in the venue's future"
        elif self.fault is None and not (word.closed is False and self._is_closed(bar.ts)):
            self._waiting[bar.ts] = (bar, word)
            self._closed_ms = bar.ts if word.closed else self._closed_ms
            if len(self._waiting) > MOST_WAITING:
                self.fault = f"{MOST_WAITING} minutes wait to be read"

    def _is_closed(self, ts_ms: int) -> bool:
        waiting = self._waiting.get(ts_ms)
        return ts_ms == self._closed_ms or (waiting is not None and waiting[1].closed is True)

    def drain(self) -> list[LiveBars]:
        """What waits, in order: what the venue calls closed together, what it calls forming one by one."""
        waiting, self._waiting = self._waiting, {}
        runs = groupby((waiting[ts_ms] for ts_ms in sorted(waiting)), key=lambda told: told[1].closed)
        return [live for closed, run in runs for live in self._speak(closed, list(run))]

    def _speak(self, closed: bool | None, run: list[tuple[Bar, Word]]) -> list[LiveBars]:  # noqa: FBT001 - as in LiveBars
        if closed is False:
            return [LiveBars(self.symbol, (bar,), closed, word.venue_ms) for bar, word in run]
        clocks = [word.venue_ms for _, word in run if word.venue_ms is not None]
        return [LiveBars(self.symbol, tuple(bar for bar, _ in run), closed, max(clocks, default=None))]


class Line:
    """One exchange of CCXT Pro, its connections and the feeds on them. When one connection fails, all has failed."""

    def __init__(self, exchange: Any) -> None:
        """Take the exchange, which nobody else uses."""
        self._exchange = exchange
        exchange.failed = self.fail
        self.feeds: dict[str, Feed] = {}
        #: Symbols that are being unsubscribed.
        self.leaving: dict[str, asyncio.Task[None]] = {}
        #: Why nothing more comes.
        self.broken: Exception | None = None
        #: The exchange did not let a symbol go: what it holds now is unknown.
        self.doubtful = False
        #: Symbols found mute since anything was told of any.
        self.doubts = 0

    def share_markets(self, source: Any) -> None:
        """Know the symbols that another instance of the exchange has learnt."""
        if self._exchange.markets is not source.markets:
            self._exchange.set_markets_from_exchange(source)

    def add(self, symbol: str) -> Feed:
        """Listen for a symbol.

        Raises:
            PluginError: somebody does already.
        """
        if symbol in self.feeds:
            raise PluginError(f"{symbol} is streamed already")
        feed = self.feeds[symbol] = Feed(symbol)
        self._exchange.put_tape(symbol, feed)
        return feed

    def remove(self, symbol: str) -> None:
        """Listen no longer. The exchange is told in the background, and only while others stay."""
        del self.feeds[symbol]
        self._exchange.stop_tape(symbol)
        if self.feeds and self.broken is None and self._exchange.has.get("unWatchOHLCV") is True:
            task = asyncio.create_task(self._unsubscribe(symbol), name=f"unsubscribe {self._exchange.id} {symbol}")
            self.leaving[symbol] = task
            task.add_done_callback(lambda _: self.leaving.pop(symbol, None))

    async def hear(self, feed: Feed) -> list[LiveBars]:
        """Wait for what comes next about a symbol.

        Raises:
            PluginError: nothing more will come.
        """
        while True:
            if told := feed.drain():
                self.doubts = 0
                return told
            if feed.fault is not None:
                raise NetworkPluginError(f"{self._exchange.id}, {feed.symbol}: {feed.fault}")
            if self.broken is not None:
                raise _failure(self.broken) from self.broken
            rows = await self._watch(feed.symbol)
            if not feed.taken:
                # An exchange that keeps its rows elsewhere.
                for row in rows:
                    feed.take(row, Word())
                feed.taken = False

    async def _watch(self, symbol: str) -> Any:
        try:
            return await self._exchange.watch_ohlcv(symbol, MINUTE)
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody cancelled us: CCXT cancels its futures when it closes a connection.
            raise NetworkPluginError(f"{self._exchange.id} closed the connection") from exc
        except Exception as exc:
            if self.broken is not None:
                raise _failure(exc) from exc
            if isinstance(exc, PluginError):
                raise
            raise translate(exc, status=None, headers={}) from exc

    def doubt(self, symbol: str) -> None:
        """A symbol's minutes were kept back; when others' are too, all is ended."""
        if symbol in self.feeds:
            self.doubts += 1
            if self.doubts >= MOST_DOUBTS:
                self.fail(NetworkPluginError(f"the stream of {self._exchange.id} tells nothing any more"))

    async def _unsubscribe(self, symbol: str) -> None:
        try:
            async with asyncio.timeout(LEAVE_S):
                await self._exchange.un_watch_ohlcv(symbol, MINUTE)
        except Exception as exc:  # noqa: BLE001 - the edge of a task
            self.doubtful = True
            log.info(
                "%s did not confirm that it lets %s go: %s", self._exchange.id, symbol, str(exc) or type(exc).__name__
            )

    def fail(self, error: Exception) -> None:
        """Nothing more will come; whoever waits is told."""
        if self.broken is None:
            self.broken = error
            for client in list((self._exchange.clients or {}).values()):
                client.reject(error)

    async def close(self) -> None:
        """End everything; whoever still listens is told."""
        self.fail(NetworkPluginError(f"the stream of {self._exchange.id} is closed"))
        for task in list(self.leaving.values()):
            task.cancel()
        goodbye = asyncio.create_task(self._exchange.close(), name=f"close the stream of {self._exchange.id}")
        await asyncio.wait({goodbye}, timeout=GOODBYE_S)
        if not goodbye.done() and self._exchange.session is not None:
            # The other side does not answer.
            await self._exchange.session.close()
        await goodbye


def _failure(error: Exception) -> PluginError:
    """The plugin error for the end of a connection: worth another try, unless it was refused for good."""
    reason = error.args[0] if error.args else None
    translated = translate(error, status=None, headers={})
    if getattr(reason, "status", None) in _TOO_MANY:
        return RateLimitPluginError(
            translated.detail, retry_after_s=retry_after_s(getattr(reason, "headers", None) or {})
        )
    if type(translated) is PluginError:
        return NetworkPluginError(translated.detail)
    return type(translated)(translated.detail, retry_after_s=translated.retry_after_s)


class Streams:
    """The lines of one plugin: one for all symbols, and another only after trouble."""

    def __init__(self, config: PluginConfig) -> None:
        """Take what exchanges are made with."""
        self._config = config
        self._turn = asyncio.Lock()
        #: The line that new symbols join.
        self._line: Line | None = None
        self._lines: set[Line] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    async def minutes(self, symbol: str, source: Any) -> AsyncGenerator[LiveBars, None]:
        """The minutes of a symbol that `source`, an exchange of the same kind, has in its markets.

        Raises:
            PluginError: the stream has ended.
        """
        line, feed = await self._join(symbol, source)
        try:
            while True:
                for told in await line.hear(feed):
                    yield told
        finally:
            await self._leave(line, symbol)

    def doubt(self, symbol: str) -> None:
        """A symbol's minutes were kept back."""
        if self._line is not None:
            self._line.doubt(symbol)

    async def close(self) -> None:
        """End all streams for good: whoever listens gets an error. Safe to call twice."""
        self._closed = True
        for line in list(self._lines):
            self._end(line)
        while self._closing:
            await asyncio.wait(self._closing)

    async def _join(self, symbol: str, source: Any) -> tuple[Line, Feed]:
        while True:
            line = await self._usable_line()
            leaving = line.leaving.get(symbol)
            if leaving is None:
                # No pause between here and the feed: a line without feeds may be closed.
                line.share_markets(source)
                return line, line.add(symbol)
            await asyncio.wait({leaving})

    async def _usable_line(self) -> Line:
        async with self._turn:
            line = self._line
            if line is None or line.broken is not None or line.doubtful:
                exchange = await asyncio.to_thread(make_stream, self._config)
                if self._closed:
                    raise PluginError(f"{self._config.provider} is not open")
                line = self._line = Line(exchange)
                self._lines.add(line)
        return line

    async def _leave(self, line: Line, symbol: str) -> None:
        line.remove(symbol)
        if not line.feeds and line in self._lines:
            # A cancelled listener must not leave half a connection behind.
            await asyncio.shield(self._end(line))

    def _end(self, line: Line) -> asyncio.Task[None]:
        if self._line is line:
            self._line = None
        self._lines.discard(line)
        task = asyncio.create_task(self._close(line), name=f"close a stream of {self._config.provider}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task

    async def _close(self, line: Line) -> None:
        try:
            await line.close()
        except Exception:
            log.exception("a stream of %s was not closed cleanly", self._config.provider)
