from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from domain.series import Verdict
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import HOUR_MS
from services.coverage import AskOutcome, Check, Knowledge, Tile, tile, with_recheck, with_wish
from services.coverage import with_ask as with_outcome

pairs = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=5)
ranges = pairs.map(RangeSet)
asks = st.lists(st.tuples(ranges, st.booleans(), st.integers(0, 5)), max_size=8)


def with_ask(
    checks: Sequence[Check],
    which: RangeSet,
    *,
    answered: bool,
    now_ms: int,
    error: str | None = None,
    proven: bool = False,
) -> list[Check]:
    return with_outcome(checks, which, AskOutcome(answered, now_ms, now_ms, error, proven))


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


@given(asks)
def test_an_emptiness_waits_for_its_second_look_until_it_is_answered_again_an_hour_later(
    history: list[tuple[RangeSet, bool, int]],
) -> None:
    checks = asked(history)
    for minute in range(41):
        first_answer: int | None = None
        confirmed = False
        now = 0
        for which, answered, pause in history:
            now += pause * HOUR_MS // 2
            if answered and any(r.contains(minute) for r in which):
                confirmed |= first_answer is not None and now - first_answer >= HOUR_MS
                first_answer = now if first_answer is None else first_answer
        here = [check for check in checks if check.range.contains(minute)]
        assert [check.recheck_ms is not None for check in here] == (
            [] if not here else [first_answer is not None and not confirmed]
        )
        assert all(c.recheck_ms >= c.first_ms + HOUR_MS for c in here if c.recheck_ms is not None)


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
    assert both == [
        Check(
            TimeRange(0, 20), answered=True, attempts=1, first_ms=60_000, checked_ms=60_000, recheck_ms=60_000 + HOUR_MS
        )
    ]
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


def test_second_looks_that_fail_are_put_off_an_hour_doubled_up_to_a_day() -> None:
    one = RangeSet.of(0, 1)
    checks = with_ask([], one, answered=True, now_ms=0)
    pauses = []
    for _ in range(7):
        now = checks[0].recheck_ms
        assert now is not None
        checks = with_ask(checks, one, answered=False, now_ms=now, error="down")
        pauses.append(((checks[0].recheck_ms or 0) - now) // HOUR_MS)
    assert pauses == [1, 2, 4, 8, 16, 24, 24]


def test_what_failed_before_its_first_answer_is_looked_at_an_hour_after_it() -> None:
    one = RangeSet.of(0, 1)
    checks: list[Check] = []
    for attempt in range(5):
        checks = with_ask(checks, one, answered=False, now_ms=attempt, error="down")
        assert checks[0].recheck_ms is None
    checks = with_ask(checks, one, answered=True, now_ms=10)
    assert checks[0].recheck_ms == 10 + HOUR_MS
    checks = with_ask(checks, one, answered=False, now_ms=10 + HOUR_MS, error="down")
    assert checks[0].recheck_ms == 10 + 2 * HOUR_MS


def test_what_is_vouched_for_or_full_needs_no_second_look() -> None:
    checks = with_ask([], RangeSet.of(0, 10), answered=True, now_ms=0, proven=True)
    assert [c.recheck_ms for c in checks] == [None]
    checks = with_ask(checks, RangeSet.of(0, 10), answered=True, now_ms=1)
    assert [c.recheck_ms for c in checks] == [None]
    checks = with_ask(with_ask([], RangeSet.of(0, 10), answered=True, now_ms=0), RangeSet.of(5, 10), **PROVEN)
    assert [(c.range, c.recheck_ms) for c in checks] == [(TimeRange(0, 5), HOUR_MS), (TimeRange(5, 10), None)]


PROVEN: Any = {"answered": True, "now_ms": 1, "proven": True}


def test_only_what_is_due_is_put_off() -> None:
    checks = with_ask([], RangeSet.of(0, 20), answered=True, now_ms=0)
    checks = with_ask(checks, RangeSet.of(20, 30), answered=True, now_ms=3 * HOUR_MS)
    after = with_recheck(checks, RangeSet.of(10, 30), due_by_ms=2 * HOUR_MS, recheck_ms=None)
    assert [(c.range, c.recheck_ms) for c in after] == [
        (TimeRange(0, 10), HOUR_MS),
        (TimeRange(10, 20), None),
        (TimeRange(20, 30), 4 * HOUR_MS),
    ]


def test_what_is_only_marked_to_be_asked_for_was_never_fetched() -> None:
    checks = with_wish(with_ask([], RangeSet.of(0, 10), answered=True, now_ms=0), RangeSet.of(5, 20), 7, due_ms=7)
    assert [(c.range, c.attempts, c.recheck_ms) for c in checks] == [
        (TimeRange(0, 10), 1, HOUR_MS),
        (TimeRange(10, 20), 0, 7),
    ]
    tiles = tile(RangeSet.of(10, 20), data=RangeSet(), closed=RangeSet(), knowledge=Knowledge(checks=checks))
    assert tiles == [Tile(TimeRange(10, 20), Verdict.NEVER_FETCHED)]
    assert not Knowledge(checks=checks[1:]).resting(8)
    failed = with_ask(checks, RangeSet.of(10, 20), answered=False, now_ms=9, error="down")
    assert (failed[1].attempts, failed[1].recheck_ms) == (1, 9 + HOUR_MS)
    answered = with_ask(checks[1:], RangeSet.of(10, 20), answered=True, now_ms=9)
    assert [(c.attempts, c.first_ms, c.recheck_ms) for c in answered] == [(1, 9, 9 + HOUR_MS)]


def test_what_failed_is_asked_for_again_in_the_background_where_that_is_wished() -> None:
    checks = with_ask([], RangeSet.of(0, 10), answered=False, now_ms=0, error="down")
    checks = with_wish(checks, RangeSet.of(5, 10), 7, due_ms=7)
    assert [(tuple(c.range), c.attempts, c.recheck_ms) for c in checks] == [
        ((0, 5), 1, None),
        ((5, 10), 1, 7 + HOUR_MS),
    ]


def test_a_failure_tells_what_it_failed_with_and_nothing_else_does() -> None:
    checks = with_ask([], RangeSet.of(0, 10), answered=True, now_ms=0)
    checks = with_ask(checks, RangeSet.of(5, 20), answered=False, now_ms=1, error="down")
    checks = with_ask(checks, RangeSet.of(15, 20), answered=False, now_ms=2, error="away")
    knowledge = Knowledge(answered=RangeSet.of(0, 10), checks=checks)
    tiles = tile(RangeSet.of(0, 20), data=RangeSet.of(0, 2), closed=RangeSet(), knowledge=knowledge)
    assert [(tuple(t.range), t.verdict, t.attempts, t.error) for t in tiles] == [
        ((0, 2), Verdict.DATA, 1, None),
        ((2, 5), Verdict.UNCONFIRMED_EMPTY, 1, None),
        ((5, 10), Verdict.UNCONFIRMED_EMPTY, 2, None),
        ((10, 15), Verdict.FETCH_FAILED, 1, "down"),
        ((15, 20), Verdict.FETCH_FAILED, 2, "away"),
    ]
