"""No cached value is believed that is not, to the last bit, what was put there."""

import math
import random
import struct
import zlib
from collections.abc import Callable

import msgspec
import pytest

from domain.bar import Bar
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from services.cache_codec import (
    AnswerKey,
    MinuteBlock,
    MinuteKey,
    UnsoundValueError,
    decode_answer,
    decode_block,
    encode_answer,
    encode_block,
)
from tests.support.market import START_MS, random_minutes

KEY = MinuteKey(3, 9, START_MS)
ANSWER = AnswerKey(3, 9, Timeframe.M1, TimeRange(START_MS, START_MS + HOUR_MS))
BARS = random_minutes(1, 60, holes=0)
KNOWN = RangeSet.of(START_MS, START_MS + HOUR_MS)
VALUE = encode_block(KEY, MinuteBlock(BARS, KNOWN))


def sealed(body: object) -> bytes:
    """A value with the right head, whatever its body."""
    encoded = msgspec.msgpack.encode(body)
    return struct.pack(">3sBI", b"cdl", 1, zlib.crc32(encoded)) + encoded


def test_a_block_comes_back_as_it_was() -> None:
    assert decode_block(KEY, VALUE) == MinuteBlock(BARS, KNOWN)
    assert decode_block(KEY, VALUE, check_bars=False) == MinuteBlock(BARS, KNOWN)


def test_an_answer_comes_back_as_it_was() -> None:
    assert decode_answer(ANSWER, encode_answer(ANSWER, BARS)) == BARS


def test_the_smallest_and_the_largest_numbers_survive() -> None:
    bar = Bar(START_MS, 5e-324, 1.7976931348623157e308, 5e-324, 0.1 + 0.2, 1e300)
    block = MinuteBlock([bar], RangeSet.of(START_MS, START_MS + MINUTE_MS))
    assert decode_block(KEY, encode_block(KEY, block)) == block


def test_every_cut_and_every_flipped_byte_is_noticed() -> None:
    for length in range(len(VALUE)):
        with pytest.raises(UnsoundValueError):
            decode_block(KEY, VALUE[:length])
    for place in range(len(VALUE)):
        with pytest.raises(UnsoundValueError):
            decode_block(KEY, VALUE[:place] + bytes([VALUE[place] ^ 0x41]) + VALUE[place + 1 :])


def test_rubbish_is_no_value() -> None:
    rng = random.Random(5)
    for length in (0, 1, 7, 8, 9, 100):
        with pytest.raises(UnsoundValueError):
            decode_block(KEY, rng.randbytes(length))
        with pytest.raises(UnsoundValueError):
            decode_answer(ANSWER, VALUE[:8] + rng.randbytes(length))


@pytest.mark.parametrize("key", [KEY._replace(series_id=4), KEY._replace(revision=8), KEY._replace(day_ms=0)])
def test_another_blocks_value_is_not_taken_for_this_ones(key: MinuteKey) -> None:
    with pytest.raises(UnsoundValueError, match="another key"):
        decode_block(key, VALUE)


@pytest.mark.parametrize(
    "key",
    [
        ANSWER._replace(series_id=4),
        ANSWER._replace(revision=8),
        ANSWER._replace(timeframe=Timeframe.M3),
        ANSWER._replace(range=TimeRange(START_MS, START_MS + 2 * HOUR_MS)),
    ],
)
def test_another_answers_value_is_not_taken_for_this_ones(key: AnswerKey) -> None:
    with pytest.raises(UnsoundValueError, match="another key"):
        decode_answer(key, encode_answer(ANSWER, BARS))


def test_an_answer_is_not_taken_for_a_block() -> None:
    with pytest.raises(UnsoundValueError):
        decode_block(KEY, encode_answer(ANSWER, BARS))


def _swapped(bars: list[Bar]) -> list[Bar]:
    return [bars[1], bars[0], *bars[2:]]


def _first_with(**changes: float) -> Callable[[list[Bar]], list[Bar]]:
    return lambda bars: [msgspec.structs.replace(bars[0], **changes), *bars[1:]]


@pytest.mark.parametrize(
    "spoil",
    [
        _swapped,
        lambda bars: [bars[0], *bars],
        _first_with(ts=START_MS + 1),
        _first_with(ts=START_MS - MINUTE_MS),
        _first_with(high=0.0),
        _first_with(low=math.nan),
        _first_with(volume=-1.0),
        _first_with(volume=math.inf),
        lambda bars: [*bars, Bar(START_MS + HOUR_MS, 1, 1, 1, 1, 1)],
    ],
)
def test_false_bars_are_refused_though_the_checksum_is_right(spoil: Callable[[list[Bar]], list[Bar]]) -> None:
    with pytest.raises(UnsoundValueError):
        decode_block(KEY, encode_block(KEY, MinuteBlock(spoil(BARS), KNOWN)))
    with pytest.raises(UnsoundValueError):
        decode_answer(ANSWER, encode_answer(ANSWER, spoil(BARS)))


@pytest.mark.parametrize(
    "known", [[[0, 1441]], [[-1, 60]], [[5, 5]], [[30, 60], [0, 30]], [[0, 40], [30, 60]], [[0, 30], [30, 60]], 7, None]
)
def test_false_knowledge_is_refused(known: object) -> None:
    with pytest.raises(UnsoundValueError):
        decode_block(KEY, sealed([*KEY, known, []]))


def test_a_body_of_another_shape_is_refused() -> None:
    for body in ([], [*KEY, []], [*KEY, [], [], "more"], {"series_id": 3}, [*KEY, [], [[START_MS, "1", 1, 1, 1, 1]]]):
        with pytest.raises(UnsoundValueError, match="decoded"):
            decode_block(KEY, sealed(body))


def test_newer_knowledge_is_laid_over_older() -> None:
    old = MinuteBlock(BARS, KNOWN)
    part = RangeSet.of(START_MS, START_MS + 2 * MINUTE_MS)
    newer = Bar(START_MS, 1, 1, 1, 1, 1)
    assert old.overlaid([newer], part) == MinuteBlock([newer, *BARS[2:]], KNOWN)


def test_a_full_day_takes_less_than_eighty_five_thousand_bytes() -> None:
    full = MinuteBlock(random_minutes(2, 1440, holes=0), RangeSet.of(START_MS, START_MS + DAY_MS))
    assert len(encode_block(KEY, full)) < 85_000
