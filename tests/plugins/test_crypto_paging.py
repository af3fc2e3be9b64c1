"""What an answer proves, by the exchange's way of answering."""

from collections.abc import Callable
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.bar import Bar, within
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, MINUTE_MS, Timeframe
from plugins.base import NetworkPluginError, Page
from plugins.ccxt_paging import Ask, plan, read_page
from plugins.ccxt_rules import Reach
from tests.support.market import START_MS

M1 = Timeframe.M1
FAR_MS = START_MS + 1000 * DAY_MS


def at(minute: int) -> int:
    return START_MS + minute * MINUTE_MS


def span(first: int, last: int) -> RangeSet:
    return RangeSet.of(at(first), at(last))


def row(minute: int, volume: float = 1.0) -> list[object]:
    return [at(minute), 2.0, 3.0, 1.0, 2.0, volume]


def ask(reach: Reach, first: int = 0, last: int = 10, *, limit: int = 10) -> Ask:
    return Ask(M1, reach, TimeRange(at(first), at(last)), limit)


def read(question: Ask, rows: list[object]) -> Page:
    return read_page(question, rows, now_ms=FAR_MS)


def minutes_of(page: Page) -> list[int]:
    return [(bar.ts - START_MS) // MINUTE_MS for bar in page.bars]


# Planning


def test_an_exchange_that_reaches_on_is_asked_for_all_that_is_wanted():
    wanted = TimeRange(at(0), at(5000))
    assert plan(M1, wanted, reach=Reach.SINCE, cap=1000) == Ask(M1, Reach.SINCE, wanted, 1000)
    assert plan(M1, TimeRange(at(0), at(3)), reach=Reach.SINCE, cap=1000).limit == 3


def test_an_exchange_that_answers_for_a_stretch_is_asked_for_one_page_of_it():
    question = plan(M1, TimeRange(at(0), at(5000)), reach=Reach.WINDOW, cap=300)
    assert question == Ask(M1, Reach.WINDOW, TimeRange(at(0), at(300)), 300)
    assert plan(M1, TimeRange(at(0), at(7)), reach=Reach.WINDOW, cap=300).window == TimeRange(at(0), at(7))


def test_an_exchange_that_gives_the_newest_gives_as_many_as_it_can():
    assert plan(M1, TimeRange(at(0), at(7)), reach=Reach.NEWEST, cap=720).limit == 720


# Reading healthy answers


@pytest.mark.parametrize("reach", Reach)
def test_an_empty_answer_covers_what_was_asked(reach: Reach):
    assert read(ask(reach), []) == Page((), span(0, 10))


@pytest.mark.parametrize(
    ("reach", "rows", "covered"),
    [
        (Reach.SINCE, [2, 3, 7], (0, 8)),
        (Reach.WINDOW, [2, 3, 7], (2, 8)),
        (Reach.NEWEST, [2, 3, 7], (2, 8)),
        (Reach.WINDOW, [-1, 3, 7], (0, 8)),
        (Reach.SINCE, [2, 3, 12], (0, 10)),
        (Reach.WINDOW, [2, 3, 12], (2, 10)),
        (Reach.NEWEST, [-3, 12], (0, 10)),
        (Reach.SINCE, [12, 13], (0, 10)),
        (Reach.NEWEST, [12, 13], (0, 10)),
        (Reach.NEWEST, list(range(12, 22)), (0, 0)),
        (Reach.WINDOW, list(range(10)), (0, 10)),
    ],
)
def test_an_answer_covers_what_it_proves(reach: Reach, rows: list[int], covered: tuple[int, int]):
    page = read(ask(reach), [row(minute) for minute in rows])
    assert page.covered == span(*covered)
    assert minutes_of(page) == [minute for minute in rows if 0 <= minute < 10]
    assert read(ask(reach), [row(minute) for minute in reversed(rows)]) == page


def test_an_empty_answer_is_refused_where_it_denies_a_known_bar():
    for reach in (Reach.SINCE, Reach.NEWEST):
        with pytest.raises(NetworkPluginError):
            read_page(ask(reach), [], now_ms=FAR_MS, known_ms=at(0))
        assert read_page(ask(reach), [], now_ms=FAR_MS, known_ms=at(-1)).covered == span(0, 10)
    assert read_page(ask(Reach.WINDOW), [], now_ms=FAR_MS, known_ms=at(50)).covered == span(0, 10)


# Reading faulty answers


def test_a_row_that_came_twice_counts_once():
    page = read(ask(Reach.SINCE), [row(0), row(1), row(1), row(2)])
    assert minutes_of(page) == [0, 1, 2]
    assert page.covered == span(0, 3)
    assert not page.rejected


def test_rows_that_contradict_each_other_are_both_thrown_away():
    page = read(ask(Reach.SINCE), [row(0), row(1, 5.0), row(2), row(1, 6.0), row(1, 5.0)])
    assert minutes_of(page) == [0, 2]
    assert page.covered == span(0, 1) | span(2, 3)
    assert page.rejected == (f"row 4: time {at(1)} came twice with different values",)


@pytest.mark.parametrize(
    "bad",
    [
        [at(1), nan, 3.0, 1.0, 2.0, 1.0],
        [at(1), 2.0, inf, 1.0, 2.0, 1.0],
        [at(1), 2.0, None, 1.0, 2.0, 1.0],
        [at(1), 2.0, 1.0, 3.0, 2.0, 1.0],
        [at(1), 2.0, 3.0, 1.0, 2.0, -1.0],
        [at(1), 2.0, 3.0, 1.0, 2.0],
        [at(1), "x", 3.0, 1.0, 2.0, 1.0],
        [float(at(1)), True, 3.0, 1.0, 2.0, 1.0],
    ],
)
def test_a_bad_row_leaves_its_own_bucket_open(bad: list[object]):
    page = read(ask(Reach.SINCE), [row(0), bad, row(2)])
    assert minutes_of(page) == [0, 2]
    assert page.covered == span(0, 1) | span(2, 3)
    assert len(page.rejected) == 1


@pytest.mark.parametrize(
    "bad", [None, [], "row", [None] * 6, [at(4) + 1, 2.0, 3.0, 1.0, 2.0, 1.0], [nan] * 6, [-1] * 6]
)
def test_a_row_that_cannot_be_placed_leaves_open_where_it_may_belong(bad: object):
    def covered(*rows: object) -> RangeSet:
        return read(ask(Reach.SINCE), list(rows)).covered

    assert covered(row(0), row(2), bad, row(6), row(7)) == span(0, 3) | span(6, 8)
    assert covered(row(7), row(6), bad, row(2), row(0)) == span(0, 3) | span(6, 8)
    assert covered(row(0), row(2), bad) == span(0, 3)
    assert covered(bad, row(2), row(3)) == span(2, 4)
    assert covered(row(5), row(0), bad, row(2)) == span(0, 1) | span(2, 3) | span(5, 6)
    assert covered(row(3), bad) == span(3, 4)


def test_a_page_of_bad_rows_alone_covers_nothing():
    bad: list[object] = [[at(minute), nan, 3.0, 1.0, 2.0, 1.0] for minute in range(10)]
    page = read(ask(Reach.SINCE), bad)
    assert not page.bars
    assert not page.covered
    assert len(page.rejected) == 10


@pytest.mark.parametrize("rows", [[None], [[None] * 6] * 3, ["<", "h", "t"], [{}, {}]])
def test_rows_without_a_time_are_no_answer(rows: list[object]):
    with pytest.raises(NetworkPluginError, match="has a time"):
        read(ask(Reach.SINCE), rows)


def test_a_bar_of_the_future_is_thrown_away_and_proves_nothing():
    page = read_page(ask(Reach.SINCE), [row(0), row(1), row(9_000)], now_ms=at(5))
    assert page.covered == span(0, 2)
    assert len(page.rejected) == 1


MARKETS = st.sets(st.integers(-5, 40))
CUTS: dict[Reach, Callable[[list[int], int], list[int]]] = {
    Reach.SINCE: lambda market, size: [minute for minute in market if minute >= 0][:size],
    Reach.WINDOW: lambda market, size: [minute for minute in market if 0 <= minute < 20][-size:],
    Reach.NEWEST: lambda market, size: market[-size:],
}


@given(reach=st.sampled_from(Reach), market=MARKETS, size=st.integers(1, 30), data=st.data())
def test_whatever_an_exchange_leaves_out_the_page_claims_only_the_truth(
    reach: Reach, market: set[int], size: int, data: st.DataObject
):
    """The answer is cut at the exchange's end of it, some rows are spoilt, doubled, and all are shuffled."""
    sent = CUTS[reach](sorted(market), size)
    spoilt = data.draw(st.sets(st.sampled_from(sent))) if sent else set()
    rows: list[object] = [[at(minute), nan if minute in spoilt else 2.0, 3.0, 1.0, 2.0, 1.0] for minute in sent]
    doubled = data.draw(st.lists(st.sampled_from(rows))) if rows else []
    rows = data.draw(st.permutations(rows + doubled))
    question = Ask(M1, reach, TimeRange(at(0), at(20)), size)
    page = read(question, rows)
    truth = [Bar(at(minute), 2.0, 3.0, 1.0, 2.0, 1.0) for minute in sorted(market)]
    assert within(page.bars, page.covered) == within(truth, page.covered)
    assert not page.covered - RangeSet((question.window,))
