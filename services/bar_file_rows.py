"""From cells to bars: what every kind of bar file has in common."""

from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from domain.bar import Bar, fault_of
from domain.timeframe import Timeframe
from services.bar_file_times import TimeReader

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
    blocks: Iterator[RowBlock]
    total_rows: int | None
    total_bytes: int


def shown(text: object) -> str:
    """A cell or line for a message, cut short."""
    words = str(text)
    return repr(words if len(words) <= 60 else words[:57] + "...")  # noqa: PLR2004


class Converter:
    """Turns cells into checked bars."""

    def __init__(self, columns: Sequence[int], to_ms: TimeReader, timeframe: Timeframe) -> None:
        """Take where the cells are, and what they must become."""
        self._pick = itemgetter(*columns)
        self._to_ms = to_ms
        self._timeframe = timeframe
        # Of this batch and of the one before: enough for a file that repeats its neighbours, and bounded.
        self._seen: dict[int, Bar] = {}
        self._seen_before: dict[int, Bar] = {}

    def next_batch(self) -> None:
        """Forget the bars of the batch before this one."""
        self._seen_before, self._seen = self._seen, {}

    def convert(self, rows: Sequence[tuple[int, Cells]], bars: list[Bar], bad: list[BadRow]) -> None:
        """Add each row's bar to `bars`, or its fault to `bad`."""
        pick, to_ms, timeframe = self._pick, self._to_ms, self._timeframe
        seen, before = self._seen, self._seen_before
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
