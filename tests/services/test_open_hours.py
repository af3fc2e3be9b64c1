"""Opening hours as a follower counts them."""

import random

from domain.time_range import RangeSet, TimeRange
from domain.timeframe import MINUTE_MS
from services.open_hours import OpenHours

M = MINUTE_MS


def test_a_venue_without_a_calendar_never_closes() -> None:
    hours = OpenHours()
    assert hours.shut(0, 100 * M) == RangeSet()
    assert (hours.next_open(7 * M), hours.after(7 * M, 3), hours.minutes(0, 9 * M)) == (7 * M, 10 * M, 9)


def test_minutes_are_counted_over_the_night() -> None:
    hours = OpenHours(TimeRange(0, 100 * M), RangeSet([(10 * M, 20 * M), (50 * M, 60 * M)]))
    assert hours.next_open(0) == 10 * M
    assert hours.next_open(20 * M) == 50 * M
    assert hours.next_open(15 * M) == 15 * M
    assert hours.after(18 * M, 2) == 20 * M
    assert hours.after(18 * M, 3) == 51 * M
    assert hours.after(20 * M, 1) == 51 * M
    assert hours.minutes(15 * M, 55 * M) == 10
    assert hours.shut(15 * M, 55 * M) == RangeSet.of(20 * M, 50 * M)


def test_what_is_not_known_counts_as_open() -> None:
    hours = OpenHours(TimeRange(0, 100 * M), RangeSet([(10 * M, 20 * M)]))
    assert hours.next_open(20 * M) == 100 * M
    assert hours.shut(90 * M, 200 * M) == RangeSet.of(90 * M, 100 * M)


def test_counting_agrees_with_minute_by_minute() -> None:
    rng = random.Random(5)
    for _ in range(200):
        is_open = [rng.random() < 0.5 for _ in range(60)]
        known = TimeRange(0, 60 * M)
        hours = OpenHours(known, RangeSet((n * M, n * M + M) for n, yes in enumerate(is_open) if yes))
        start, want = rng.randrange(60), rng.randrange(1, 40)
        at = left = 0
        for at in range(start, 200):
            left += at >= 60 or is_open[at]
            if left == want:
                break
        assert hours.after(start * M, want) == (at + 1) * M
        assert hours.minutes(start * M, (at + 1) * M) == want
