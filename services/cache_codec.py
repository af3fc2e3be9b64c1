"""Cached values as bytes, and back again: what fails a single check is no value.

A value is `magic, version, CRC-32` and a msgpack body, which names whose value it is. So a value that was cut short,
altered, written by another version, or that landed under another's key is told from a good one.
"""

import struct
import zlib
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

import msgspec

from domain.bar import Bar, fault_of, within
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, MINUTE_MS, Timeframe

_HEADER = struct.Struct(">3sBI")
_MAGIC = b"cdl"
#: Raised with every change of what a value means; it is a part of the keys, so that versions do not meet.
VERSION = 1


class UnsoundValueError(ValueError):
    """What the cache holds is not what was put there."""


class MinuteKey(NamedTuple):
    """Names the minutes of one UTC day of one revision of a series."""

    series_id: int
    revision: int
    day_ms: int

    def __str__(self) -> str:
        """The key, without the cache's own prefix."""
        return f"{VERSION}:m:{self.series_id}:{self.revision}:{self.day_ms // DAY_MS}"


class AnswerKey(NamedTuple):
    """Names the bars of a timeframe in exactly one range, of one revision of a series."""

    series_id: int
    revision: int
    timeframe: Timeframe
    range: TimeRange

    def __str__(self) -> str:
        """The key, without the cache's own prefix."""
        start_ms, end_ms = self.range
        return f"{VERSION}:r:{self.series_id}:{self.revision}:{self.timeframe.value}:{start_ms}:{end_ms}"


class MinuteBlock(NamedTuple):
    """What is known of one day: minutes whose truth is settled, and the bars in them."""

    bars: Sequence[Bar]
    known: RangeSet

    def overlaid(self, bars: Sequence[Bar], known: RangeSet) -> "MinuteBlock":
        """This block with newer knowledge laid over it."""
        kept = within(self.bars, self.known - known)
        return MinuteBlock(sorted([*kept, *bars], key=_ts), self.known | known)


class _StoredBlock(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    series_id: int
    revision: int
    day_ms: int
    #: Minutes of the day, from and to.
    known: list[tuple[int, int]]
    bars: list[Bar]


class _StoredAnswer(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    series_id: int
    revision: int
    timeframe: str
    start_ms: int
    end_ms: int
    bars: list[Bar]


_Stored = TypeVar("_Stored", _StoredBlock, _StoredAnswer)

_encoder = msgspec.msgpack.Encoder()
_block_decoder = msgspec.msgpack.Decoder(_StoredBlock)
_answer_decoder = msgspec.msgpack.Decoder(_StoredAnswer)


def encode_block(key: MinuteKey, block: MinuteBlock) -> bytes:
    """The day's block as bytes."""
    known = [((start - key.day_ms) // MINUTE_MS, (end - key.day_ms) // MINUTE_MS) for start, end in block.known]
    return _sealed(_encoder.encode(_StoredBlock(*key, known, list(block.bars))))


def decode_block(key: MinuteKey, value: bytes, *, check_bars: bool = True) -> MinuteBlock:
    """The block that was stored under `key`.

    `check_bars=False` is for values that never left this process: they are not searched for false bars.

    Raises:
        UnsoundValueError: it is not that block, or not a sound one.
    """
    stored = _opened(value, _block_decoder)
    if (stored.series_id, stored.revision, stored.day_ms) != key:
        raise UnsoundValueError("it is another key's value")
    known = _known(key.day_ms, stored.known)
    if check_bars:
        _check_bars(stored.bars, Timeframe.M1, known)
    return MinuteBlock(stored.bars, known)


def encode_answer(key: AnswerKey, bars: Sequence[Bar]) -> bytes:
    """The bars of a range as bytes."""
    stored = _StoredAnswer(key.series_id, key.revision, key.timeframe.value, *key.range, list(bars))
    return _sealed(_encoder.encode(stored))


def decode_answer(key: AnswerKey, value: bytes, *, check_bars: bool = True) -> list[Bar]:
    """The bars that were stored under `key`.

    Raises:
        UnsoundValueError: they are not those bars, or not sound ones.
    """
    stored = _opened(value, _answer_decoder)
    named = (stored.series_id, stored.revision, stored.timeframe, stored.start_ms, stored.end_ms)
    if named != (key.series_id, key.revision, key.timeframe.value, *key.range):
        raise UnsoundValueError("it is another key's value")
    if check_bars:
        _check_bars(stored.bars, key.timeframe, RangeSet((key.range,)))
    return stored.bars


def _sealed(body: bytes) -> bytes:
    return _HEADER.pack(_MAGIC, VERSION, zlib.crc32(body)) + body


def _opened(value: bytes, decoder: msgspec.msgpack.Decoder[_Stored]) -> _Stored:
    if len(value) < _HEADER.size:
        raise UnsoundValueError("it is too short")
    magic, version, crc = _HEADER.unpack_from(value)
    if (magic, version) != (_MAGIC, VERSION):
        raise UnsoundValueError("it is not of this version of the cache")
    body = memoryview(value)[_HEADER.size :]
    if zlib.crc32(body) != crc:
        raise UnsoundValueError("its checksum is wrong")
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise UnsoundValueError(f"it cannot be decoded: {exc}") from exc


def _known(day_ms: int, pairs: Iterable[tuple[int, int]]) -> RangeSet:
    pairs = list(pairs)
    inside = all(0 <= start < end <= DAY_MS // MINUTE_MS for start, end in pairs)
    if not inside or any(before[1] >= after[0] for before, after in pairwise(pairs)):
        raise UnsoundValueError("its known minutes are not ascending minutes of the day")
    return RangeSet((day_ms + start * MINUTE_MS, day_ms + end * MINUTE_MS) for start, end in pairs)


def _check_bars(bars: list[Bar], timeframe: Timeframe, known: RangeSet) -> None:
    if any(before.ts >= after.ts for before, after in pairwise(bars)):
        raise UnsoundValueError("its bars are not ascending")
    if len(within(bars, known)) != len(bars):
        raise UnsoundValueError("it has bars where nothing is known")
    for bar in bars:
        fault = fault_of(bar, timeframe)
        if fault is not None:
            raise UnsoundValueError(f"a bar's {fault}")


def _ts(bar: Bar) -> int:
    return bar.ts
