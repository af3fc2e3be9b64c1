"""No cached value is believed that is not, to the last bit, what was put there."""

import math
import random
import struct
import zlib
from collections.abc import Callable

import msgspec
import pytest

from domain.bar import Bar
from domain.packed import PackedBars
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from services.cache_codec import (
    VERSION,
    AnswerKey,
    MinuteKey,
    UnsoundValueError,
    decode_answer,
    decode_hour,
    encode_answer,
    encode_hour,
)
from services.day_block import ALL, Hour, hours_of
from tests.support.market import START_MS, random_minutes

KEY = MinuteKey(3, 9, START_MS)
HOUR = 5
HOUR_AT = START_MS + HOUR * HOUR_MS
ANSWER = AnswerKey(3, 9, Timeframe.M1, TimeRange(HOUR_AT, HOUR_AT + HOUR_MS))
BARS = random_minutes(1, 60, start_ms=HOUR_AT, holes=0)
KNOWN = RangeSet.of(HOUR_AT, HOUR_AT + HOUR_MS)


def hour_of(bars: list[Bar], known: RangeSet = KNOWN) -> Hour:
    [(_, hour)] = hours_of(PackedBars.of(bars), known)
    return hour


VALUE = encode_hour(KEY, HOUR, hour_of(BARS[10:50], KNOWN))


def sealed(known: int, present: int, slots: bytes) -> bytes:
    """A value with the right head, whatever it says of the hour."""
    body = struct.pack(">qqqQQ", KEY.series_id, KEY.revision, HOUR_AT, known, present) + slots
    return struct.pack(">3sBI", b"cdl", VERSION, zlib.crc32(body)) + body


def bars_in(hour: Hour) -> bytes:
    return hour.raw(0, 60)


@pytest.mark.parametrize("held", [BARS, BARS[10:50], [BARS[0], BARS[59]], []])
def test_an_hour_comes_back_as_it_was(held: list[Bar]) -> None:
    hour = decode_hour(KEY, HOUR, encode_hour(KEY, HOUR, hour_of(held)))
    assert hour.known == ALL
    assert bars_in(hour) == PackedBars.of(held).raw()


def test_an_answer_comes_back_as_it_was() -> None:
    assert decode_answer(ANSWER, encode_answer(ANSWER, BARS)) == BARS


def test_the_smallest_and_the_largest_numbers_survive() -> None:
    bar = Bar(HOUR_AT, 5e-324, 1.7976931348623157e308, 5e-324, 0.1 + 0.2, 1e300)
    hour = hour_of([bar], RangeSet.of(HOUR_AT, HOUR_AT + MINUTE_MS))
    assert bars_in(decode_hour(KEY, HOUR, encode_hour(KEY, HOUR, hour))) == PackedBars.of([bar]).raw()


def test_every_cut_and_every_flipped_byte_is_noticed() -> None:
    for length in range(len(VALUE)):
        with pytest.raises(UnsoundValueError):
            decode_hour(KEY, HOUR, VALUE[:length])
    for place in range(len(VALUE)):
        with pytest.raises(UnsoundValueError):
            decode_hour(KEY, HOUR, VALUE[:place] + bytes([VALUE[place] ^ 0x41]) + VALUE[place + 1 :])


def test_rubbish_is_no_value() -> None:
    rng = random.Random(5)
    for length in (0, 1, 7, 8, 9, 100):
        with pytest.raises(UnsoundValueError):
            decode_hour(KEY, HOUR, rng.randbytes(length))
        with pytest.raises(UnsoundValueError):
            decode_answer(ANSWER, VALUE[:8] + rng.randbytes(length))


@pytest.mark.parametrize(
    ("key", "hour"),
    [
        (KEY._replace(series_id=4), HOUR),
        (KEY._replace(revision=8), HOUR),
        (KEY._replace(day_ms=0), HOUR),
        (KEY, HOUR + 1),
    ],
)
def test_another_hours_value_is_not_taken_for_this_ones(key: MinuteKey, hour: int) -> None:
    with pytest.raises(UnsoundValueError, match="another key"):
        decode_hour(key, hour, VALUE)


