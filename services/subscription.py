"""One subscription of one client: what was before, then what comes, without a bar missing or doubled in between."""

from domain.time_range import TimeRange
from services.live import (
    BarEvent,
    BarState,
    CaughtUpEvent,
    FeedState,
    GapEvent,
    LiveEvent,
    LiveQuery,
    Sink,
    SnapshotEvent,
    StatusEvent,
    SubscribedEvent,
)
from services.live_channel import LiveChannel
from services.live_reader import LiveReader


class Subscription:
    """Made by `SubscriptionService.subscribe()`; `run()` brings it to the present, `close()` ends it."""

    def __init__(self, query: LiveQuery, sink: Sink, channel: LiveChannel, reader: LiveReader) -> None:
        """Take a channel that is ready.

        Raises:
            UnsupportedTimeframeError: the timeframe cannot be had.
        """
        self.query = query
        self.channel = channel
        self._sink = sink
        self._reader = reader
        self._feed = channel.feed(query.timeframe)
        self._feed.catch_up(self)
        self._closed = False

    async def run(self) -> None:
        """Tell what was before, page by page as the sink has room; from then on everything is told as it comes.

        Raises:
            CandleryError: what was before cannot be read.
        """
        self._sink.tell(SubscribedEvent())
        at = await self._begin()
        # Bars go on being closed meanwhile. Between the last look and attaching nothing else runs: this is the seam.
        while at < self._feed.closed_ms:
            # Nothing is held for a client that does not read: no bars, either.
            await self._sink.room()
            at = await self._tell_from(at)
        if not self._closed:
            self._go_live(at)

    def close(self) -> None:
        """Tell nothing more."""
        if not self._closed:
            self._closed = True
            self._feed.detach(self)
            self.channel.leave(self.query.timeframe)

    async def _begin(self) -> int:
        """Where closed bars are told from."""
        query = self.query
        if query.since_ms is not None:
            return query.timeframe.ceil(query.since_ms)
        before_ms = self._feed.closed_ms
        if query.last:
            return await self._reader.start_of_last(query.timeframe, before_ms, query.last)
        return before_ms

    async def _tell_from(self, at: int) -> int:
        """Tell a part of what was before, and where the next one begins."""
        part = await self._reader.part(self.query.timeframe, TimeRange(at, self._feed.closed_ms))
        if part.bars:
            self._say(SnapshotEvent(part.bars))
        for gap in part.lost:
            self._say(GapEvent(gap.range, gap.verdict))
        return part.end_ms

    def _go_live(self, from_ms: int) -> None:
        self._say(CaughtUpEvent())
        if self.channel.state is not FeedState.UP:
            self._say(StatusEvent(self.channel.state, self.channel.detail))
        # Another process may have told more than this one knows yet.
        sink = self._sink if from_ms <= self._feed.closed_ms else _From(self._sink, from_ms)
        self._feed.attach(self, sink, closed_only=self.query.closed_only)

    def _say(self, event: LiveEvent) -> None:
        if not self._closed:
            self._sink.tell(event)


class _From:
    """Leaves out closed bars from before an instant."""

    def __init__(self, sink: Sink, from_ms: int) -> None:
        self._sink = sink
        self._from_ms = from_ms

    def tell(self, event: LiveEvent) -> None:
        """Pass the event on, unless the client has it."""
        if not isinstance(event, BarEvent) or event.state is not BarState.CLOSED or event.bar.ts >= self._from_ms:
            self._sink.tell(event)

    async def room(self) -> None:
        """As the sink's."""
        await self._sink.room()
