"""Files of bars: CSV (plain, gzipped, zipped), Parquet and Feather, in the layouts that people and exchanges use.

docs/import.md says what is understood. A row that is no bar is listed and never stops the file; a file that is no
table of bars at all is refused as a whole, with words on what was found and what would be right.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path

from domain.bar import Bar
from domain.packed import PackedBars
from domain.timeframe import DAY_MS, Timeframe
from services.bar_file_columns import is_columnar, open_columns
from services.bar_file_layout import BarFileError
from services.bar_file_rows import BadRow, Converter, Rows
from services.bar_file_text import open_text
from services.bar_file_times import TimeReader, detect, session_date_ms

__all__ = ["BadRow", "BarBatch", "BarFileError", "read_bars"]

HEAD_BYTES = 8


class BarBatch:
    """Some of a file's bars.

    Attributes:
        found: good bars, ascending, one a `ts`; packed where that came of itself.
        bad: the rows between them that are no bars.
        position: rows read so far, good and bad, from the file's beginning; `skip_rows` resumes there.
        total_rows: how many rows there are, where the file says.
        bytes_done: how much of the file has been read.
        bytes_total: the file's size.
    """

    def __init__(
        self,
        found: list[Bar] | PackedBars,
        bad: list[BadRow],
        position: int,
        total_rows: int | None,
        *,
        bytes_done: int,
        bytes_total: int,
    ) -> None:
        """Take all of it."""
        self.found = found
        self.bad = bad
        self.position = position
        self.total_rows = total_rows
        self.bytes_done = bytes_done
        self.bytes_total = bytes_total

    @cached_property
    def bars(self) -> list[Bar]:
        """The good bars."""
        return self.found if isinstance(self.found, list) else list(self.found)


def read_bars(
    path: Path, timeframe: Timeframe, *, skip_rows: int = 0, batch_rows: int = 50_000, session_dates: bool = False
) -> Iterator[BarBatch]:
    """Read a file's bars, in batches of about `batch_rows`.

    Of rows with one time the first counts; equal ones are passed over, and others listed as bad where they stand
    within two batches of the first. With `session_dates` a bar of a day or more that is not at 00:00 UTC gets its
    date in New York, as the daily bars of US stocks need.

    Raises:
        BarFileError: the file is none of the kinds, or is damaged; where the damage shows only on the way, what was
            read before it comes first.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise BarFileError(f"{path}: it cannot be read ({error.strerror or error})") from error
    try:
        with _open(path, head, skip_rows) as rows:
            yield from _batches(rows, timeframe, skip_rows, batch_rows, session_dates=session_dates)
    except BarFileError as error:
        raise BarFileError(f"{path}: {error.detail}") from error


def _open(path: Path, head: bytes, skip_rows: int) -> AbstractContextManager[Rows]:
    return open_columns(path, head, skip_rows) if is_columnar(head) else open_text(path, head, skip_rows)


def _batches(
    rows: Rows, timeframe: Timeframe, position: int, batch_rows: int, *, session_dates: bool
) -> Iterator[BarBatch]:
    to_ms = _times(rows, by_date=session_dates and timeframe.nominal_ms >= DAY_MS)
    converter = Converter(rows.columns, to_ms, timeframe)
    done = 0
    broken: BarFileError | None = None
    blocks = iter(rows.blocks)
    while True:
        try:
            block = next(blocks, None)
        except BarFileError as error:
            block, broken = None, error
        if block is not None:
            converter.convert(block)
            done = block.bytes_done
        elif broken is None:
            done = rows.total_bytes  # whatever follows the rows, as an archive's table of contents does
        if converter.rows and (block is None or converter.rows >= batch_rows):
            position += converter.rows
            yield BarBatch(
                *converter.take_batch(), position, rows.total_rows, bytes_done=done, bytes_total=rows.total_bytes
            )
        if broken is not None:
            raise broken
        if block is None:
            return


def _times(rows: Rows, *, by_date: bool) -> TimeReader:
    to_ms = rows.times if callable(rows.times) else detect(rows.times)
    return (lambda cell: session_date_ms(to_ms(cell))) if by_date else to_ms
