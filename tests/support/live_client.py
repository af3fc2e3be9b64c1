"""A client of live bars that remembers what it was told, and says what of it is wrong."""

import asyncio

from domain.bar import Bar
from services.live import (
    BarEvent,
    BarState,
    CaughtUpEvent,
    GapEvent,
    LiveEvent,
    SnapshotEvent,
    StatusEvent,
    SubscribedEvent,
)


class LiveClient:
    """The sink of one subscription."""

    def __init__(self, *, pause_s: float = 0, since_ms: int | None = None) -> None:
        self.events: list[LiveEvent] = []
        #: Closed bars in the order in which they were told.
        self.closed: list[Bar] = []
        self.corrected: list[Bar] = []
        self.forming: list[Bar] = []
        self.gaps: list[GapEvent] = []
        self.states: list[StatusEvent] = []
        self.is_live = False
        self.faults: list[str] = []
        self._pause_s = pause_s
        self._since_ms = since_ms

    def tell(self, event: LiveEvent) -> None:
        if not self.events and not isinstance(event, SubscribedEvent):
            self.faults.append(f"{event} came before the subscription was confirmed")
        self.events.append(event)
        if isinstance(event, SnapshotEvent):
            self._take_snapshot(event)
        elif isinstance(event, CaughtUpEvent):
            self.is_live = True
        elif isinstance(event, BarEvent):
            self._take_bar(event)
        elif isinstance(event, GapEvent):
            self.gaps.append(event)
        elif isinstance(event, StatusEvent):
            self.states.append(event)

    async def room(self) -> None:
        await asyncio.sleep(self._pause_s)

    @property
    def view(self) -> list[Bar]:
        """The closed bars as the client has them now: with every correction from where it began on."""
        bars = {bar.ts: bar for bar in self.closed}
        first_ms = min(bars, default=0) if self._since_ms is None else self._since_ms
        bars.update((bar.ts, bar) for bar in self.corrected if bar.ts >= first_ms)
        return [bars[ts] for ts in sorted(bars)]

    def _take_snapshot(self, event: SnapshotEvent) -> None:
        if self.is_live:
            self.faults.append("a snapshot came after the live bars began")
        if not event.bars:
            self.faults.append("an empty snapshot")
        for bar in event.bars:
            self._close(bar)

    def _take_bar(self, event: BarEvent) -> None:
        if event.state is BarState.CLOSED:
            if not self.is_live:
                self.faults.append(f"{event.bar.ts} came before the live bars began")
            self._close(event.bar)
        elif event.state is BarState.CORRECTED:
            self.corrected.append(event.bar)
        else:
            if self.closed and event.bar.ts <= self.closed[-1].ts:
                self.faults.append(f"{event.bar.ts} forms after it was closed")
            self.forming.append(event.bar)

    def _close(self, bar: Bar) -> None:
        if self.closed and bar.ts <= self.closed[-1].ts:
            self.faults.append(f"{bar.ts} was closed after {self.closed[-1].ts}")
        self.closed.append(bar)
