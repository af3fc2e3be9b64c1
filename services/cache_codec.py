"""Cached values as bytes, and back again: what fails a single check is no value.

A value is `magic, version, CRC-32` and a body, which names whose value it is. So a value that was cut short, altered,
written by another version, or that landed under another's key is told from a good one.
"""

import struct
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import msgspec

from domain.bar import Bar, fault_of, within
from domain.packed import ROW
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, Timeframe
from services.day_block import ALL, SLOTS, Hour, rows_of

_HEADER = struct.Struct(">3sBI")
#: Whose hour it is (series, revision, start), then a bit for each minute that is known, and for each that has a bar.
_HOUR = struct.Struct(">qqqQQ")
_MAGIC = b"cdl"
#: Raised with every change of what a value means; it is a part of the keys, so that versions do not meet.
VERSION = 2


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


class _StoredAnswer(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    series_id: int
    revision: int
    timeframe: str
    start_ms: int
    end_ms: int
    bars: list[Bar]


_encoder = msgspec.msgpack.Encoder()
_answer_decoder = msgspec.msgpack.Decoder(_StoredAnswer)


def encode_hour(key: MinuteKey, number: int, hour: Hour) -> bytes:
    """An hour of the key's day as bytes."""
    head = _HOUR.pack(key.series_id, key.revision, key.day_ms + number * HOUR_MS, hour.known, hour.present)
    return _sealed(head + hour.slots)


def decode_hour(key: MinuteKey, number: int, value: bytes) -> Hour:
    """The hour of the key's day that was stored.

    Raises:
        UnsoundValueError: it is not that hour, or not a sound one.
    """
    body = _opened(value)
    if len(body) < _HOUR.size:
        raise UnsoundValueError("it is too short")
    series_id, revision, hour_ms, known, present = _HOUR.unpack_from(body)
    if (series_id, revision, hour_ms) != (key.series_id, key.revision, key.day_ms + number * HOUR_MS):
        raise UnsoundValueError("it is another key's value")
    slots = bytes(body[_HOUR.size :])
    if not known or known > ALL or present & ~known or len(slots) != (SLOTS * ROW.size if present else 0):
        raise UnsoundValueError("what it says it knows makes no sense")
    hour = Hour(known, present, slots)
    for slot_ms, bar in rows_of(hour_ms, hour):
        if bar.ts != slot_ms:
            raise UnsoundValueError(f"a bar of {bar.ts} is in another's place")
        _check_bar(bar, Timeframe.M1)
    return hour


def encode_answer(key: AnswerKey, bars: Sequence[Bar]) -> bytes:
    """The bars of a range as bytes."""
    stored = _StoredAnswer(key.series_id, key.revision, key.timeframe.value, *key.range, list(bars))
    return _sealed(_encoder.encode(stored))


def decode_answer(key: AnswerKey, value: bytes) -> list[Bar]:
    """The bars that were stored under `key`.

    Raises:
        UnsoundValueError: they are not those bars, or not sound ones.
    """
    try:
        stored = _answer_decoder.decode(_opened(value))
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise UnsoundValueError(f"it cannot be decoded: {exc}") from exc
    named = (stored.series_id, stored.revision, stored.timeframe, stored.start_ms, stored.end_ms)
    if named != (key.series_id, key.revision, key.timeframe.value, *key.range):
        raise UnsoundValueError("it is another key's value")
    _check_bars(stored.bars, key.timeframe, RangeSet((key.range,)))
    return stored.bars


def _sealed(body: bytes) -> bytes:
    return _HEADER.pack(_MAGIC, VERSION, zlib.crc32(body)) + body


def _opened(value: bytes) -> memoryview:
    if len(value) < _HEADER.size:
        raise UnsoundValueError("it is too short")
    magic, version, crc = _HEADER.unpack_from(value)
    if (magic, version) != (_MAGIC, VERSION):
        raise UnsoundValueError("it is not of this version of the cache")
    body = memoryview(value)[_HEADER.size :]
    if zlib.crc32(body) != crc:
        raise UnsoundValueError("its checksum is wrong")
    return body


def _check_bars(bars: list[Bar], timeframe: Timeframe, known: RangeSet) -> None:
    if any(before.ts >= after.ts for before, after in pairwise(bars)):
        raise UnsoundValueError("its bars are not ascending")
    if len(within(bars, known)) != len(bars):
        raise UnsoundValueError("it has bars where nothing is known")
    for bar in bars:
        _check_bar(bar, timeframe)


def _check_bar(bar: Bar, timeframe: Timeframe) -> None:
    fault = fault_of(bar, timeframe)
    if fault is not None:
        raise UnsoundValueError(f"a bar's {fault}")
