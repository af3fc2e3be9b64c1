"""Coverage as a calendar: rows of a day, a week, a month or a year, cut into cells that each tell the worst they hold.

Pure: tiles in, rows out. `commands.coverage` draws them.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from enum import Enum
from itertools import pairwise
from typing import NamedTuple

from domain.series import Verdict
from domain.time_range import TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from services.coverage import Tile

#: More rows than this are too many to look at: the next larger unit is taken, if there is one.
MOST_ROWS = 60
#: However narrow the terminal, this many cells a row; the lines are wrapped then.
FEWEST_CELLS = 12

#: The worst first. Where all is settled, a cell that holds a bar tells of it.
RANKS = (
    Verdict.FETCH_FAILED,
    Verdict.NEVER_FETCHED,
    Verdict.UNCONFIRMED_EMPTY,
    Verdict.DATA,
    Verdict.NO_TRADES,
    Verdict.CLOSED_SESSION,
    Verdict.NOT_LISTED,
)
#: What is not settled: there may be bars that are not stored.
UNSETTLED = RANKS[:3]


class Cell(NamedTuple):
    """The worst verdict within a stretch of time, and whether there are others; None: outside of what was asked for."""

    verdict: Verdict | None
    is_mixed: bool


class Row(NamedTuple):
    """A row: where it begins, its cells, and the share (0 to 1) of its part of the range that is settled."""

    start_ms: int
    cells: tuple[Cell, ...]
    settled: float


class Unit(Enum):
    """What a row spans: its bucket (None: a year) and most days; widths of a cell; formats of labels and marks."""

    DAY = (Timeframe.D1, 1, (15, 20, 30, 60, 120, 180, 240), "%Y-%m-%d %a", (6, "%H"))
    WEEK = (Timeframe.W1, 7, tuple(60 * n for n in (1, 2, 3, 4, 6, 8, 12, 24)), "%Y-%m-%d", (24, "%a"))
    MONTH = (Timeframe.MN1, 31, tuple(60 * n for n in (6, 12, 24, 48, 96)), "%Y-%m", (5 * 24, "%d"))
    YEAR = (None, 366, tuple(60 * 24 * n for n in (5, 7)), "%Y", (61 * 24, "%b"))

    def __init__(
        self, bucket: Timeframe | None, days: int, minutes: Sequence[int], label: str, marks: tuple[int, str]
    ) -> None:
        """Take them apart; a mark every so many hours."""
        self.bucket = bucket
        self.longest_ms = days * DAY_MS
        self.widths = tuple(n * MINUTE_MS for n in minutes)
        self.label_format = label
        self.mark_ms = marks[0] * HOUR_MS
        self.mark_format = marks[1]

    def rows(self, span: TimeRange) -> Iterator[TimeRange]:
        """The rows that hold the span."""
        start = self._floor(span.start_ms)
        while start < span.end_ms:
            end = self._next(start)
            yield TimeRange(start, end)
            start = end

    def label(self, row: Row) -> str:
        """The row's name."""
        return _utc(row.start_ms).strftime(self.label_format)

    def _floor(self, ts_ms: int) -> int:
        return _new_year_ms(_utc(ts_ms).year) if self.bucket is None else self.bucket.floor(ts_ms)

    def _next(self, ts_ms: int) -> int:
        return _new_year_ms(_utc(ts_ms).year + 1) if self.bucket is None else self.bucket.next(ts_ms)


class Scale(NamedTuple):
    """What a row and a cell span. `cell_ms` is None for calendar months."""

    unit: Unit
    cell_ms: int | None

    def borders(self, row: TimeRange) -> list[int]:
        """Starts of the row's cells, and its end."""
        if self.cell_ms is None:
            return [*Timeframe.MN1.starts(*row), row.end_ms]
        return [*range(row.start_ms, row.end_ms, self.cell_ms), row.end_ms]

    @property
    def most_cells(self) -> int:
        """Cells of the longest row."""
        return 12 if self.cell_ms is None else -(-self.unit.longest_ms // self.cell_ms)

    def ruler(self, row: TimeRange) -> str:
        """Names of hours, days or months, each above the cell that it begins in, where there is room."""
        borders = self.borders(row)
        line = ""
        for ts_ms in range(row.start_ms, row.end_ms, self.unit.mark_ms):
            name = _utc(ts_ms).strftime(self.unit.mark_format)
            at = bisect_right(borders, ts_ms) - 1
            if not line or at > len(line):
                line = line.ljust(at) + name
        return line


def scale_for(span: TimeRange, timeframe: Timeframe, *, columns: int) -> Scale:
    """The smallest unit that gives few enough rows, with the narrowest cells that fit in and hold whole buckets."""
    room = max(columns, FEWEST_CELLS)
    for unit in Unit:
        if unit is not Unit.YEAR and _is_longer(unit.rows(span), MOST_ROWS):
            continue
        for cell_ms in unit.widths:
            scale = Scale(unit, cell_ms)
            if scale.most_cells <= room and _holds_buckets(scale, timeframe):
                return scale
    return Scale(Unit.YEAR, None)


def rows(tiles: Sequence[Tile], scale: Scale) -> list[Row]:
    """The rows of ascending, disjoint tiles."""
    if not tiles:
        return []
    span = TimeRange(tiles[0].range.start_ms, tiles[-1].range.end_ms)
    starts = [tile.range.start_ms for tile in tiles]
    ends = [tile.range.end_ms for tile in tiles]
    out = []
    for row in scale.unit.rows(span):
        part = tiles[bisect_right(ends, row.start_ms) : bisect_left(starts, row.end_ms)]
        out.append(Row(row.start_ms, tuple(cells(part, scale.borders(row))), _settled(part, row)))
    return out


def cells(tiles: Sequence[Tile], borders: Iterable[int]) -> Iterator[Cell]:
    """A cell for each two neighbouring borders, out of ascending, disjoint tiles."""
    first = 0
    for start, end in pairwise(borders):
        while first < len(tiles) and tiles[first].range.end_ms <= start:
            first += 1
        found: set[Verdict] = set()
        at = first
        while at < len(tiles) and tiles[at].range.start_ms < end:
            found.add(tiles[at].verdict)
            at += 1
        yield Cell(min(found, key=RANKS.index, default=None), len(found) > 1)


def _settled(tiles: Iterable[Tile], row: TimeRange) -> float:
    shared = [(tile.verdict, part.length_ms) for tile in tiles if (part := tile.range.intersect(row))]
    total = sum(length for _, length in shared)
    return sum(length for verdict, length in shared if verdict not in UNSETTLED) / total if total else 1.0


def _holds_buckets(scale: Scale, timeframe: Timeframe) -> bool:
    """Whether a cell is made of whole buckets; in a year's row it is enough that it is no shorter than one."""
    width, cell_ms = timeframe.width_ms, scale.cell_ms
    if width is None or cell_ms is None:
        return False
    return width <= cell_ms if scale.unit is Unit.YEAR else width <= DAY_MS and cell_ms % width == 0


def _is_longer(items: Iterable[object], most: int) -> bool:
    return any(nth >= most for nth, _ in enumerate(items))


def _utc(ts_ms: int) -> datetime:
    return datetime.fromtimestamp(ts_ms / 1000, UTC)


def _new_year_ms(year: int) -> int:
    return int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) * 1000