@pytest.mark.parametrize(
    "key",
    [
        ANSWER._replace(series_id=4),
        ANSWER._replace(revision=8),
        ANSWER._replace(timeframe=Timeframe.M3),
        ANSWER._replace(range=TimeRange(HOUR_AT, HOUR_AT + 2 * HOUR_MS)),
    ],
)
def test_another_answers_value_is_not_taken_for_this_ones(key: AnswerKey) -> None:
    with pytest.raises(UnsoundValueError, match="another key"):
        decode_answer(key, encode_answer(ANSWER, BARS))


def test_an_answer_is_not_taken_for_an_hour() -> None:
    with pytest.raises(UnsoundValueError):
        decode_hour(KEY, HOUR, encode_answer(ANSWER, BARS))


def _swapped(bars: list[Bar]) -> list[Bar]:
    return [bars[1], bars[0], *bars[2:]]


def _first_with(**changes: float) -> Callable[[list[Bar]], list[Bar]]:
    return lambda bars: [msgspec.structs.replace(bars[0], **changes), *bars[1:]]


@pytest.mark.parametrize(
    "spoil",
    [
        _swapped,
        _first_with(ts=HOUR_AT + 1),
        _first_with(ts=HOUR_AT - MINUTE_MS),
        _first_with(high=0.0),
        _first_with(low=math.nan),
        _first_with(volume=-1.0),
        _first_with(volume=math.inf),
    ],
)
def test_false_bars_are_refused_though_the_checksum_is_right(spoil: Callable[[list[Bar]], list[Bar]]) -> None:
    with pytest.raises(UnsoundValueError):
        decode_hour(KEY, HOUR, sealed(ALL, ALL, PackedBars.of(spoil(BARS)).raw()))
    with pytest.raises(UnsoundValueError):
        decode_answer(ANSWER, encode_answer(ANSWER, spoil(BARS)))


@pytest.mark.parametrize(
    "spoil",
    [lambda bars: [bars[0], *bars], lambda bars: [*bars, Bar(HOUR_AT + HOUR_MS, 1, 1, 1, 1, 1)]],
)
def test_an_answer_with_a_bar_too_many_is_refused(spoil: Callable[[list[Bar]], list[Bar]]) -> None:
    with pytest.raises(UnsoundValueError):
        decode_answer(ANSWER, encode_answer(ANSWER, spoil(BARS)))


_ROWS = PackedBars.of(BARS).raw()


@pytest.mark.parametrize(
    ("known", "present", "slots"),
    [
        (0, 0, b""),
        (1 << 60, 0, b""),
        (ALL >> 1, ALL, _ROWS),
        (0, ALL, _ROWS),
        (ALL, ALL, b""),
        (ALL, 0, _ROWS),
        (ALL, ALL, _ROWS[:-48]),
        (ALL, ALL, _ROWS + _ROWS[:48]),
    ],
)
def test_false_knowledge_is_refused(known: int, present: int, slots: bytes) -> None:
    with pytest.raises(UnsoundValueError, match="no sense"):
        decode_hour(KEY, HOUR, sealed(known, present, slots))


def test_a_body_that_is_too_short_is_refused() -> None:
    body = b"\0" * 39
    with pytest.raises(UnsoundValueError, match="short"):
        decode_hour(KEY, HOUR, struct.pack(">3sBI", b"cdl", VERSION, zlib.crc32(body)) + body)


def test_a_full_day_takes_less_than_seventy_five_thousand_bytes() -> None:
    bars = PackedBars.of(random_minutes(2, 1440, holes=0))
    hours = hours_of(bars, RangeSet.of(START_MS, START_MS + DAY_MS))
    assert sum(len(encode_hour(KEY, number, hour)) for number, (_, hour) in enumerate(hours)) < 75_000
