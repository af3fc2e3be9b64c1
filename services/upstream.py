"""The way to the venue of one followed series: its stream, connected again and again, or polling without one."""

import asyncio
import logging
import random
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

from domain.clock import Clock
from domain.errors import CandleryError, DatabaseUnavailableError
from domain.series import Series
from domain.timeframe import HOUR_MS
from plugins.base import LiveBars, MarketPlugin, NetworkPluginError, PluginError, PluginFeatureNotSupportedError
from services.feed import Feed
from services.market_service import MarketService
from services.rate_budget import RateBudget

log = logging.getLogger(__name__)

#: After so many messages in a row, others have their turn.
_SWALLOW = 50
#: Calls that one look of a polled series takes on average, and the share of a provider's budget for all of them.
_CALLS_PER_POLL, _POLL_SHARE = 1.2, 0.5


@dataclass(frozen=True, kw_only=True)
class WorkerTiming:
    """How patient the follower of a series is.

    Attributes:
        resume_ms: a frontier left behind longer ago than this is not caught up with.
        grace_ms: how long after a minute counts as final the stream may take to say so.
        spread_ms: questions of many series that are due at one instant are spread over so long.
        mute_ms: how late a stream may tell of a minute before it counts as mute.
        presume_ms: a connection that has not failed for so long is up, though it has not spoken.
        quiet_ms, quiet_limit_ms: how long a silence that proved to be normal is left alone, doubling.
        backoff_s, backoff_limit_s: before a failed connection is tried again, doubling.
        stable_s: a connection that held for so long begins with the shortest back-off again.
        down_after: failed tries in a row until the upstream is called down.
        ask_backoff_s, ask_backoff_limit_s: before a failed question is put again, doubling.
        heal_patience_s: how long the provider may fail to give what a stream in order has missed.
        crowded_patience_s: as that, where it is a rate limit that it fails for.
        poll_s: at least so long between two looks at a series without a stream.
        stream_again_s: how long a stream that was refused is not asked for.
        database_backoff_s, database_backoff_limit_s: before what the database did not take is tried again, doubling.
        look_s: at least so often the present is looked at, whatever was planned: clocks are set, machines sleep.
    """

    resume_ms: int = HOUR_MS
    grace_ms: int = 3_000
    spread_ms: int = 1_500
    mute_ms: int = 10_000
    presume_ms: int = 20_000
    quiet_ms: int = 60_000
    quiet_limit_ms: int = 600_000
    backoff_s: float = 1.0
    backoff_limit_s: float = 60.0
    stable_s: float = 30.0
    down_after: int = 3
    ask_backoff_s: float = 2.0
    ask_backoff_limit_s: float = 60.0
    heal_patience_s: float = 30.0
    crowded_patience_s: float = 120.0
    poll_s: float = 2.0
    stream_again_s: float = 600.0
    database_backoff_s: float = 0.5
    database_backoff_limit_s: float = 5.0
    look_s: float = 30.0


def backoff_s(tries: int, first_s: float, limit_s: float) -> float:
    """How long to wait after so many failed tries in a row; random, so that many do not come back at once."""
    return min(first_s * 2.0 ** min(tries - 1, 30), limit_s) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


class Pollers:
    """How many series are polled with each budget, so that polling leaves room for others."""

    def __init__(self) -> None:
        """Begin without any."""
        self._count: WeakKeyDictionary[RateBudget, int] = WeakKeyDictionary()

    @contextmanager
    def one_more(self, budget: RateBudget) -> Iterator[None]:
        """A series is polled during the block."""
        self._count[budget] = self._count.get(budget, 0) + 1
        try:
            yield
        finally:
            self._count[budget] -= 1

    def interval_s(self, feed: Feed, least_s: float) -> float:
        """How long each polled series of a provider has to wait between two looks."""
        calls = self._count.get(feed.budget, 1) * _CALLS_PER_POLL
        return max(least_s, calls / (_POLL_SHARE * feed.capabilities.calls_per_second))


class Listener(Protocol):
    """Who is told what comes from upstream."""

    def heard(self, live: LiveBars) -> None:
        """The stream said something."""
        ...

    def parted(self) -> None:
        """The connection is gone."""
        ...

    def failed(self, fault: PluginError) -> None:
        """The stream, or polling, failed; it is tried again."""
        ...

    async def poll(self) -> float:
        """Look once; return the least pause until the next look, in seconds. Raises `PluginError`."""
        ...


