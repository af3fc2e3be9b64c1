import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.bar import Bar, bar_from_row, fault_of, fold, merge, within
from domain.time_range import RangeSet
from domain.timeframe import Timeframe
from tests.support.market import START_MS, markets

GOOD = [START_MS, 10.0, 12.0, 9.0, 11.0, 5.0]


@given(markets(most_minutes=600), st.sampled_from(list(Timeframe)))
def test_folding_equals_its_definition_bucket_by_bucket(bars: list[Bar], timeframe: Timeframe) -> None:
    by_bucket: dict[int, list[Bar]] = {}
    for bar in bars:
        by_bucket.setdefault(timeframe.floor(bar.ts), []).append(bar)
    assert fold(bars, timeframe) == [
        Bar(
            ts,
            group[0].open,
            max(b.high for b in group),
            min(b.low for b in group),
            group[-1].close,
            sum(b.volume for b in group),
        )
        for ts, group in sorted(by_bucket.items())
    ]


@given(markets(most_minutes=400))
def test_folding_in_two_steps_equals_folding_in_one(bars: list[Bar]) -> None:
    assert fold(fold(bars, Timeframe.M15), Timeframe.H1) == fold(bars, Timeframe.H1)
    assert fold(fold(bars, Timeframe.H4), Timeframe.MN1) == fold(bars, Timeframe.MN1)


def test_a_good_row_becomes_a_bar_and_decimal_strings_are_numbers() -> None:
    assert bar_from_row(GOOD, Timeframe.M1) == Bar(START_MS, 10, 12, 9, 11, 5)
    assert bar_from_row([START_MS, "10", "12", "9", "11", "5", "ignored"], Timeframe.M1) == Bar(
        START_MS, 10, 12, 9, 11, 5
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({0: START_MS + 1}, "not the start of a 1m bucket"),
        ({0: None}, "not a number"),
        ({0: True}, "not a number"),
        ({1: math.nan}, "open is not a finite number"),
        ({2: math.inf}, "high is not a finite number"),
        ({2: 8.0}, "high 8.0 is below low 9.0"),
        ({1: 13.0}, "open 13.0 is outside"),
        ({4: 8.5}, "close 8.5 is outside"),
        ({5: -1.0}, "volume -1.0 is negative"),
        ({3: None}, "not all numbers"),
        ({3: "abc"}, "not all numbers"),
        ({3: 10**400}, "not all numbers"),
        ({5: True}, "not all numbers"),
    ],
)
def test_a_bad_row_is_refused_in_words(change: dict[int, object], says: str) -> None:
    row: list[object] = list(GOOD)
    for at, value in change.items():
        row[at] = value
    assert says in str(bar_from_row(row, Timeframe.M1))


@pytest.mark.parametrize("row", [None, "text", [], [1, 2, 3], {"ts": 1}, 5])
def test_what_is_no_row_is_refused(row: object) -> None:
    assert bar_from_row(row, Timeframe.M1) == "not a row of six values"


@given(st.lists(st.floats(), min_size=5, max_size=5))
def test_the_quick_test_and_the_explanation_agree(values: list[float]) -> None:
    open_, high, low, close, volume = values
    good = all(map(math.isfinite, values)) and low <= open_ <= high and low <= close <= high and volume >= 0
    assert (fault_of(Bar(START_MS, *values), Timeframe.M1) is None) == good


def test_merging_keeps_one_bar_a_time_and_later_parts_win() -> None:
    old, new = Bar(0, 1, 1, 1, 1, 1), Bar(0, 2, 2, 2, 2, 2)
    other = Bar(60_000, 3, 3, 3, 3, 3)
    assert merge([other], [old], [new]) == [new, other]


@given(markets(most_minutes=200))
def test_within_keeps_just_the_bars_of_the_ranges(bars: list[Bar]) -> None:
    ranges = RangeSet([(START_MS + 300_000, START_MS + 900_000), (START_MS + 3_000_000, START_MS + 6_000_000)])
    assert within(bars, ranges) == [b for b in bars if any(r.contains(b.ts) for r in ranges)]
