"""From cells to bars: what every kind of bar file has in common."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from domain.bar import Bar, fault_of
from domain.packed import PackedBars
from domain.packed import Rows as PackedRows
from domain.timeframe import Timeframe
from services.bar_file_times import EpochReader, TimeReader

if TYPE_CHECKING:
    from services.bar_columns import BarColumns

#: A row's cells, or what is wrong with the row.
Cells = Sequence[Any] | str


class BadRow(NamedTuple):
    """A row that is no bar; `line` is 1-based (header counted) in text, the row's number in Parquet and Feather."""

    line: int
    detail: str


class RowBlock(NamedTuple):
    """Some rows with their numbers, and how many bytes of the file have been read so far."""

    rows: Sequence[tuple[int, Cells]]
    bytes_done: int


class ColumnBlock(NamedTuple):
    """Some rows as columns of numbers.

    Attributes:
        columns: arrays of time, open, high, low, close, volume; times are whole numbers.
        bytes_done: how many bytes of the file have been read so far.
        as_rows: the same as rows.
    """

    columns: tuple[Any, ...]
    bytes_done: int
    as_rows: Callable[[], RowBlock]


class Rows(NamedTuple):
    """A table of bars.

    Attributes:
        columns: where a row has time, open, high, low, close, volume.
        times: sampled times, or the reader that suits all of them.
        blocks: the rows.
        total_rows: how many there are, where the file says.
        total_bytes: the file's size.
    """

    columns: tuple[int, int, int, int, int, int]
    times: Sequence[object] | TimeReader
    blocks: Iterator[RowBlock | ColumnBlock]
    total_rows: int | None
    total_bytes: int


def shown(text: object) -> str:
    """A cell or line for a message, cut short."""
    words = str(text)
    return repr(words if len(words) <= 60 else words[:57] + "...")  # noqa: PLR2004


class Converter:
    """Turns cells into checked bars, a batch at a time."""

    def __init__(self, columns: Sequence[int], to_ms: TimeReader, timeframe: Timeframe) -> None:
        """Take where the cells are, and what they must become."""
        self._pick = itemgetter(*columns)
        self._to_ms = to_ms
        self._timeframe = timeframe
        #: Rows of this batch.
        self.rows = 0
        self._parts: list[list[Bar] | BarColumns] = []
        self._bad: list[BadRow] = []
        # Of this batch and of the one before: enough for a file that repeats its neighbours, and bounded.
        self._seen: dict[int, Bar] = {}
        self._seen_before: dict[int, Bar] = {}
        #: Columns of this batch and of the one before that are not among the seen bars yet.
        self._unseen: list[BarColumns] = []
        self._unseen_before: list[BarColumns] = []
        #: All times so far lie within.
        self._first_ms: int | None = None
        self._last_ms = 0

    def convert(self, block: RowBlock | ColumnBlock) -> None:
        """Take each row's bar, or its fault."""
        if isinstance(block, ColumnBlock):
            bars = self._good_bars(block)
            if bars is not None:
                self.rows += len(bars)
                self._parts.append(bars)
                self._unseen.append(bars)
                self._reach(*bars.bounds)
                return
            block = block.as_rows()
        self.rows += len(block.rows)
        self._convert_rows(block.rows)

    def take_batch(self) -> tuple[list[Bar] | PackedBars, list[BadRow]]:
        """The bars, ascending, and the bad rows since the last time."""
        taken = _in_order(self._parts), self._bad
        self._parts, self._bad, self.rows = [], [], 0
        self._seen_before, self._seen = self._seen, {}
        self._unseen_before, self._unseen = self._unseen, []
        return taken

    def _good_bars(self, block: ColumnBlock) -> "BarColumns | None":
        """The rows' bars, where all are good, in order, and before or after all others; None: they must be read."""
        if not isinstance(self._to_ms, EpochReader) or self._timeframe.width_ms is None or not len(block.columns[0]):
            return None
        from services.bar_columns import BarColumns  # noqa: PLC0415 - small files need no NumPy

        ts = self._to_ms.read_all(block.columns[0])
        bars = None if ts is None else BarColumns(ts, block.columns[1:]).ascending()
        if bars is None or not bars.are_good(self._timeframe):
            return None
        first_ms, last_ms = bars.bounds
        apart = self._first_ms is None or first_ms > self._last_ms or last_ms < self._first_ms
        return bars if apart else None

    def _reach(self, first_ms: int, last_ms: int) -> None:
        self._last_ms = last_ms if self._first_ms is None else max(self._last_ms, last_ms)
        self._first_ms = first_ms if self._first_ms is None else min(self._first_ms, first_ms)

    def _convert_rows(self, rows: Sequence[tuple[int, Cells]]) -> None:
        for columns, into in ((self._unseen, self._seen), (self._unseen_before, self._seen_before)):
            into.update((bar.ts, bar) for part in columns for bar in part)
            columns.clear()
        pick, to_ms, timeframe = self._pick, self._to_ms, self._timeframe
        seen, before, bad = self._seen, self._seen_before, self._bad
        bars: list[Bar] = []
        for line, cells in rows:
            if isinstance(cells, str):
                bad.append(BadRow(line, cells))
                continue
            time, open_, high, low, close, volume = pick(cells)
            try:
                bar = Bar(to_ms(time), float(open_), float(high), float(low), float(close), float(volume))
                fault = fault_of(bar, timeframe)
            except (TypeError, ValueError, OverflowError, OSError):
                fault = self._explain(pick(cells))
            if fault is not None:
                bad.append(BadRow(line, fault))
                continue
            ts = bar.ts
            known = seen.get(ts) or before.get(ts)
            if known is None:
                seen[ts] = bar
                bars.append(bar)
            elif known != bar:
                bad.append(BadRow(line, f"another row of time {ts} says otherwise; the first one is kept"))
        if bars:
            self._parts.append(bars)
            self._reach(min(bar.ts for bar in bars), max(bar.ts for bar in bars))

    def _explain(self, cells: Sequence[object]) -> str:
        try:
            self._timeframe.floor(self._to_ms(cells[0]))
        except ValueError as error:
            return str(error)
        except (OverflowError, OSError):
            return f"time {shown(cells[0])} is out of range"
        for name, cell in zip(("open", "high", "low", "close", "volume"), cells[1:], strict=True):
            try:
                float(cell)  # type: ignore[arg-type] # the errors are caught
            except (TypeError, ValueError):
                return f"{name} {shown(cell)} is not a number"
        return "it cannot be understood"


def _in_order(parts: "Sequence[list[Bar] | BarColumns]") -> list[Bar] | PackedBars:
    """All bars of the parts, ascending; packed where some are columns, and the parts lie one after the other."""
    if any(not isinstance(part, list) for part in parts):
        packed = [PackedBars.of(sorted(p, key=_ts)) if isinstance(p, list) else p.packed() for p in parts]
        packed.sort(key=lambda part: part[0].ts)
        if all(before[-1].ts < after[0].ts for before, after in pairwise(packed)):
            return PackedBars(PackedRows(b"".join(part.raw() for part in packed)))
    return sorted((bar for part in parts for bar in part), key=_ts)


def _ts(bar: Bar) -> int:
    return bar.ts
