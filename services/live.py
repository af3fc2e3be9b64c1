"""Live bars: what is said between the follower of a series, the processes that share it, and their clients."""

from enum import StrEnum
from typing import Protocol

import msgspec

from domain.bar import Bar
from domain.series import Gap, Series, Verdict
from domain.time_range import TimeRange
from domain.timeframe import Timeframe


class FeedState(StrEnum):
    """How the upstream of a series fares."""

    #: Bars come in as they form.
    UP = "up"
    #: It dropped or fell silent: it is connected again, and what was missed is fetched.
    RECOVERING = "recovering"
    #: It cannot be reached.
    DOWN = "down"


class LostRange(msgspec.Struct, frozen=True, array_like=True):
    """A stretch of minutes that could not be made whole; half-open, epoch milliseconds."""

    start_ms: int
    end_ms: int
    verdict: Verdict


class Settled(msgspec.Struct, frozen=True, tag="settled"):
    """The minutes of `[start_ms, end_ms)` are closed and stored.

    Attributes:
        series_id: whose.
        fence: of the lease under which they were written.
        start_ms: where the minutes closed before ended.
        end_ms: every minute before here is closed.
        bars: all bars of the range, ascending. Minutes without one had none, or lie in `lost`.
        lost: what could not be had.
        venue_ms: the venue's clock when it told of the last of them, where it says.
    """

    series_id: int
    fence: int
    start_ms: int
    end_ms: int
    bars: tuple[Bar, ...] = ()
    lost: tuple[LostRange, ...] = ()
    venue_ms: int | None = None

    @property
    def gaps(self) -> list[Gap]:
        """`lost`, as gaps."""
        return [Gap(TimeRange(part.start_ms, part.end_ms), part.verdict) for part in self.lost]

    def beginning_at(self, start_ms: int) -> "Settled":
        """The part from an instant on."""
        if start_ms <= self.start_ms:
            return self
        bars = tuple(bar for bar in self.bars if bar.ts >= start_ms)
        lost = tuple(
            LostRange(max(part.start_ms, start_ms), part.end_ms, part.verdict)
            for part in self.lost
            if part.end_ms > start_ms
        )
        return msgspec.structs.replace(self, start_ms=start_ms, bars=bars, lost=lost)


class Forming(msgspec.Struct, frozen=True, tag="forming"):
    """The minute that is not closed yet, as far as it has come."""

    series_id: int
    fence: int
    bar: Bar
    venue_ms: int | None = None


class Revised(msgspec.Struct, frozen=True, tag="revised"):
    """Closed minutes of the series were altered: the revision log says which."""

    series_id: int


class Status(msgspec.Struct, frozen=True, tag="status"):
    """The upstream of the series has another state now."""

    series_id: int
    fence: int
    state: FeedState
    detail: str | None = None


#: What the follower of a series tells every process.
Message = Settled | Forming | Revised | Status


class BarState(StrEnum):
    """What a client is told a bar is."""

    FORMING = "forming"
    CLOSED = "closed"
    #: It was closed before, and the venue has changed it.
    CORRECTED = "corrected"


class LiveEvent:
    """Something that subscriptions are told. One object serves all readers of a series and timeframe.

    Attributes:
        wire: how the readers' side encodes it, kept here by the first reader for all others; None: not yet.
    """

    __slots__ = ("wire",)

    def __init__(self) -> None:
        """Nothing is encoded yet."""
        self.wire: str | None = None


class BarEvent(LiveEvent):
    """A bar. `venue_ms`: the venue's clock when it told of it, where it says."""

    __slots__ = ("bar", "state", "venue_ms")

    def __init__(self, bar: Bar, state: BarState, venue_ms: int | None = None) -> None:
        """Take what is told."""
        super().__init__()
        self.bar, self.state, self.venue_ms = bar, state, venue_ms


class GapEvent(LiveEvent):
    """A stretch that could not be made whole."""

    __slots__ = ("range", "verdict")

    def __init__(self, lost: TimeRange, verdict: Verdict) -> None:
        """Take what is told."""
        super().__init__()
        self.range, self.verdict = lost, verdict


class StatusEvent(LiveEvent):
    """The upstream's state, and what is the matter in words."""

    __slots__ = ("detail", "state")

    def __init__(self, state: FeedState, detail: str | None = None) -> None:
        """Take what is told."""
        super().__init__()
        self.state, self.detail = state, detail


class SubscribedEvent(LiveEvent):
    """The subscription exists; what was before comes next."""

    __slots__ = ()


class SnapshotEvent(LiveEvent):
    """Closed bars from before the live ones, ascending; further ones may follow."""

    __slots__ = ("bars",)

    def __init__(self, bars: list[Bar]) -> None:
        """Take what is told."""
        super().__init__()
        self.bars = bars


class CaughtUpEvent(LiveEvent):
    """All closed bars up to the present were told; live ones follow."""

    __slots__ = ()


class LiveQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What a client subscribes to.

    Attributes:
        since_ms: begin with all closed bars from here on; at most one of `since_ms` and `last` is given.
        last: begin with so many closed bars; None (and no `since_ms`): with none.
        closed_only: no forming bars.
    """

    series: Series
    timeframe: Timeframe
    since_ms: int | None = None
    last: int | None = None
    closed_only: bool = False


class Sink(Protocol):
    """Where the events of one subscription go, in order."""

    def tell(self, event: LiveEvent) -> None:
        """Take an event at once; never waits, never raises."""
        ...

    async def room(self) -> None:
        """Wait until another part of a snapshot may be told."""
        ...
