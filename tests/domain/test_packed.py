"""Packed bars are, to whoever looks, the bars that were packed."""

import random
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.bar import Bar, fold, merge, within
from domain.packed import PackedBars, Rows, clipped, joined, pack, runs_of, texts_of
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import MINUTE_MS, Timeframe
from tests.support.market import START_MS, random_bar, random_minutes

_finite = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def minutes(draw: st.DrawFn) -> list[Bar]:
    stamps = sorted(draw(st.sets(st.integers(0, 90), max_size=40)))
    rng = random.Random(draw(st.integers(0, 2**16)))
    return [random_bar(rng, START_MS + at * MINUTE_MS) for at in stamps]


@st.composite
def packings(draw: st.DrawFn) -> tuple[list[Bar], PackedBars]:
    """Bars, and the same in pieces."""
    bars = draw(minutes())
    cuts = sorted(draw(st.sets(st.integers(0, len(bars)), max_size=4)) | {0, len(bars)})
    return bars, PackedBars(*(Rows(pack(bars[a:b])) for a, b in pairwise(cuts)))


@given(packings(), st.integers(-50, 50), st.integers(-50, 50))
def test_they_are_the_sequence_that_was_packed(both: tuple[list[Bar], PackedBars], a: int, b: int) -> None:
    bars, packed = both
    assert packed == bars
    assert bars == packed
    assert list(packed) == bars
    assert len(packed) == len(bars)
    assert [packed[at] for at in range(-len(bars), len(bars))] == bars * 2
    assert packed[a:b] == bars[a:b]
    assert packed[:b] == bars[:b]
    assert packed[a:] == bars[a:]
    assert list(packed.times()) == [bar.ts for bar in bars]
    assert packed == PackedBars.of(bars)
    assert (packed != bars[:-1]) == bool(bars)


@given(packings())
def test_their_text_is_to_the_letter_that_of_the_bars(both: tuple[list[Bar], PackedBars]) -> None:
    bars, packed = both
    assert packed.json() == msgspec.json.encode(bars) == b"".join(texts_of(bars))


@given(_finite, _finite)
def test_numbers_are_kept_to_the_last_bit(price: float, volume: float) -> None:
    bar = Bar(START_MS, price, price, price, price, volume)
    assert msgspec.json.encode([bar]) == PackedBars.of([bar]).json()
    assert list(PackedBars.of([bar])) == [bar]


@given(packings(), st.lists(st.tuples(st.integers(-5, 95), st.integers(0, 40)), max_size=4))
def test_cutting_them_is_cutting_the_bars(both: tuple[list[Bar], PackedBars], windows: list[tuple[int, int]]) -> None:
    bars, packed = both
    ranges = RangeSet((START_MS + a * MINUTE_MS, START_MS + (a + n) * MINUTE_MS) for a, n in windows)
    assert clipped(packed, ranges) == within(bars, ranges) == clipped(bars, ranges)


@given(packings(), st.sampled_from([Timeframe.M1, Timeframe.M3, Timeframe.H1, Timeframe.MN1]))
def test_their_runs_are_those_of_the_bars(both: tuple[list[Bar], PackedBars], timeframe: Timeframe) -> None:
    bars = fold(both[0], timeframe)
    buckets = RangeSet((bar.ts, timeframe.next(bar.ts)) for bar in bars)
    assert runs_of(bars, timeframe) == buckets
    assert runs_of(PackedBars.of(bars), timeframe) == buckets


@given(minutes(), minutes(), st.tuples(st.booleans(), st.booleans()))
def test_joining_them_is_merging_the_bars(one: list[Bar], two: list[Bar], packed: tuple[bool, bool]) -> None:
    parts = [PackedBars.of(bars) if is_packed else bars for bars, is_packed in zip((one, two), packed, strict=True)]
    assert joined(*parts) == merge(one, two)


def test_parts_that_follow_one_another_stay_packed() -> None:
    bars = random_minutes(1, 100)
    assert isinstance(joined(PackedBars.of(bars[50:]), bars[:50]), PackedBars)
    assert joined(PackedBars.of(bars[50:]), bars[:50]) == bars


def test_a_step_or_a_place_outside_is_refused() -> None:
    packed = PackedBars.of(random_minutes(1, 10, holes=0))
    with pytest.raises(ValueError, match="step"):
        _ = packed[::2]
    for at in (10, -11):
        with pytest.raises(IndexError):
            _ = packed[at]


def test_nothing_has_no_span() -> None:
    assert PackedBars().span is None
    assert PackedBars().json() == b"[]"
    assert PackedBars.of(random_minutes(1, 2, holes=0)).span == TimeRange(START_MS, START_MS + MINUTE_MS + 1)
