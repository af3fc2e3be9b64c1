"""Minutes in compact form: an hour is 60 slots of fixed width, a day 24 hours.

Any part of a day is read, written and sent by itself, and no bar is looked at for it. An hour never changes: what is
learnt of it makes another one, so that whoever reads the old one is not disturbed.
"""

import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from domain.packed import ROW, PackedBars, Piece, text_of
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS

HOURS = 24
SLOTS = 60
#: A bit a slot.
ALL = (1 << SLOTS) - 1
_WHOLE_DAY = (1 << HOURS * SLOTS) - 1
_NO_ROWS = bytes(SLOTS * ROW.size)


class Hour:
    """What is known of an hour: minutes whose truth is settled, those of them that have a bar, and the bars' rows."""

    __slots__ = ("_ends", "known", "present", "slots", "written")

    def __init__(self, known: int, present: int, slots: bytes) -> None:
        """Take a bit for each slot that is known, one for each that holds a bar, and the rows, slot by slot."""
        self.known = known
        self.present = present
        self.slots = slots if present else b""
        #: A text that its own is a part of, and where that begins.
        self.written: tuple[bytes, int] | None = None
        self._ends: array[int] | None = None

    @property
    def size(self) -> int:
        """Bytes of memory that it takes, without its text."""
        return sum(map(sys.getsizeof, (self, self.known, self.present, self.slots, self._ends, self.written)))

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
        self._ends = ends
        self.written = (b"".join(b"[%b]," % row for row in rows), 0)

    def count(self, first: int, end: int) -> int:
        """Bars in the slots from `first` to `end`."""
        return (self.present & mask(first, end)).bit_count()

    def raw(self, first: int, end: int) -> bytes:
        """The rows of the bars in the slots."""
        held = self.present & mask(first, end)
        return b"".join(self.slots[a * ROW.size : b * ROW.size] for a, b in runs(held))

    def times(self, hour_ms: int) -> list[int]:
        """When its bars begin, where it begins at `hour_ms`."""
        return [hour_ms + slot * MINUTE_MS for first, end in runs(self.present) for slot in range(first, end)]

    def text(self, first: int, end: int) -> bytes:
        """The bars in the slots, which are some, as JSON arrays with commas between them."""
        if self.written is None:
            return text_of(self.raw(first, end))
        text, base = self.written
        return text[base + self.end(first) : base + self.end(end) - 1]

    def end(self, slot: int) -> int:
        """Where in its text, which is written, the bars before a slot end."""
        assert self._ends is not None
        return self._ends[slot]


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


class _Whole:
    """A day's hours at one moment, with their texts in one."""

    __slots__ = ("bases", "hours", "present", "text")

    def __init__(self, hours: Iterable[Hour | None]) -> None:
        self.hours = tuple(hours)
        self.present = 0
        texts, self.bases = [], [0]
        for number, hour in enumerate(self.hours):
            text = b""
            if hour is not None and hour.written is not None:
                self.present |= hour.present << (number * SLOTS)
                whole, base = hour.written
                text = whole[base : base + hour.end(SLOTS)]
            texts.append(text)
            self.bases.append(self.bases[-1] + len(text))
        self.text = b"".join(texts)
        for hour, base in zip(self.hours, self.bases, strict=False):
            if hour is not None:
                hour.written = (self.text, base)

    def end(self, slot: int) -> int:
        number, at = divmod(slot, SLOTS)
        hour = self.hours[number] if at else None
        return self.bases[number] + (hour.end(at) if hour is not None else 0)


class _Stretch:
    """The bars in some slots of a day, all of them known."""

    __slots__ = ("_count", "_day", "_end", "_first")

    def __init__(self, day: _Whole, first: int, end: int, bits: int) -> None:
        self._day = day
        self._first = first
        self._end = end
        self._count = (day.present & bits).bit_count()

    def __len__(self) -> int:
        return self._count

    def raw(self) -> bytes:
        first, end = self._first, self._end
        touched = range(first // SLOTS, (end + SLOTS - 1) // SLOTS)
        hours = ((self._day.hours[number], number * SLOTS) for number in touched)
        return b"".join(
            hour.raw(max(first - base, 0), min(end - base, SLOTS)) for hour, base in hours if hour is not None
        )

    def text(self) -> memoryview:
        return memoryview(self._day.text)[self._day.end(self._first) : self._day.end(self._end) - 1]


class WrittenDay(DayBlock):
    """A day whose bars are written out, so that a stretch of it is one piece of text."""

    __slots__ = ("_known", "_whole")

    def __init__(self, day_ms: int) -> None:
        """Begin with nothing."""
        super().__init__(day_ms)
        self._known = 0
        self._whole: _Whole | None = None

    @property
    def size(self) -> int:
        """Bytes of memory that it takes."""
        hours = [hour for hour in self.hours if hour is not None]
        texts = {id(hour.written[0]): len(hour.written[0]) for hour in hours if hour.written is not None}
        return sys.getsizeof(self) + sys.getsizeof(self.hours) + sum(hour.size for hour in hours) + sum(texts.values())

    def lay(self, hour: int, newer: Hour) -> Hour:
        """Lay newer knowledge over an hour; what it is then."""
        now = super().lay(hour, newer)
        now.write_out()
        self._known |= now.known << (hour * SLOTS)
        self._whole = None
        return now

    def finish(self) -> None:
        """Put a day that is known in full together now, and not when somebody waits for it."""
        if self._known == _WHOLE_DAY and self._whole is None:
            self._whole = _Whole(self.hours)

    def take(self, wanted: RangeSet, found: "Findings") -> None:
        """Add what is known of the wanted minutes of this day."""
        for stretch in wanted:
            first, end = (stretch.start_ms - self.day_ms) // MINUTE_MS, (stretch.end_ms - self.day_ms) // MINUTE_MS
            bits = mask(first, end)
            if self._known & bits != bits:
                super().take(RangeSet.of(*stretch), found)
                continue
            if self._whole is None:
                self._whole = _Whole(self.hours)
            found.add_known(stretch, _Stretch(self._whole, first, end, bits))


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

    def add_known(self, stretch: TimeRange, piece: Piece) -> None:
        """Add the bars of a stretch that is known."""
        self._known.append(stretch)
        self._pieces.append(piece)

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
