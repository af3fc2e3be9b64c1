"""Minutes in compact form: an hour is 60 slots of fixed width, a day 24 hours.

Any part of a day is read, written and sent by itself, and no bar is looked at for it. An hour never changes: what is
learnt of it makes another one, so that whoever reads the old one is not disturbed.
"""

import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from domain.bar import Bar
from domain.packed import ROW, PackedBars, Piece, text_of
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS

HOURS = 24
SLOTS = 60
#: A bit a slot.
ALL = (1 << SLOTS) - 1
_NO_ROWS = bytes(SLOTS * ROW.size)


class Hour:
    """What is known of an hour: minutes whose truth is settled, those of them that have a bar, and the bars' rows."""

    __slots__ = ("_ends", "_text", "known", "present", "slots")

    def __init__(self, known: int, present: int, slots: bytes) -> None:
        """Take a bit for each slot that is known, one for each that holds a bar, and the rows, slot by slot."""
        self.known = known
        self.present = present
        self.slots = slots if present else b""
        self._text = b""
        self._ends: array[int] | None = None

    @property
    def size(self) -> int:
        """Bytes of memory that it takes."""
        ends = 0 if self._ends is None else sys.getsizeof(self._ends)
        return sum(map(sys.getsizeof, (self, self.known, self.present, self.slots, self._text))) + ends

    def overlaid(self, newer: "Hour") -> "Hour":
        """This hour with newer knowledge laid over it."""
        kept = self.present & ~newer.known
        if not kept:
            return Hour(self.known | newer.known, newer.present, newer.slots)
        slots = bytearray(newer.slots or _NO_ROWS)
        for first, end in runs(kept):
            slots[first * ROW.size : end * ROW.size] = self.slots[first * ROW.size : end * ROW.size]
        return Hour(self.known | newer.known, kept | newer.present, bytes(slots))

    def write_out(self) -> None:
        """Make the text of its bars now, once for all who will ask for it."""
        rows = text_of(self.raw(0, SLOTS))[1:-1].split(b"],[") if self.present else []
        ends, at = array("H", (0,)), 0
        texts = iter(rows)
        for slot in range(SLOTS):
            if self.present >> slot & 1:
                at += len(next(texts)) + len("[],")
            ends.append(at)
        self._text = b"".join(b"[%b]," % row for row in rows)
        self._ends = ends

    def count(self, first: int, end: int) -> int:
        """Bars in the slots from `first` to `end`."""
        return (self.present & mask(first, end)).bit_count()

    def raw(self, first: int, end: int) -> bytes:
        """The rows of the bars in the slots."""
        held = self.present & mask(first, end)
        return b"".join(self.slots[a * ROW.size : b * ROW.size] for a, b in runs(held))

    def text(self, first: int, end: int) -> bytes:
        """The bars in the slots, which are some, as JSON arrays with commas between them."""
        if self._ends is None:
            return text_of(self.raw(first, end))
        return self._text[self._ends[first] : self._ends[end] - 1]


class _Slots:
    """The bars in some slots of an hour."""

    __slots__ = ("_count", "_end", "_first", "_hour")

    def __init__(self, hour: Hour, first: int, end: int) -> None:
        self._hour = hour
        self._first = first
        self._end = end
        self._count = hour.count(first, end)

    def __len__(self) -> int:
        return self._count

    def raw(self) -> bytes:
        return self._hour.raw(self._first, self._end)

    def text(self) -> bytes:
        return self._hour.text(self._first, self._end)