class Upstream:
    """Listens to one symbol until cancelled; then nothing of it is left open."""

    def __init__(
        self,
        series: Series,
        listener: Listener,
        *,
        markets: MarketService,
        clock: Clock,
        timing: WorkerTiming,
        pollers: Pollers,
    ) -> None:
        """Take whose stream it is and who is told."""
        self._series = series
        self._listener = listener
        self._markets = markets
        self._clock = clock
        self._timing = timing
        self._pollers = pollers
        self._connection: asyncio.Task[None] | None = None
        self._plugin: MarketPlugin | None = None
        self._blamed: PluginError | None = None
        self._stream_from_s = 0.0
        self._tries = 0
        self._began_ms: int | None = None
        self._spoke_s: float | None = None
        #: Tries in a row that brought no word.
        self.failures = 0
        #: Connections begun after the first one, and those of now and before.
        self.reconnects = 0
        self.connections = 0
        self.polling = False

    @property
    def spoke_s(self) -> float | None:
        """Since when the connection of now speaks, by the monotonic clock; None: it has said nothing yet."""
        return self._spoke_s

    @property
    def presumed_ms(self) -> int | None:
        """Since when the connection of now is up if it has not spoken: it may have nothing to tell."""
        if self._began_ms is None or self._clock.now_ms() < self._began_ms + self._timing.presume_ms:
            return None
        return self._began_ms + self._timing.presume_ms

    @property
    def is_up(self) -> bool:
        """Whether bars would come if there were any, as far as one can tell."""
        return self._spoke_s is not None or self.presumed_ms is not None

    async def run(self) -> None:
        """Connect, listen, and connect again."""
        while True:
            try:
                await self._once()
            except DatabaseUnavailableError:
                await asyncio.sleep(self._timing.database_backoff_limit_s)
            except PluginError as exc:
                await self._recover(exc)
            except CandleryError as exc:
                await self._recover(PluginError(exc.detail))
            except Exception as exc:
                log.exception("the stream of %s failed", self._series)
                await self._recover(NetworkPluginError(f"the stream failed: {type(exc).__name__}"))

    def reconnect(self, why: str) -> None:
        """Take the connection of now for mute."""
        if self._connection is not None and self._plugin is not None:
            self._blamed = NetworkPluginError(why)
            self._plugin.doubt(self._series.symbol)
            self._connection.cancel()

    async def _once(self) -> None:
        """Listen, or poll, until it fails or the other way is to be tried."""
        feed = await self._markets.feed(self._series.market, self._series.provider)
        if feed.capabilities.live != "stream":
            await self._poll(feed, float("inf"))
        elif time.monotonic() < self._stream_from_s:
            await self._poll(feed, self._stream_from_s)
        else:
            try:
                await self._stream(feed)
            except PluginFeatureNotSupportedError as exc:
                log.info("%s is polled: %s", self._series, exc)
                self._stream_from_s = time.monotonic() + self._timing.stream_again_s

    async def _recover(self, fault: PluginError) -> None:
        self.failures += 1
        self._tries += 1
        self._listener.failed(fault)
        timing = self._timing
        pause_s = backoff_s(self._tries, timing.backoff_s, timing.backoff_limit_s)
        if not fault.retryable:
            pause_s = max(pause_s, timing.backoff_limit_s / 2)
        await asyncio.sleep(max(pause_s, fault.retry_after_s or 0.0))

    async def _stream(self, feed: Feed) -> None:
        """Listen in a task of its own, which can be cancelled alone."""
        self.reconnects += self.connections > 0
        self.connections += 1
        self._began_ms, self._blamed, self._plugin = self._clock.now_ms(), None, feed.plugin
        task = self._connection = asyncio.create_task(self._listen(feed), name=f"stream of {self._series}")
        try:
            await asyncio.wait({task})
        finally:
            self._connection = self._began_ms = self._spoke_s = None
            task.cancel()
            await asyncio.wait({task})
            fault = None if task.cancelled() else task.exception()
            self._listener.parted()
        raise fault or self._blamed or NetworkPluginError("the stream was cancelled")

    async def _listen(self, feed: Feed) -> None:
        heard = 0
        async with aclosing(feed.plugin.live_minutes(self._series.symbol)) as minutes:
            async for live in minutes:
                self._note_word()
                self._listener.heard(live)
                heard += 1
                if heard % _SWALLOW == 0:
                    await asyncio.sleep(0)
        raise NetworkPluginError("the stream ended without a word")

    def _note_word(self) -> None:
        now_s = time.monotonic()
        self.failures = 0
        if self._spoke_s is None:
            self._spoke_s = now_s
        elif self._tries and now_s - self._spoke_s > self._timing.stable_s:
            self._tries = 0

    async def _poll(self, feed: Feed, until_s: float) -> None:
        """Look at intervals until an instant of the monotonic clock."""
        self.polling = True
        try:
            with self._pollers.one_more(feed.budget):
                while time.monotonic() < until_s:
                    least_s = await self._listener.poll()
                    self.failures = self._tries = 0
                    await asyncio.sleep(max(least_s, self._pollers.interval_s(feed, self._timing.poll_s)))
        finally:
            self.polling = False
