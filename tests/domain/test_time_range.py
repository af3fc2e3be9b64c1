from hypothesis import given
from hypothesis import strategies as st

from domain.time_range import RangeSet, TimeRange
from domain.timeframe import MINUTE_MS, Timeframe

pairs = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8)


def members(pairs: list[tuple[int, int]]) -> set[int]:
    return {i for start, end in pairs for i in range(start, end)}


def held(ranges: RangeSet) -> set[int]:
    return members([tuple(r) for r in ranges])


@given(pairs, pairs)
def test_sets_of_ranges_obey_set_algebra(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    x, y = RangeSet(a), RangeSet(b)
    assert held(x | y) == members(a) | members(b)
    assert held(x & y) == members(a) & members(b)
    assert held(x - y) == members(a) - members(b)
    assert x.covers(y) == (members(b) <= members(a))
    assert (x == y) == (members(a) == members(b))
    assert x.length_ms == len(members(a))


@given(pairs, pairs)
def test_ranges_stay_ascending_disjoint_and_apart(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    for result in (RangeSet(a), RangeSet(a) | RangeSet(b), RangeSet(a) - RangeSet(b), RangeSet(a) & RangeSet(b)):
        flat = [edge for r in result for edge in r]
        assert flat == sorted(set(flat))


def test_shrinking_inward_and_growing_outward_meet_bucket_borders() -> None:
    ranges = RangeSet([(3 * MINUTE_MS, 17 * MINUTE_MS), (21 * MINUTE_MS, 24 * MINUTE_MS)])
    assert ranges.whole_buckets(Timeframe.M5) == RangeSet.of(5 * MINUTE_MS, 15 * MINUTE_MS)
    assert ranges.outward(Timeframe.M5) == RangeSet.of(0, 25 * MINUTE_MS)


def test_the_span_of_nothing_is_none() -> None:
    assert RangeSet().span is None
    assert RangeSet([(5, 7), (1, 2)]).span == TimeRange(1, 7)
    assert TimeRange(0, 5).intersect(TimeRange(5, 9)) is None