class DayBlock:
    """Hours of one UTC day, as far as they are here."""

    __slots__ = ("day_ms", "hours")

    def __init__(self, day_ms: int, hours: Sequence[Hour | None] = (None,) * HOURS) -> None:
        """Take the day's start, and its hours in order."""
        self.day_ms = day_ms
        self.hours = list(hours)

    @property
    def size(self) -> int:
        """Bytes of memory that it takes."""
        return sum(map(sys.getsizeof, (self, self.hours))) + sum(hour.size for hour in self.hours if hour is not None)

    def lay(self, hour: int, newer: Hour) -> Hour:
        """Lay newer knowledge over an hour; what it is then."""
        older = self.hours[hour]
        self.hours[hour] = now = newer if older is None else older.overlaid(newer)
        return now

    def take(self, wanted: RangeSet, found: "Findings") -> None:
        """Add what is known of the wanted minutes of this day."""
        for start_ms, end_ms in wanted:
            first, end = (start_ms - self.day_ms) // MINUTE_MS, (end_ms - self.day_ms) // MINUTE_MS
            for number in range(first // SLOTS, (end + SLOTS - 1) // SLOTS):
                hour = self.hours[number]
                if hour is not None:
                    base = number * SLOTS
                    found.add(self.day_ms + number * HOUR_MS, hour, max(first - base, 0), min(end - base, SLOTS))


class Findings:
    """What is found in the blocks of ascending days."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._pieces: list[Piece] = []
        self._known: list[TimeRange] = []

    @property
    def bars(self) -> PackedBars:
        """The bars."""
        return PackedBars(*self._pieces)

    @property
    def known(self) -> RangeSet:
        """The minutes that are known."""
        return RangeSet.joining(self._known)

    def add(self, hour_ms: int, hour: Hour, first: int, end: int) -> None:
        """Add what is known of an hour's slots."""
        wanted = mask(first, end)
        known = hour.known & wanted
        for a, b in ((first, end),) if known == wanted else runs(known):
            self._known.append(TimeRange(hour_ms + a * MINUTE_MS, hour_ms + b * MINUTE_MS))
            self._pieces.append(_Slots(hour, a, b))


def hours_of(bars: PackedBars, known: RangeSet) -> Iterator[tuple[int, Hour]]:
    """The hours that `known` touches, ascending, each by its start with its part of what is known and of the bars."""
    raw, stamps = bars.raw(), list(bars.times())
    for hour_ms, part in parts_of(known, HOUR_MS):
        bits = 0
        for start_ms, end_ms in part:
            bits |= mask((start_ms - hour_ms) // MINUTE_MS, (end_ms - hour_ms) // MINUTE_MS)
        first, end = bisect_left(stamps, hour_ms), bisect_left(stamps, hour_ms + HOUR_MS)
        yield hour_ms, _hour(hour_ms, bits, stamps[first:end], raw[first * ROW.size : end * ROW.size])


def _hour(hour_ms: int, known: int, stamps: Sequence[int], raw: bytes) -> Hour:
    """An hour of the bars that lie in what is known of it."""
    if len(stamps) == SLOTS and known == ALL:
        return Hour(ALL, ALL, raw)
    slots, present = bytearray(_NO_ROWS), 0
    for at, ts in enumerate(stamps):
        slot = (ts - hour_ms) // MINUTE_MS
        if known >> slot & 1:
            present |= 1 << slot
            slots[slot * ROW.size : (slot + 1) * ROW.size] = raw[at * ROW.size : (at + 1) * ROW.size]
    return Hour(known, present, bytes(slots))


def parts_of(ranges: RangeSet, width_ms: int) -> Iterator[tuple[int, RangeSet]]:
    """The stretches of a width that the ranges touch, each by its start with its part of them."""
    current, parts = 0, list[TimeRange]()
    for start_ms, end_ms in ranges:
        for at in range(start_ms - start_ms % width_ms, end_ms, width_ms):
            if parts and at != current:
                yield current, RangeSet.ascending(parts)
                parts = []
            current = at
            parts.append(TimeRange(max(start_ms, at), min(end_ms, at + width_ms)))
    if parts:
        yield current, RangeSet.ascending(parts)


def touched_hours(wanted: RangeSet) -> list[int]:
    """The hours of their day that ranges within one day touch."""
    return [hour_ms % DAY_MS // HOUR_MS for hour_ms, _ in parts_of(wanted, HOUR_MS)]


def mask(first: int, end: int) -> int:
    """A bit for each slot from `first` to `end`."""
    return (1 << end) - (1 << first)


def runs(bits: int) -> Iterator[tuple[int, int]]:
    """Stretches of set bits: the first, and the one after the last."""
    while bits:
        first = (bits & -bits).bit_length() - 1
        beyond = (bits >> first) + 1
        end = first + (beyond & -beyond).bit_length() - 1
        yield first, end
        bits &= -1 << end


def rows_of(hour_ms: int, hour: Hour) -> Iterator[tuple[int, Bar]]:
    """Each bar of an hour beside the time that its slot stands for."""
    for first, end in runs(hour.present):
        rows = ROW.iter_unpack(hour.slots[first * ROW.size : end * ROW.size])
        yield from ((hour_ms + slot * MINUTE_MS, Bar(*row)) for slot, row in zip(range(first, end), rows, strict=True))
