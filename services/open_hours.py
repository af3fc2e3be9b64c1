"""The hours of one venue around the present, as far as they were asked for. What is not known counts as open. Pure."""

from domain.time_range import RangeSet, TimeRange
from domain.timeframe import MINUTE_MS


class OpenHours:
    """Minutes in which a venue is open, or may be."""

    __slots__ = ("_shut", "known")

    def __init__(self, known: TimeRange | None = None, is_open: RangeSet = RangeSet()) -> None:  # noqa: B008 - immutable
        """Take the range that is known, and the open minutes in it; without one the venue never closes."""
        self.known = known
        self._shut = RangeSet() if known is None else RangeSet((known,)) - is_open

    def shut(self, start_ms: int, end_ms: int) -> RangeSet:
        """The part of a range in which the venue is closed."""
        return self._shut & RangeSet.of(start_ms, end_ms) if self._shut else self._shut

    def minutes(self, start_ms: int, end_ms: int) -> int:
        """How many minutes of a range are open."""
        return max(0, end_ms - start_ms - self.shut(start_ms, end_ms).length_ms) // MINUTE_MS

    def next_open(self, from_ms: int) -> int:
        """The instant itself, where the venue is open, or when it opens next."""
        for part in self._shut:
            if part.start_ms <= from_ms < part.end_ms:
                return part.end_ms
        return from_ms

    def after(self, from_ms: int, minutes: int) -> int:
        """The end of so many open minutes, counted from an instant on."""
        end_ms = from_ms + minutes * MINUTE_MS
        for part in self._shut:
            if part.end_ms > from_ms and part.start_ms < end_ms:
                end_ms += part.end_ms - max(part.start_ms, from_ms)
        return end_ms
