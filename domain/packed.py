"""Bars as they are stored: rows of fixed width, which are cut, joined and written out without a `Bar` of each."""

import struct
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise, repeat
from math import inf
from operator import le
from typing import Protocol, overload

import msgspec

from domain.bar import Bar, fault_of, merge, within
from domain.time_range import NOWHERE, RangeSet, TimeRange
from domain.timeframe import Timeframe

#: A bar as 48 bytes, big-endian as PostgreSQL sends numbers: `ts`, then five floating point numbers.
ROW = struct.Struct(">qddddd")
_TS = struct.Struct(">q40x")
#: Numbers of a row, the `ts` among them.
_NUMBERS = ROW.size // 8

_encode = msgspec.json.Encoder().encode


#: A part of a text may be a view of a longer one.
Text = bytes | memoryview


class Piece(Protocol):
    """Ascending bars in some packed form."""

    def __len__(self) -> int:
        """Number of bars."""
        ...

    def raw(self) -> bytes:
        """The rows."""
        ...

    def text(self) -> Text:
        """The rows as JSON arrays with commas between them."""
        ...


class Rows:
    """Rows in one string of bytes, and their text once somebody has asked for it."""

    __slots__ = ("_raw", "_text")

    def __init__(self, raw: bytes) -> None:
        """Take the rows."""
        self._raw = raw
        self._text: bytes | None = None

    def __len__(self) -> int:
        """Number of bars."""
        return len(self._raw) // ROW.size

    def raw(self) -> bytes:
        """The rows."""
        return self._raw

    def text(self) -> bytes:
        """The rows as JSON arrays."""
        if self._text is None:
            self._text = text_of(self._raw)
        return self._text


class PackedBars(Sequence[Bar]):
    """Ascending bars, one a `ts`, that become `Bar`s only where they are looked at one by one."""

    __slots__ = ("_count", "_pieces")

    def __init__(self, *pieces: Piece) -> None:
        """Take the pieces, in order of time; empty ones are left out."""
        self._pieces = tuple(piece for piece in pieces if len(piece))
        self._count = sum(map(len, self._pieces))

    @classmethod
    def of(cls, bars: Iterable[Bar]) -> "PackedBars":
        """Pack ascending bars."""
        return cls(Rows(pack(bars)))

    def __len__(self) -> int:
        """Number of bars."""
        return self._count

    @overload
    def __getitem__(self, at: int) -> Bar: ...
    @overload
    def __getitem__(self, at: slice) -> "PackedBars": ...
    def __getitem__(self, at: int | slice) -> "Bar | PackedBars":
        """One bar, or the bars of a slice without a step."""
        if isinstance(at, slice):
            first, last, step = at.indices(self._count)
            if step != 1:
                msg = "packed bars cannot be sliced with a step"
                raise ValueError(msg)
            return self._cut(first, max(first, last))
        if not -self._count <= at < self._count:
            raise IndexError(at)
        return Bar(*ROW.unpack_from(*self._place(at % self._count)))

    def __iter__(self) -> Iterator[Bar]:
        """The bars."""
        for piece in self._pieces:
            for row in ROW.iter_unpack(piece.raw()):
                yield Bar(*row)

    def __eq__(self, other: object) -> bool:
        """Whether a sequence holds the same bars."""
        if isinstance(other, PackedBars):
            return self._count == other._count and self.raw() == other.raw()
        if isinstance(other, list | tuple):
            return len(other) == self._count and all(mine == theirs for mine, theirs in zip(self, other, strict=True))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """As a list of bars."""
        return f"PackedBars({list(self)!r})"

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """What it is made of, in order of time."""
        return self._pieces

    @property
    def span(self) -> TimeRange | None:
        """From the first `ts` to the millisecond after the last."""
        return TimeRange(self[0].ts, self[-1].ts + 1) if self._count else None

    def raw(self) -> bytes:
        """All rows."""
        return self._pieces[0].raw() if len(self._pieces) == 1 else b"".join(piece.raw() for piece in self._pieces)

    def texts(self) -> list[Text]:
        """What makes up a JSON array of bars, to the letter as `msgspec` encodes a list of `Bar`s."""
        out: list[Text] = [b"["]
        for piece in self._pieces:
            out += (piece.text(), b",")
        if self._pieces:
            out.pop()
        out.append(b"]")
        return out

    def json(self) -> bytes:
        """A JSON array of bars."""
        return b"".join(self.texts())

    def times(self) -> Iterator[int]:
        """Each bar's `ts`."""
        return chain.from_iterable(_TS.iter_unpack(self.raw()))

    def between(self, ranges: Iterable[TimeRange]) -> "PackedBars":
        """The bars whose `ts` lies in the ascending, disjoint ranges."""
        span, ranges = self.span, list(ranges)
        if span is None or any(start <= span.start_ms and span.end_ms <= end for start, end in ranges):
            return self
        raw, stamps = self.raw(), list(self.times())
        places = ((bisect_left(stamps, start), bisect_left(stamps, end)) for start, end in ranges)
        return PackedBars(Rows(b"".join(raw[first * ROW.size : last * ROW.size] for first, last in places)))

    def is_unbroken(self, timeframe: Timeframe) -> bool:
        """Whether the bars stand in neighbouring buckets. Of months it is not known."""
        span, width = self.span, timeframe.width_ms
        return span is None or (width is not None and span.length_ms - 1 == (self._count - 1) * width)

    def parts(self, timeframe: Timeframe) -> int:
        """The most stretches that the bars may be in."""
        return 1 if self.is_unbroken(timeframe) else self._count

    def runs(self, timeframe: Timeframe) -> RangeSet:
        """The buckets of the bars, as ranges."""
        span = self.span
        if span is None:
            return NOWHERE
        if self.is_unbroken(timeframe):
            return RangeSet.of(span.start_ms, timeframe.next(span.end_ms - 1))
        return _buckets_at(self.times(), timeframe)

    def _place(self, at: int) -> tuple[bytes, int]:
        """The rows that the bar is among, and where it begins in them."""
        if len(self._pieces) > 1 and at == self._count - 1:
            raw = self._pieces[-1].raw()
            return raw, len(raw) - ROW.size
        for piece in self._pieces:
            if at < len(piece):
                return piece.raw(), at * ROW.size
            at -= len(piece)
        raise IndexError(at)

    def _cut(self, first: int, last: int) -> "PackedBars":
        if (first, last) == (0, self._count):
            return self
        parts: list[Piece] = []
        for piece in self._pieces:
            start, end = max(first, 0), min(last, len(piece))
            if start == 0 and end == len(piece):
                parts.append(piece)
            elif start < end:
                parts.append(Rows(piece.raw()[start * ROW.size : end * ROW.size]))
            first, last = first - len(piece), last - len(piece)
        return PackedBars(*parts)


