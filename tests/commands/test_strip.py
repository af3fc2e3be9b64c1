"""Coverage as a calendar, without a terminal."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commands.strip import FEWEST_CELLS, MOST_ROWS, RANKS, UNSETTLED, Cell, Row, Scale, Unit, cells, rows, scale_for
from domain.series import Verdict
from domain.time_range import TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from services.coverage import Tile

#: 2024-01-01, a Monday.
MONDAY_MS = 1_704_067_200_000
FINE = (Timeframe.M1, Timeframe.M3, Timeframe.M5, Timeframe.M15, Timeframe.M30, Timeframe.H1)


@st.composite
def tilings(draw: st.DrawFn, timeframes: Sequence[Timeframe] = tuple(Timeframe)) -> tuple[Timeframe, list[Tile]]:
    """Tiles of whole buckets, without a hole, from anywhere on."""
    timeframe = draw(st.sampled_from(timeframes))
    at = timeframe.ceil(draw(st.integers(0, MONDAY_MS)))
    tiles = []
    for length in draw(st.lists(st.integers(1, 3 * DAY_MS), min_size=1, max_size=12)):
        end = timeframe.ceil(at + length)
        tiles.append(Tile(TimeRange(at, end), draw(st.sampled_from(Verdict))))
        at = end
    return timeframe, tiles


def verdicts(tiles: Sequence[Tile], start_ms: int, end_ms: int) -> list[Verdict]:
    part = TimeRange(start_ms, end_ms)
    return [tile.verdict for tile in tiles if tile.range.intersect(part)]


def span_of(tiles: Sequence[Tile]) -> TimeRange:
    return TimeRange(tiles[0].range.start_ms, tiles[-1].range.end_ms)


def one(verdict: Verdict, start_ms: int, length_ms: int) -> Tile:
    return Tile(TimeRange(start_ms, start_ms + length_ms), verdict)


@given(tilings(), st.integers(1, 200))
def test_every_cell_tells_the_worst_of_the_tiles_that_it_meets(found: tuple[Timeframe, list[Tile]], columns: int):
    timeframe, tiles = found
    scale = scale_for(span_of(tiles), timeframe, columns=columns)
    for row, stretch in zip(rows(tiles, scale), scale.unit.rows(span_of(tiles)), strict=True):
        assert row.start_ms == stretch.start_ms
        for cell, (start, end) in zip(row.cells, pairwise(scale.borders(stretch)), strict=True):
            met = verdicts(tiles, start, end)
            assert cell == Cell(min(met, key=RANKS.index) if met else None, len(set(met)) > 1)


@given(tilings(), st.integers(1, 200))
def test_rows_and_cells_tile_the_range_without_a_hole(found: tuple[Timeframe, list[Tile]], columns: int):
    timeframe, tiles = found
    span = span_of(tiles)
    scale = scale_for(span, timeframe, columns=columns)
    drawn = [scale.borders(row) for row in scale.unit.rows(span)]
    assert drawn[0][0] <= span.start_ms < span.end_ms <= drawn[-1][-1]
    assert all(a[-1] == b[0] for a, b in pairwise(drawn))
    assert all(a < b for borders in drawn for a, b in pairwise(borders))


@given(tilings(), st.integers(1, 300))
def test_every_row_fits_the_terminal_if_it_is_not_too_narrow(found: tuple[Timeframe, list[Tile]], columns: int):
    timeframe, tiles = found
    scale = scale_for(span_of(tiles), timeframe, columns=columns)
    assert all(len(row.cells) <= scale.most_cells <= max(columns, FEWEST_CELLS) for row in rows(tiles, scale))


@given(tilings(FINE), st.integers(50, 300))
def test_short_ranges_are_drawn_bucket_by_bucket_or_coarser_and_never_finer(
    found: tuple[Timeframe, list[Tile]], columns: int
):
    timeframe, tiles = found
    scale = scale_for(span_of(tiles), timeframe, columns=columns)
    assert scale.unit is Unit.DAY
    assert scale.cell_ms is not None
    assert timeframe.width_ms is not None
    assert scale.cell_ms % timeframe.width_ms == 0


@given(tilings())
def test_the_settled_share_is_that_of_the_time_asked_for(found: tuple[Timeframe, list[Tile]]):
    timeframe, tiles = found
    scale = scale_for(span_of(tiles), timeframe, columns=60)
    whole = span_of(tiles).length_ms
    settled = sum(tile.range.length_ms for tile in tiles if tile.verdict not in UNSETTLED)
    parts = [part.length_ms for row in scale.unit.rows(span_of(tiles)) if (part := row.intersect(span_of(tiles)))]
    shares = [row.settled for row in rows(tiles, scale)]
    assert sum(share * part for share, part in zip(shares, parts, strict=True)) == pytest.approx(
        settled, abs=whole / 1e9
    )
    assert all(
        (share == 1.0) == (not any(c.verdict in UNSETTLED for c in row.cells))
        for share, row in zip(shares, rows(tiles, scale), strict=True)
    )


@pytest.mark.parametrize(
    ("days", "timeframe", "columns", "scale"),
    [
        (1, Timeframe.M1, 56, Scale(Unit.DAY, 30 * MINUTE_MS)),
        (60, Timeframe.M1, 100, Scale(Unit.DAY, 15 * MINUTE_MS)),
        (60, Timeframe.M15, 80, Scale(Unit.DAY, 30 * MINUTE_MS)),
        (60, Timeframe.M5, 80, Scale(Unit.DAY, 20 * MINUTE_MS)),
        (3, Timeframe.M1, 5, Scale(Unit.DAY, 2 * HOUR_MS)),
        (61, Timeframe.M1, 56, Scale(Unit.WEEK, 3 * HOUR_MS)),
        (3, Timeframe.H12, 56, Scale(Unit.WEEK, 12 * HOUR_MS)),
        (3, Timeframe.D1, 56, Scale(Unit.WEEK, DAY_MS)),
        (421, Timeframe.M1, 56, Scale(Unit.MONTH, DAY_MS)),
        (1000, Timeframe.D1, 200, Scale(Unit.MONTH, DAY_MS)),
        (3653, Timeframe.M1, 56, Scale(Unit.YEAR, 7 * DAY_MS)),
        (3653, Timeframe.M1, 30, Scale(Unit.YEAR, None)),
        (10, Timeframe.D3, 100, Scale(Unit.YEAR, 5 * DAY_MS)),
        (10, Timeframe.W1, 100, Scale(Unit.YEAR, 7 * DAY_MS)),
        (10, Timeframe.MN1, 100, Scale(Unit.YEAR, None)),
    ],
)
def test_longer_ranges_and_wider_buckets_get_larger_rows(days: int, timeframe: Timeframe, columns: int, scale: Scale):
    span = TimeRange(MONDAY_MS, MONDAY_MS + days * DAY_MS)
    assert scale_for(span, timeframe, columns=columns) == scale
    assert scale.unit is Unit.YEAR or len(list(scale.unit.rows(span))) <= MOST_ROWS


def test_one_missing_minute_shows_in_years():
    tiles = [
        one(Verdict.DATA, MONDAY_MS, 2000 * DAY_MS),
        one(Verdict.NEVER_FETCHED, MONDAY_MS + 2000 * DAY_MS, MINUTE_MS),
        one(Verdict.DATA, MONDAY_MS + 2000 * DAY_MS + MINUTE_MS, 2000 * DAY_MS),
    ]
    drawn = rows(tiles, scale_for(span_of(tiles), Timeframe.M1, columns=60))
    assert [cell.verdict for row in drawn for cell in row.cells].count(Verdict.NEVER_FETCHED) == 1
    assert [row.settled == 1.0 for row in drawn].count(False) == 1


def test_a_failure_outranks_what_nobody_asked_for_and_that_a_single_empty_answer():
    tiles = [one(verdict, MONDAY_MS + nth * MINUTE_MS, MINUTE_MS) for nth, verdict in enumerate(reversed(RANKS))]
    worst = [next(cells(tiles[:count], (MONDAY_MS, MONDAY_MS + HOUR_MS))) for count in range(1, 8)]
    assert [cell.verdict for cell in worst] == list(reversed(RANKS))
    assert [cell.is_mixed for cell in worst] == [False, *[True] * 6]
    assert RANKS[:3] == (Verdict.FETCH_FAILED, Verdict.NEVER_FETCHED, Verdict.UNCONFIRMED_EMPTY)
    assert set(RANKS) == set(Verdict)


def test_what_was_not_asked_for_is_no_verdict():
    tiles = [one(Verdict.DATA, MONDAY_MS + 6 * HOUR_MS, 6 * HOUR_MS)]
    (row,) = rows(tiles, Scale(Unit.DAY, 4 * HOUR_MS))
    data, nothing = Cell(Verdict.DATA, False), Cell(None, False)
    assert row == Row(MONDAY_MS, (nothing, data, data, nothing, nothing, nothing), 1.0)


def test_nothing_asked_for_has_no_rows():
    assert rows([], Scale(Unit.DAY, HOUR_MS)) == []


@pytest.mark.parametrize(
    ("scale", "label", "ruler"),
    [
        (Scale(Unit.DAY, HOUR_MS), "2024-01-01 Mon", "00    06    12    18"),
        (Scale(Unit.DAY, 4 * HOUR_MS), "2024-01-01 Mon", "00 12"),
        (Scale(Unit.WEEK, 6 * HOUR_MS), "2024-01-01", "Mon Tue Wed Thu Fri Sat Sun"),
        (Scale(Unit.WEEK, DAY_MS), "2024-01-01", "Mon Fri"),
        (Scale(Unit.MONTH, DAY_MS), "2024-01", "01   06   11   16   21   26   31"),
        (Scale(Unit.YEAR, None), "2024", "Jan May Sep"),
    ],
)
def test_rows_and_cells_are_named(scale: Scale, label: str, ruler: str):
    assert scale.unit.label(Row(MONDAY_MS, (), 1.0)) == label
    assert scale.ruler(next(scale.unit.rows(TimeRange(MONDAY_MS, MONDAY_MS + 1)))) == ruler
