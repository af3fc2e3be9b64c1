from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from domain.series import Verdict
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import HOUR_MS
from services.coverage import Check, Knowledge, tile, with_ask

pairs = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=5)
ranges = pairs.map(RangeSet)
asks = st.lists(st.tuples(ranges, st.booleans(), st.integers(0, 5)), max_size=8)


def asked(history: Sequence[tuple[RangeSet, bool, int]]) -> list[Check]:
    checks: list[Check] = []
    now = 0
    for which, answered, pause in history:
        now += pause * HOUR_MS // 2
        checks = with_ask(checks, which, answered=answered, now_ms=now, error=None if answered else "down")
    return checks


@given(asks)
def test_asks_stay_disjoint_and_count_every_ask_of_every_minute(history: list[tuple[RangeSet, bool, int]]) -> None:
    checks = asked(history)
    edges = [edge for check in checks for edge in check.range]
    assert edges == sorted(edges)
    for minute in range(41):
        here = [check for check in checks if check.range.contains(minute)]
        times = [answered for which, answered, _ in history if any(r.contains(minute) for r in which)]
        assert [check.attempts for check in here] == ([len(times)] if times else [])
        assert [check.answered for check in here] == ([any(times)] if times else [])


@given(ranges, ranges, ranges, ranges, ranges, asks)
def test_verdicts_tile_what_was_wanted_and_follow_their_order(
    wanted: RangeSet,
    data: RangeSet,
    closed: RangeSet,
    answered: RangeSet,
    confirmed: RangeSet,
    history: list[tuple[RangeSet, bool, int]],
) -> None:
    checks = asked(history)
    knowledge = Knowledge(answered, confirmed, RangeSet.of(0, 3), checks)
    tiles = tile(wanted, data=data, closed=closed, knowledge=knowledge)
    assert RangeSet(t.range for t in tiles) == wanted
    assert sum(t.range.length_ms for t in tiles) == wanted.length_ms
    failed = RangeSet(c.range for c in checks if not c.answered)
    for part in tiles:
        for minute in range(*part.range):
            one = RangeSet.of(minute, minute + 1)
            expected = next(
                verdict
                for verdict, layer in [
                    (Verdict.DATA, data),
                    (Verdict.CLOSED_SESSION, closed),
                    (Verdict.NOT_LISTED, RangeSet.of(0, 3)),
                    (Verdict.NO_TRADES, confirmed),
                    (Verdict.UNCONFIRMED_EMPTY, answered),
                    (Verdict.FETCH_FAILED, failed),
                    (Verdict.NEVER_FETCHED, one),
                ]
                if one & layer
            )
            assert part.verdict is expected


def test_asks_are_joined_only_with_their_like_and_never_confirm_early() -> None:
    first = with_ask([], RangeSet.of(0, 10), answered=True, now_ms=0)
    both = with_ask(first, RangeSet.of(10, 20), answered=True, now_ms=60_000)
    assert both == [Check(TimeRange(0, 20), answered=True, attempts=1, first_ms=60_000, checked_ms=60_000)]
    later = with_ask(both, RangeSet.of(20, 30), answered=True, now_ms=2 * HOUR_MS)
    assert len(later) == 2


def test_a_failure_rests_a_little_longer_each_time_and_an_answer_an_hour() -> None:
    checks: list[Check] = []
    pauses = []
    for attempt in range(12):
        now = attempt * HOUR_MS
        checks = with_ask(checks, RangeSet.of(0, 1), answered=False, now_ms=now, error="down")
        pauses.append(checks[0].rests_until_ms() - now)
    assert pauses[:4] == [1000, 2000, 4000, 8000]
    assert pauses[-1] == 60_000
    answered = with_ask(checks, RangeSet.of(0, 1), answered=True, now_ms=20 * HOUR_MS)
    assert answered[0].rests_until_ms() == 21 * HOUR_MS
    assert answered[0].first_ms == 20 * HOUR_MS


def test_a_failed_ask_does_not_unlearn_an_answer() -> None:
    checks = with_ask([], RangeSet.of(0, 10), answered=True, now_ms=0)
    checks = with_ask(checks, RangeSet.of(5, 10), answered=False, now_ms=1, error="down")
    assert [(c.range, c.answered, c.error) for c in checks] == [
        (TimeRange(0, 5), True, None),
        (TimeRange(5, 10), True, "down"),
    ]