def pack(bars: Iterable[Bar]) -> bytes:
    """The bars as rows."""
    to_row = ROW.pack
    return b"".join(to_row(bar.ts, bar.open, bar.high, bar.low, bar.close, bar.volume) for bar in bars)


def fault_in(raw: bytes, timeframe: Timeframe) -> str | None:
    """What breaks a bar's rules among the rows, but for their times; None where nothing does.

    It goes by columns: no bar is made, and no line of Python is run for each.
    """
    if not raw:
        return None
    numbers = array("d", raw)
    if sys.byteorder == "little":
        numbers.byteswap()
    opens, highs, lows, closes, volumes = (numbers[place::_NUMBERS] for place in range(1, _NUMBERS))
    # NaN fails every comparison.
    if (
        all(map(le, lows, opens))
        and all(map(le, opens, highs))
        and all(map(le, lows, closes))
        and all(map(le, closes, highs))
        and all(map(le, repeat(0.0), volumes))
        and -inf < min(lows)
        and max(highs) < inf > max(volumes)
    ):
        return None
    faults = (fault_of(Bar(*row), timeframe) for row in ROW.iter_unpack(raw))
    return next(fault for fault in faults if fault is not None)


def text_of(raw: bytes) -> bytes:
    """Rows as JSON arrays with commas between them."""
    return _encode(list(ROW.iter_unpack(raw)))[1:-1]


def texts_of(bars: Sequence[Bar]) -> list[Text]:
    """What makes up a JSON array of bars."""
    return bars.texts() if isinstance(bars, PackedBars) else [_encode(bars)]


def joined(*parts: Sequence[Bar]) -> Sequence[Bar]:
    """As `merge`; packed bars stay packed where one part follows the other."""
    filled = [part for part in parts if part]
    if len(filled) == 1:
        return filled[0]
    if any(isinstance(part, PackedBars) for part in filled):
        in_order = sorted(filled, key=lambda part: part[0].ts)
        if all(before[-1].ts < after[0].ts for before, after in pairwise(in_order)):
            packed = (part if isinstance(part, PackedBars) else PackedBars.of(part) for part in in_order)
            return PackedBars(*chain.from_iterable(part.pieces for part in packed))
    return merge(*filled)


def clipped(bars: Sequence[Bar], ranges: Iterable[TimeRange]) -> Sequence[Bar]:
    """The ascending bars whose `ts` lies in the ascending, disjoint ranges."""
    return bars.between(ranges) if isinstance(bars, PackedBars) else within(bars, ranges)


def runs_of(bars: Sequence[Bar], timeframe: Timeframe) -> RangeSet:
    """The buckets of ascending bars, as ranges."""
    if isinstance(bars, PackedBars):
        return bars.runs(timeframe)
    return _buckets_at((bar.ts for bar in bars), timeframe)


def _buckets_at(stamps: Iterable[int], timeframe: Timeframe) -> RangeSet:
    """The buckets that begin at ascending times, as ranges."""
    width, next_of = timeframe.width_ms, timeframe.next
    if width is None:
        return RangeSet.joining((ts, next_of(ts)) for ts in stamps)
    return RangeSet.joining((ts, ts + width) for ts in stamps)
