"""Half-open ranges of UTC epoch milliseconds, and sets of them."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Self

from domain.timeframe import Timeframe


class TimeRange(NamedTuple):
    """`[start_ms, end_ms)`, both UTC epoch milliseconds."""

    start_ms: int
    end_ms: int

    @property
    def length_ms(self) -> int:
        """Length of the range; zero or less where it is empty."""
        return self.end_ms - self.start_ms

    def contains(self, ts_ms: int) -> bool:
        """Whether the instant lies in the range."""
        return self.start_ms <= ts_ms < self.end_ms

    def intersect(self, other: "TimeRange") -> "TimeRange | None":
        """The part that both share, or None."""
        start, end = max(self.start_ms, other.start_ms), min(self.end_ms, other.end_ms)
        return TimeRange(start, end) if start < end else None


class RangeSet:
    """An immutable set of instants kept as ascending, disjoint, non-touching ranges."""

    __slots__ = ("ranges",)

    ranges: tuple[TimeRange, ...]

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        """Build the set from ranges in any order; overlapping and touching ones are joined, empty ones dropped."""
        self.ranges = tuple(_normalised(ranges)) if ranges else ()

    @classmethod
    def of(cls, start_ms: int, end_ms: int) -> Self:
        """The set of one range."""
        made = cls()
        if start_ms < end_ms:
            made.ranges = (TimeRange(start_ms, end_ms),)
        return made

    @classmethod
    def ascending(cls, ranges: Iterable[tuple[int, int]]) -> "RangeSet":
        """The set of ranges known to be ascending, disjoint and non-touching, as a multirange's are."""
        return _trusted([TimeRange(*pair) for pair in ranges])

    @classmethod
    def joining(cls, ranges: Iterable[tuple[int, int]]) -> "RangeSet":
        """The set of ranges known to be ascending and disjoint, of which touching ones are joined."""
        out: list[TimeRange] = []
        first = last = None
        for start, end in ranges:
            if start != last:
                if first is not None and last is not None:
                    out.append(TimeRange(first, last))
                first = start
            last = end
        if first is not None and last is not None:
            out.append(TimeRange(first, last))
        return _trusted(out)

    def __iter__(self) -> Iterator[TimeRange]:
        """The ranges, ascending."""
        return iter(self.ranges)

    def __len__(self) -> int:
        """Number of the ranges."""
        return len(self.ranges)

    def __bool__(self) -> bool:
        """Whether anything is in the set."""
        return bool(self.ranges)

    def __eq__(self, other: object) -> bool:
        """Sets are equal when they hold the same instants."""
        return isinstance(other, RangeSet) and self.ranges == other.ranges

    def __hash__(self) -> int:
        """Hash of the ranges."""
        return hash(self.ranges)

    def __repr__(self) -> str:
        """The ranges as pairs."""
        return f"RangeSet({[tuple(r) for r in self.ranges]})"

    def __or__(self, other: "RangeSet") -> "RangeSet":
        """Instants in either set."""
        if not other.ranges:
            return self
        return RangeSet((*self.ranges, *other.ranges)) if self.ranges else other

    def __and__(self, other: "RangeSet") -> "RangeSet":
        """Instants in both sets."""
        out: list[TimeRange] = []
        i = j = 0
        while i < len(self.ranges) and j < len(other.ranges):
            a, b = self.ranges[i], other.ranges[j]
            if (shared := a.intersect(b)) is not None:
                out.append(shared)
            if a.end_ms <= b.end_ms:
                i += 1
            else:
                j += 1
        return _trusted(out)

    def __sub__(self, other: "RangeSet") -> "RangeSet":
        """Instants in this set and not in the other."""
        if not other.ranges or not self.ranges:
            return self
        out: list[TimeRange] = []
        j = 0
        for a in self.ranges:
            start = a.start_ms
            while j < len(other.ranges) and other.ranges[j].end_ms <= start:
                j += 1
            k = j
            while k < len(other.ranges) and other.ranges[k].start_ms < a.end_ms:
                b = other.ranges[k]
                if b.start_ms > start:
                    out.append(TimeRange(start, b.start_ms))
                start = max(start, b.end_ms)
                k += 1
            if start < a.end_ms:
                out.append(TimeRange(start, a.end_ms))
        return _trusted(out)

    @property
    def length_ms(self) -> int:
        """Total length of the ranges."""
        return sum(r.end_ms - r.start_ms for r in self.ranges)

    @property
    def span(self) -> TimeRange | None:
        """From the first instant to the last, or None for the empty set."""
        return TimeRange(self.ranges[0].start_ms, self.ranges[-1].end_ms) if self.ranges else None

    def covers(self, wanted: "RangeSet") -> bool:
        """Whether every instant of `wanted` is in this set."""
        return not (wanted - self)

    def whole_buckets(self, timeframe: Timeframe) -> "RangeSet":
        """The part made of whole buckets: each range shrunk inward to bucket borders."""
        inward = ((timeframe.ceil(r.start_ms), timeframe.floor(r.end_ms)) for r in self.ranges)
        return _trusted([TimeRange(start, end) for start, end in inward if start < end])

    def outward(self, timeframe: Timeframe) -> "RangeSet":
        """Each range grown outward to bucket borders."""
        return RangeSet((timeframe.floor(r.start_ms), timeframe.ceil(r.end_ms)) for r in self.ranges)


#: The set of nothing.
NOWHERE = RangeSet()


def _normalised(ranges: Iterable[tuple[int, int]]) -> Iterator[TimeRange]:
    current: TimeRange | None = None
    for start, end in sorted(pair for pair in ranges if pair[0] < pair[1]):
        if current is None:
            current = TimeRange(start, end)
        elif start <= current.end_ms:
            current = TimeRange(current.start_ms, max(current.end_ms, end))
        else:
            yield current
            current = TimeRange(start, end)
    if current is not None:
        yield current


def _trusted(ranges: list[TimeRange]) -> RangeSet:
    """A set of ranges known to be ascending, disjoint and non-touching."""
    out = RangeSet()
    out.ranges = tuple(ranges)
    return out
