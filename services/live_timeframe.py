"""One timeframe of one live series: what is told to everybody who listens to it, in order and once."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Hashable, Sequence
from typing import Any

from domain.bar import Bar
from domain.errors import CandleryError
from domain.time_range import TimeRange
from domain.timeframe import Timeframe
from services.live import BarEvent, BarState, Forming, GapEvent, LiveEvent, Settled, Sink
from services.live_fold import LiveFold
from services.live_reader import LiveReader, Part

log = logging.getLogger(__name__)

#: Before the first and the last new try at reading what was missed, in seconds.
RETRY_S = 0.5
RETRY_LIMIT_S = 15.0
#: How often a stretch that cannot be had is asked for before that is told.
LOST_TRIES = 3
#: How often a provider is asked for its own bars of a timeframe that is not folded, in seconds.
OFFICIAL_EVERY_S = 60.0


class TimeframeFeed(ABC):
    """Listeners of a timeframe. `closed_ms`: the closed bars of every bucket before were told."""

    def __init__(self, timeframe: Timeframe, reader: LiveReader, frontier_ms: int) -> None:
        """Begin with the bucket that is not closed when every minute before the frontier is."""
        self.timeframe = timeframe
        self.reader = reader
        self.closed_ms = timeframe.floor(frontier_ms)
        #: What forms was told last.
        self.latest: BarEvent | None = None
        self._sinks: dict[Hashable, Sink] = {}
        self._forming_sinks: dict[Hashable, Sink] = {}
        #: Corrections for those that still read what was before, by listener.
        self._catching_up: dict[Hashable, list[LiveEvent]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @abstractmethod
    def settled(self, message: Settled, *, follows: bool) -> None:
        """Minutes were closed. `follows`: none is missing between those told before and these."""

    @abstractmethod
    def forming(self, message: Forming) -> None:
        """The present minute has moved."""

    @abstractmethod
    def revised(self, minutes: Sequence[Bar]) -> None:
        """These minutes have other values now."""

    @property
    def listeners(self) -> int:
        """How many listen, or are about to."""
        return len(self._sinks) + len(self._catching_up)

    def catch_up(self, key: Hashable) -> None:
        """Keep corrections for a listener that reads what was before."""
        self._catching_up[key] = []

    def attach(self, key: Hashable, sink: Sink, *, closed_only: bool) -> None:
        """Tell the listener everything from now on, after the corrections that were kept for it."""
        for event in self._catching_up.pop(key, ()):
            sink.tell(event)
        self._sinks[key] = sink
        if not closed_only:
            self._forming_sinks[key] = sink
            if self.latest is not None:
                sink.tell(self.latest)

    def detach(self, key: Hashable) -> None:
        """Tell the listener nothing more."""
        self._catching_up.pop(key, None)
        self._sinks.pop(key, None)
        self._forming_sinks.pop(key, None)

    def close(self) -> None:
        """End what is under way."""
        for task in self._tasks:
            task.cancel()

    def tell(self, event: LiveEvent) -> None:
        """Tell every listener."""
        # A copy: a listener may leave when it is told.
        for sink in tuple(self._sinks.values()):
            sink.tell(event)

    def _tell_forming(self, bar: Bar, venue_ms: int | None) -> None:
        event = self.latest = BarEvent(bar, BarState.FORMING, venue_ms)
        for sink in tuple(self._forming_sinks.values()):
            sink.tell(event)

    def _tell_closed(self, part: Part, venue_ms: int | None = None) -> None:
        """Tell closed bars and what could not be had, in order."""
        if self.latest is not None and self.latest.bar.ts < part.end_ms:
            self.latest = None
        events: list[tuple[int, LiveEvent]] = [(bar.ts, BarEvent(bar, BarState.CLOSED, venue_ms)) for bar in part.bars]
        if part.lost:
            events += ((gap.range.start_ms, GapEvent(gap.range, gap.verdict)) for gap in part.lost)
            events.sort(key=lambda timed: timed[0])
        self.closed_ms = part.end_ms
        for _, event in events:
            self.tell(event)

    def _tell_corrected(self, bar: Bar) -> None:
        event = BarEvent(bar, BarState.CORRECTED)
        for held in self._catching_up.values():
            held.append(event)
        self.tell(event)

    def _start(self, work: Coroutine[Any, Any, None], what: str) -> None:
        task = asyncio.create_task(work, name=f"{what} {self.timeframe.value}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            log.error("%s failed", task.get_name(), exc_info=failure)


class FoldedFeed(TimeframeFeed):
    """A timeframe that is folded from the minutes."""

    def __init__(self, timeframe: Timeframe, reader: LiveReader, frontier_ms: int) -> None:
        """Begin; what the present bucket holds already is read."""
        super().__init__(timeframe, reader, frontier_ms)
        self._frontier_ms = frontier_ms
        #: None: what was missed is being read.
        self._fold: LiveFold | None = None
        #: The minute that forms, for who comes or is brought to the present later.
        self._minute: Forming | None = None
        #: How often minutes were altered that are not told yet: what is being read may be from before.
        self._alterations = 0
        #: Buckets that were told, and have other values now.
        self._altered: set[int] = set()
        self._is_correcting = False
        if timeframe is Timeframe.M1:
            self._fold = LiveFold(timeframe, frontier_ms)
        else:
            self._start(self._read_on(), "read on")

    def settled(self, message: Settled, *, follows: bool) -> None:
        """Fold on; where that does not give what the store will, read instead."""
        self._frontier_ms, fold = message.end_ms, self._fold
        if fold is None:
            return
        minutes = self.timeframe is Timeframe.M1
        broken = bool(message.lost) and not minutes
        if not follows or broken or (not fold.whole and fold.closes_at(message.end_ms)):
            self._recover()
            return
        closed = fold.settle(message.bars, message.end_ms)
        self._tell_closed(Part(closed, message.gaps if minutes else [], fold.closed_ms), message.venue_ms)

    def forming(self, message: Forming) -> None:
        """Tell the bar that the present minute is a part of."""
        self._minute = message
        self._show()

    def attach(self, key: Hashable, sink: Sink, *, closed_only: bool) -> None:
        """As for every timeframe; what forms was perhaps not told, as nobody wanted to know."""
        super().attach(key, sink, closed_only=closed_only)
        if self.latest is None:
            self._show()

    def _show(self) -> None:
        minute = self._minute
        if minute is None or self._fold is None or not self._forming_sinks:
            return
        if minute.bar.ts >= self._frontier_ms:
            self._tell_forming(self._fold.forming(minute.bar), minute.venue_ms)

    def revised(self, minutes: Sequence[Bar]) -> None:
        """Tell the bars that these minutes are, or are a part of, where they were told as closed."""
        buckets = {self.timeframe.floor(bar.ts) for bar in minutes}
        old = {ts for ts in buckets if ts < self.closed_ms}
        if self.timeframe is Timeframe.M1:
            for bar in minutes:
                if bar.ts in old:
                    self._tell_corrected(bar)
        elif old:
            self._altered |= old
            if not self._is_correcting:
                self._is_correcting = True
                self._start(self._correct(), "correct")
        if buckets > old:
            self._alterations += 1
            self._recover()

    def _recover(self) -> None:
        if self._fold is not None:
            self._fold = None
            self._start(self._read_on(), "read on")

    async def _read_on(self) -> None:
        """Read what was missed, for as long as it takes."""
        pause_s = RETRY_S
        while self._fold is None:
            try:
                await self._read_missed()
                await self._read_present()
            except CandleryError as exc:
                log.warning("%s bars wait to be read on: %s", self.timeframe.value, exc)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_LIMIT_S)

    async def _read_missed(self) -> None:
        """Tell the bars that were closed meanwhile."""
        tries = 0
        while (target_ms := self.timeframe.floor(self._frontier_ms)) > self.closed_ms:
            alterations = self._alterations
            part = await self.reader.part(self.timeframe, TimeRange(self.closed_ms, target_ms))
            if alterations != self._alterations:
                continue
            if part.lost and tries < LOST_TRIES:
                tries += 1
                await asyncio.sleep(RETRY_S * tries)
                continue
            self._tell_closed(part)

    async def _read_present(self) -> None:
        """Read what the present bucket holds; not done where it moved meanwhile."""
        frontier_ms, alterations = self._frontier_ms, self._alterations
        partial, whole = None, True
        if frontier_ms > self.closed_ms:
            present = TimeRange(self.closed_ms, frontier_ms)
            partial, whole = await self.reader.partial(self.timeframe, present)
        if (frontier_ms, alterations) == (self._frontier_ms, self._alterations):
            self._fold = LiveFold(self.timeframe, frontier_ms, partial=partial, whole=whole)
            self._show()

    async def _correct(self) -> None:
        """Tell altered bars one after the other, as they are at last: a reading that was overtaken is not told."""
        pause_s = RETRY_S
        try:
            while self._altered:
                ts_ms = min(self._altered)
                self._altered.discard(ts_ms)
                try:
                    part = await self.reader.part(self.timeframe, TimeRange(ts_ms, self.timeframe.next(ts_ms)))
                except CandleryError as exc:
                    log.warning("a corrected %s bar of %d waits to be read: %s", self.timeframe.value, ts_ms, exc)
                    self._altered.add(ts_ms)
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, RETRY_LIMIT_S)
                    continue
                for bar in part.bars if ts_ms not in self._altered else ():
                    self._tell_corrected(bar)
        finally:
            self._is_correcting = False


class OfficialFeed(TimeframeFeed):
    """A timeframe whose bars are the provider's own, and not its minutes: the provider is asked for them."""

    def __init__(self, timeframe: Timeframe, reader: LiveReader, frontier_ms: int) -> None:
        """Begin to ask."""
        super().__init__(timeframe, reader, frontier_ms)
        self._start(self._ask_on(), "ask for official")

    def settled(self, message: Settled, *, follows: bool) -> None:
        """Nothing: minutes do not make these bars."""

    def forming(self, message: Forming) -> None:
        """Nothing."""

    def revised(self, minutes: Sequence[Bar]) -> None:
        """Nothing."""

    async def _ask_on(self) -> None:
        while True:
            try:
                await self._ask()
            except CandleryError as exc:
                log.warning("official %s bars could not be asked for: %s", self.timeframe.value, exc)
            await asyncio.sleep(OFFICIAL_EVERY_S)

    async def _ask(self) -> None:
        answer = await self.reader.official(self.timeframe, self.closed_ms)
        forming = set(answer.forming)
        closed = [bar for bar in answer.bars if bar.ts not in forming]
        if closed:
            self._tell_closed(Part(closed, [], self.timeframe.next(closed[-1].ts)))
        for bar in answer.bars:
            if bar.ts in forming and self._changed(bar):
                self._tell_forming(bar, None)

    def _changed(self, bar: Bar) -> bool:
        return self.latest is None or self.latest.bar != bar
