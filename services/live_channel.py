"""One live series in this process: what its follower tells, wherever that is, handed to the timeframes in order."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

import msgspec

from domain.bar import Bar, merge
from domain.clock import Clock
from domain.errors import CandleryError, UnsupportedTimeframeError
from domain.series import Series
from domain.timeframe import Timeframe
from plugins.base import Capabilities
from services.live import FeedState, Forming, Message, Revised, Settled, StatusEvent
from services.live_reader import LiveReader
from services.live_store import FeedRow, Revision
from services.live_timeframe import FoldedFeed, OfficialFeed, TimeframeFeed

log = logging.getLogger(__name__)

#: How long the first client of a series waits for its upstream to be up; then it is told that it is not.
BEGIN_S = 2.0
#: Asks for the corrections of a series after the one with this number.
Revisions = Callable[[int, int], Awaitable[list[Revision]]]


class LiveChannel:
    """Keeps one frontier, and never goes past a minute that it was not told of.

    It hears messages, which may be lost, and learns from the database, which is asked now and then.
    """

    def __init__(
        self,
        series_id: int,
        series: Series,
        capabilities: Capabilities | None,
        *,
        reader: LiveReader,
        revisions: Revisions,
        clock: Clock,
    ) -> None:
        """Take whose channel it is. Nothing is told before the frontier is learnt."""
        self.series_id = series_id
        self.series = series
        self.capabilities = capabilities
        #: Set when the frontier is known.
        self.ready = asyncio.Event()
        #: Every minute before here is closed, and was handed on.
        self.frontier_ms = 0
        self.state = FeedState.RECOVERING
        self.detail: str | None = None
        self.last_event_ms: int | None = None
        self.feeds: dict[Timeframe, TimeframeFeed] = {}
        self._reader = reader
        self._revisions = revisions
        self._clock = clock
        self._fence = 0
        #: The minute that forms, for timeframes that are asked for later.
        self._minute: Forming | None = None
        self._revision = 0
        #: Newer values of minutes that were not handed on yet.
        self._newer: dict[int, Bar] = {}
        #: What the database said last time, when it was ahead or otherwise.
        self._ahead_ms = 0
        self._doubt: FeedState | None = None
        self._made_s = time.monotonic()
        self._looking: asyncio.Task[None] | None = None
        self._look_again = False

    @property
    def listeners(self) -> int:
        """How many subscriptions there are."""
        return sum(feed.listeners for feed in self.feeds.values())

    def feed(self, timeframe: Timeframe) -> TimeframeFeed:
        """The feed of a timeframe; valid once the channel is ready.

        Raises:
            UnsupportedTimeframeError: it cannot be had.
        """
        feed = self.feeds.get(timeframe)
        if feed is None:
            kind = OfficialFeed if self._is_official(timeframe) else FoldedFeed
            feed = self.feeds[timeframe] = kind(timeframe, self._reader, self.frontier_ms)
            if self._minute is not None and self._minute.fence >= self._fence:
                feed.forming(self._minute)
        return feed

    def leave(self, timeframe: Timeframe) -> None:
        """A listener has left; the feed of a timeframe ends with the last one."""
        feed = self.feeds.get(timeframe)
        if feed is not None and not feed.listeners:
            feed.close()
            del self.feeds[timeframe]

    def close(self) -> None:
        """End what is under way."""
        for feed in self.feeds.values():
            feed.close()
        if self._looking is not None:
            self._looking.cancel()

    def hear(self, message: Message) -> None:
        """Take a message of the follower."""
        if isinstance(message, Revised):
            self._look()
            return
        if message.fence < self._fence:
            return
        if isinstance(message, Forming):
            # A quiet series may have no other word on it for the first client.
            self._minute = message
        if not self.ready.is_set():
            return
        self._fence, self.last_event_ms = message.fence, self._clock.now_ms()
        if isinstance(message, Settled):
            self._advance(message, follows=message.start_ms <= self.frontier_ms)
        elif isinstance(message, Forming):
            for feed in self.feeds.values():
                feed.forming(message)
        else:
            self._set_state(message.state, message.detail)

    def learn(self, row: FeedRow) -> None:
        """Take what the database says. Where that is news, a message may be on its way: it counts when it stays so."""
        if row.settled_ms is None:
            return
        state: FeedState = row.state if row.owned else FeedState.RECOVERING
        if not self.ready.is_set():
            if self._is_begun(row):
                self.frontier_ms, self._revision, self._fence = row.settled_ms, row.revision, row.fence
                self.state, self.detail = state, row.detail
                self.ready.set()
            return
        if row.settled_ms > self.frontier_ms and self._ahead_ms > self.frontier_ms:
            end_ms = self._ahead_ms
            self._advance(Settled(self.series_id, row.fence, end_ms, end_ms), follows=False)
        self._ahead_ms = row.settled_ms
        if row.revision > self._revision:
            self._look()
        if state is not self.state and self._doubt is state:
            self._set_state(state, row.detail)
        self._doubt = state

    def _is_begun(self, row: FeedRow) -> bool:
        """Whether the frontier is one to begin at: not what somebody left behind long ago, and is about to catch up."""
        if not row.owned:
            return False
        return row.state is not FeedState.RECOVERING or time.monotonic() - self._made_s >= BEGIN_S

    def _advance(self, message: Settled, *, follows: bool) -> None:
        if message.end_ms <= self.frontier_ms:
            return
        message = self._with_newer(message.beginning_at(self.frontier_ms))
        self.frontier_ms = message.end_ms
        for feed in self.feeds.values():
            feed.settled(message, follows=follows)

    def _with_newer(self, message: Settled) -> Settled:
        newer = [self._newer.pop(ts) for ts in sorted(self._newer) if ts < message.end_ms]
        return msgspec.structs.replace(message, bars=tuple(merge(message.bars, newer))) if newer else message

    def _set_state(self, state: FeedState, detail: str | None) -> None:
        if (state, detail) == (self.state, self.detail):
            return
        self.state, self.detail = state, detail
        event = StatusEvent(state, detail)
        for feed in self.feeds.values():
            feed.tell(event)

    def _look(self) -> None:
        """Read the log of corrections, once more where that is under way."""
        self._look_again = True
        if self.ready.is_set() and (self._looking is None or self._looking.done()):
            self._looking = asyncio.create_task(self._read_corrections(), name=f"corrections of {self.series}")

    async def _read_corrections(self) -> None:
        while self._look_again:
            self._look_again = False
            try:
                found = await self._revisions(self.series_id, self._revision)
            except CandleryError as exc:
                log.warning("corrections of %s could not be read: %s", self.series, exc)
                return
            if found:
                self._revision, self._look_again = found[-1].id, True
                self._correct([revision.bar for revision in found])

    def _correct(self, bars: list[Bar]) -> None:
        latest = merge(*([bar] for bar in bars))
        self._newer.update((bar.ts, bar) for bar in latest if bar.ts >= self.frontier_ms)
        if told := [bar for bar in latest if bar.ts < self.frontier_ms]:
            for feed in self.feeds.values():
                feed.revised(told)

    def _is_official(self, timeframe: Timeframe) -> bool:
        able = self.capabilities
        if able is None:
            return False
        if not able.can_serve(timeframe):
            raise UnsupportedTimeframeError(f"{self.series.provider} has no {timeframe.value} bars.")
        limit = able.folds_below
        return limit is not None and timeframe.nominal_ms >= limit.nominal_ms
