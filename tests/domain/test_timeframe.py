from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.timeframe import DAY_MS, MINUTE_MS, Timeframe

instants = st.integers(0, 4_000_000_000_000)
timeframes = st.sampled_from(list(Timeframe))


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


@given(timeframes, instants)
def test_a_bucket_holds_its_instant_and_the_next_one_follows_at_once(timeframe: Timeframe, ts: int) -> None:
    start, end = timeframe.floor(ts), timeframe.next(ts)
    assert start <= ts < end
    assert timeframe.floor(start) == start
    assert timeframe.floor(end) == end
    assert timeframe.floor(end - 1) == start


@given(timeframes, instants, st.integers(0, 50))
def test_going_back_and_forth_ends_where_it_began(timeframe: Timeframe, ts: int, buckets: int) -> None:
    back = timeframe.back(ts, buckets)
    assert timeframe.buckets_between(back, timeframe.floor(ts)) == buckets
    assert timeframe.back(back, -buckets) == timeframe.floor(ts)


@given(instants)
def test_weeks_start_on_monday_and_months_on_the_first(ts: int) -> None:
    week = datetime.fromtimestamp(Timeframe.W1.floor(ts) / 1000, UTC)
    month = datetime.fromtimestamp(Timeframe.MN1.floor(ts) / 1000, UTC)
    assert (week.weekday(), week.hour, week.minute) == (0, 0, 0)
    assert (month.day, month.hour, month.minute) == (1, 0, 0)


@pytest.mark.parametrize(
    ("timeframe", "text", "start"),
    [
        ("1M", "2024-02-29T23:59:00", "2024-02-01"),
        ("1w", "2024-03-03T23:59:00", "2024-02-26"),
        ("4h", "2024-03-03T23:59:00", "2024-03-03T20:00:00"),
        ("3d", "1970-01-05T00:00:00", "1970-01-04"),
        ("12h", "2024-12-31T11:59:59", "2024-12-31"),
    ],
)
def test_buckets_are_aligned_as_people_expect(timeframe: str, text: str, start: str) -> None:
    assert Timeframe(timeframe).floor(ms(text)) == ms(start)


@given(timeframes, timeframes, instants)
def test_a_timeframe_divides_another_exactly_when_borders_fall_on_borders(
    finer: Timeframe, coarser: Timeframe, ts: int
) -> None:
    if finer.divides(coarser):
        assert finer.floor(coarser.floor(ts)) == coarser.floor(ts)
        assert finer.floor(coarser.next(ts)) == coarser.next(ts)


def test_what_does_not_divide_is_known() -> None:
    assert not Timeframe.H4.divides(Timeframe.H6)
    assert not Timeframe.W1.divides(Timeframe.MN1)
    assert not Timeframe.D3.divides(Timeframe.W1)
    assert not Timeframe.H1.divides(Timeframe.M30)
    assert all(Timeframe.M1.divides(timeframe) for timeframe in Timeframe)


def test_a_month_of_buckets_is_counted_by_the_calendar() -> None:
    assert Timeframe.MN1.buckets_between(ms("2023-11-01"), ms("2024-03-01")) == 4
    assert Timeframe.D1.buckets_between(ms("2024-02-01"), ms("2024-03-01")) == 29
    assert Timeframe.M1.buckets_between(30_000, 30_000 + 10 * MINUTE_MS) == 10


def test_starts_walk_every_bucket_once() -> None:
    start = ms("2024-01-15")
    assert list(Timeframe.MN1.starts(start, ms("2024-04-01"))) == [ms("2024-02-01"), ms("2024-03-01")]
    assert list(Timeframe.D1.starts(start, start + 2 * DAY_MS)) == [start, start + DAY_MS]
    assert datetime.fromtimestamp(start / 1000, UTC) + timedelta(days=1) == datetime(2024, 1, 16, tzinfo=UTC)
