"""Folding closed minutes into closed bars of a coarser timeframe, and the minute that forms into the bar that forms."""

from collections.abc import Sequence

from domain.bar import Bar, fold
from domain.timeframe import Timeframe


class LiveFold:
    """One timeframe of one series, from some instant on. Pure."""

    def __init__(self, timeframe: Timeframe, from_ms: int, *, partial: Bar | None = None, whole: bool = True) -> None:
        """Begin at `from_ms`.

        Args:
            timeframe: what is folded into.
            from_ms: every minute before is in `partial`, or in a bucket before the one that holds it.
            partial: what its bucket holds so far.
            whole: whether `partial` is made of just the minutes that the store holds. The bar of a bucket that is not
                whole is good enough to show as forming, and has to be asked for when it closes.
        """
        self._timeframe = timeframe
        self._partial = partial
        #: Every bucket before here is closed.
        self.closed_ms = timeframe.floor(from_ms)
        self.whole = whole

    def closes_at(self, end_ms: int) -> bool:
        """Whether a bucket is closed when every minute before `end_ms` is."""
        return self._timeframe.floor(end_ms) > self.closed_ms

    def settle(self, bars: Sequence[Bar], end_ms: int) -> list[Bar]:
        """Take the next closed minutes, all of those up to `end_ms`; return the bars that are closed by that."""
        found = fold((*self._parts(), *bars), self._timeframe)
        closed_ms = self._timeframe.floor(end_ms)
        if closed_ms > self.closed_ms:
            self.closed_ms, self.whole = closed_ms, True
        self._partial = found.pop() if found and found[-1].ts >= closed_ms else None
        return found

    def forming(self, minute: Bar) -> Bar:
        """The bar that forms, with a minute that is not closed; `minute` lies in or after the present bucket."""
        return fold((*self._parts(), minute), self._timeframe)[-1]

    def _parts(self) -> tuple[Bar, ...]:
        return () if self._partial is None else (self._partial,)
