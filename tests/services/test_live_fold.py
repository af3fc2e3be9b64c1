"""Folding live minutes: what closes is what the store's fold says, whenever the watching began."""

import random

import pytest

from domain.bar import Bar, fold, within
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from services.live_fold import LiveFold
from services.live_reader import steps
from tests.support.market import START_MS, random_minutes


@pytest.mark.parametrize("timeframe", ["1m", "3m", "5m", "15m", "1h", "4h", "1d"])
@pytest.mark.parametrize("seed", range(5))
def test_closed_bars_are_the_fold_of_the_minutes_however_they_come(timeframe: str, seed: int) -> None:
    rng, tf = random.Random(seed), Timeframe(timeframe)
    minutes = random_minutes(seed, 3000)
    start = START_MS + rng.randrange(1000) * MINUTE_MS
    before = fold(within(minutes, RangeSet.of(tf.floor(start), start)), tf)
    live = LiveFold(tf, start, partial=before[-1] if before else None)
    told: list[Bar] = []
    at = start
    while at < START_MS + 2900 * MINUTE_MS:
        end = at + rng.choice((1, 1, 1, 2, 7, 90)) * MINUTE_MS
        told += live.settle(within(minutes, RangeSet.of(at, end)), end)
        assert live.closed_ms == tf.floor(end)
        at = end
    assert told == [bar for bar in fold(minutes, tf) if tf.floor(start) <= bar.ts < tf.floor(at)]


def test_the_forming_bar_holds_what_is_closed_of_its_bucket_and_the_present_minute() -> None:
    start = Timeframe.M5.ceil(START_MS)
    live = LiveFold(Timeframe.M5, start)
    assert live.settle([Bar(start, 10, 12, 9, 11, 5)], start + MINUTE_MS) == []
    present = Bar(start + MINUTE_MS, 11, 13, 11, 12, 2)
    assert live.forming(present) == Bar(start, 10, 13, 9, 12, 7)
    assert live.forming(present) == Bar(start, 10, 13, 9, 12, 7)


def test_a_minute_of_the_next_bucket_forms_that_one() -> None:
    start = Timeframe.M5.ceil(START_MS)
    live = LiveFold(Timeframe.M5, start, partial=Bar(start, 1, 1, 1, 1, 1))
    ahead = Bar(start + 5 * MINUTE_MS, 2, 2, 2, 2, 2)
    assert live.forming(ahead) == ahead


def test_an_empty_bucket_closes_without_a_bar() -> None:
    start = Timeframe.H1.ceil(START_MS)
    live = LiveFold(Timeframe.H1, start)
    assert live.settle([], start + 2 * HOUR_MS) == []
    assert live.closed_ms == start + 2 * HOUR_MS


def test_a_long_bucket_is_read_as_days_hours_and_minutes() -> None:
    begin = Timeframe.MN1.floor(START_MS)
    end = begin + 9 * DAY_MS + 7 * HOUR_MS + 12 * MINUTE_MS
    parts = steps(TimeRange(begin, end), Timeframe.MN1)
    assert [(tf.value, part.length_ms) for tf, part in parts] == [
        ("1d", 9 * DAY_MS),
        ("1h", 7 * HOUR_MS),
        ("1m", 12 * MINUTE_MS),
    ]
    assert [tf.value for tf, _ in steps(TimeRange(begin, begin + 12 * MINUTE_MS), Timeframe.M15)] == ["1m"]
