"""Cached values as bytes, and back again: what fails a single check is no value.

A value is `magic, version, CRC-32` and a body, which names whose value it is. So a value that was cut short, altered,
written by another version, or that landed under another's key is told from a good one.
"""

import struct
import zlib
from collections.abc import Sequence
from operator import lt
from typing import NamedTuple

from domain.bar import Bar
from domain.packed import ROW, PackedBars, Rows, fault_in
from domain.time_range import TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, Timeframe
from services.day_block import ALL, SLOTS, Hour

_HEADER = struct.Struct(">3sBI")
#: Whose hour it is (series, revision, start), then a bit for each minute that is known, and for each that has a bar.
_HOUR = struct.Struct(">qqqQQ")
#: Whose answer it is (series, revision, timeframe, range); its rows follow.
_ANSWER = struct.Struct(">qq8sqq")
_MAGIC = b"cdl"
#: Raised with every change of what a value means; it is a part of the keys, so that versions do not meet.
VERSION = 3


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
    rows = hour.raw(0, SLOTS)
    if list(PackedBars(Rows(rows)).times()) != hour.times(hour_ms):
        raise UnsoundValueError("a bar is in another's place")
    _check(rows, Timeframe.M1)
    return hour


def encode_answer(key: AnswerKey, bars: Sequence[Bar]) -> bytes:
    """The bars of a range as bytes."""
    packed = bars if isinstance(bars, PackedBars) else PackedBars.of(bars)
    return _sealed(_name_of(key) + packed.raw())


def decode_answer(key: AnswerKey, value: bytes) -> PackedBars:
    """The bars that were stored under `key`.

    Raises:
        UnsoundValueError: they are not those bars, or not sound ones.
    """
    body, name = _opened(value), _name_of(key)
    if body[: len(name)] != name:
        raise UnsoundValueError("it is another key's value")
    rows = bytes(body[len(name) :])
    if len(rows) % ROW.size:
        raise UnsoundValueError("its last bar is cut off")
    bars = PackedBars(Rows(rows))
    times = list(bars.times())
    if not all(map(lt, times, times[1:])):
        raise UnsoundValueError("its bars are not ascending")
    if not set(times).issubset(key.timeframe.starts(*key.range)):
        raise UnsoundValueError("it has bars where there can be none")
    _check(rows, key.timeframe)
    return bars


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


def _name_of(key: AnswerKey) -> bytes:
    return _ANSWER.pack(key.series_id, key.revision, key.timeframe.value.encode(), *key.range)


def _check(rows: bytes, timeframe: Timeframe) -> None:
    fault = fault_in(rows, timeframe)
    if fault is not None:
        raise UnsoundValueError(f"a bar's {fault}")
