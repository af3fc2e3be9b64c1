"""Rows of Parquet and Feather files, read by record batches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from domain.timeframe import DAY_MS
from services.bar_file_layout import FIELDS, BarFileError, layout_of_names
from services.bar_file_rows import ColumnBlock, RowBlock, Rows
from services.bar_file_times import EpochReader, TimeReader

PARQUET, FEATHER, FEATHER_1 = b"PAR1", b"ARROW1", b"FEA1"
BLOCK_ROWS = 8_192
SAMPLES = 1_000
UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


class _Table(NamedTuple):
    """An open file.

    `batches(columns, row)` gives record batches from the one that holds `row` on: the number of its first row, the
    batch, and what share of the file lies behind when it is done.
    """

    schema: Any
    total_rows: int | None
    batches: Callable[[list[str], int], Iterator[tuple[int, Any, float]]]


def is_columnar(head: bytes) -> bool:
    """Whether a file that begins so is one for this module."""
    return head.startswith((PARQUET, FEATHER, FEATHER_1))


@contextmanager
def open_columns(path: Path, head: bytes, skip_rows: int) -> Iterator[Rows]:
    """The rows after the first `skip_rows` of the Parquet or Feather file at `path`, which begins with `head`.

    Raises:
        BarFileError: it is damaged, or no table of bars.
    """
    if head.startswith(FEATHER_1):
        raise BarFileError("the file is Feather version 1; save it as version 2")
    # Here, since the import takes a third of a second, which text files need not wait for.
    import pyarrow as pa  # noqa: PLC0415

    with _damage_told(), pa.OSFile(str(path), "rb") as file:
        yield _rows(_parquet(file) if head.startswith(PARQUET) else _feather(file), skip_rows, path.stat().st_size)


@contextmanager
def _damage_told() -> Iterator[None]:
    import pyarrow as pa  # noqa: PLC0415

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise BarFileError(f"the file is damaged or cut short ({str(error)[:200]})") from error


def _parquet(file: Any) -> _Table:
    import pyarrow.parquet as pq  # noqa: PLC0415

    parquet = pq.ParquetFile(file, page_checksum_verification=True)
    total = parquet.metadata.num_rows
    sizes = [parquet.metadata.row_group(number).num_rows for number in range(parquet.metadata.num_row_groups)]

    def batches(columns: list[str], row: int) -> Iterator[tuple[int, Any, float]]:
        first = group = 0
        while group < len(sizes) and first + sizes[group] <= row:
            first, group = first + sizes[group], group + 1
        groups = list(range(group, len(sizes)))
        for batch in parquet.iter_batches(BLOCK_ROWS, row_groups=groups, columns=columns, use_threads=False):
            yield first, batch, (first + batch.num_rows) / total
            first += batch.num_rows

    return _Table(parquet.schema_arrow, total, batches)


def _feather(file: Any) -> _Table:
    import pyarrow as pa  # noqa: PLC0415

    ipc = pa.ipc.open_file(file)

    def batches(columns: list[str], row: int) -> Iterator[tuple[int, Any, float]]:
        first = 0
        for number in range(ipc.num_record_batches):
            batch = ipc.get_batch(number).select(columns)
            for at in range(0, batch.num_rows, BLOCK_ROWS):
                if first + at + BLOCK_ROWS > row:
                    yield first + at, batch.slice(at, BLOCK_ROWS), (number + 1) / ipc.num_record_batches
            first += batch.num_rows

    # Its rows can be counted only by reading all of it.
    return _Table(ipc.schema, None, batches)


def _rows(table: _Table, skip_rows: int, size: int) -> Rows:
    place = layout_of_names(table.schema.names).columns
    names = [table.schema.names[column] for column in place]
    types = [table.schema.field(column).type for column in place]
    known = _known_times(types[0])
    _refuse_odd_types(names, types)
    sampled = (_times(batch.column(0)) for _, batch, _ in islice(table.batches(names[:1], 0), 1))
    samples = next(sampled, [])[:SAMPLES] if known is None else []
    return Rows((0, 1, 2, 3, 4, 5), known or samples, _blocks(table, names, skip_rows, size), table.total_rows, size)


def _known_times(kind: Any) -> TimeReader | None:
    import pyarrow as pa  # noqa: PLC0415

    if pa.types.is_timestamp(kind):
        return EpochReader(UNITS[kind.unit], exact=True)  # stored in UTC; without a zone taken for UTC
    if pa.types.is_date64(kind):
        return EpochReader("milliseconds", exact=True)
    if pa.types.is_date32(kind):
        return _days_to_ms
    return None


def _days_to_ms(days: object) -> int:
    if not isinstance(days, int):
        raise ValueError("time is missing")  # noqa: TRY004 - a fault of the row, like the others
    return days * DAY_MS


def _refuse_odd_types(names: list[str], types: list[Any]) -> None:
    import pyarrow as pa  # noqa: PLC0415

    for field, name, kind in zip(FIELDS, names, types, strict=True):
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        numeric = pa.types.is_integer(plain) or pa.types.is_floating(plain) or pa.types.is_decimal(plain)
        text = pa.types.is_string(plain) or pa.types.is_large_string(plain)
        if not numeric and not text and not (field == "time" and _known_times(plain)):
            raise BarFileError(f"column {name!r}, the {field}, holds {kind}; it must hold numbers")


def _times(column: Any) -> list[Any]:
    import pyarrow as pa  # noqa: PLC0415

    # As the numbers that are stored: Python's datetime knows neither nanoseconds nor every zone that Arrow does.
    if pa.types.is_timestamp(column.type) or pa.types.is_date64(column.type):
        column = column.cast(pa.int64())
    elif pa.types.is_date32(column.type):
        column = column.cast(pa.int32())
    cells: list[Any] = column.to_pylist()
    return cells


def _blocks(table: _Table, names: list[str], skip_rows: int, size: int) -> Iterator[RowBlock | ColumnBlock]:
    with _damage_told():
        for number, whole, share in table.batches(names, skip_rows):
            skip = min(max(0, skip_rows - number), whole.num_rows)
            rest = whole.slice(skip)
            read = partial(_as_rows, rest, names, number + skip, round(size * share))
            columns = _as_numbers(rest, names)
            yield read() if columns is None else ColumnBlock(columns, round(size * share), read)


def _as_rows(batch: Any, names: list[str], number: int, bytes_done: int) -> RowBlock:
    """The rows after the first `number` of the file."""
    times, *others = (batch.column(name) for name in names)
    rows = zip(_times(times), *(column.to_pylist() for column in others), strict=True)
    return RowBlock(list(enumerate(rows, number + 1)), bytes_done)


def _as_numbers(batch: Any, names: list[str]) -> tuple[Any, ...] | None:
    """The columns as arrays; None where one has empty places or is not of plain numbers."""
    import pyarrow as pa  # noqa: PLC0415

    times, *others = (batch.column(name) for name in names)
    if any(column.null_count for column in (times, *others)):
        return None
    if pa.types.is_timestamp(times.type) or pa.types.is_date64(times.type):
        times = times.cast(pa.int64())
    plain = (pa.types.is_floating(column.type) or pa.types.is_integer(column.type) for column in others)
    if not pa.types.is_signed_integer(times.type) or not all(plain):
        return None
    numbers = (column.to_numpy(zero_copy_only=False).astype("float64", copy=False) for column in others)
    return times.to_numpy(zero_copy_only=False).astype("int64", copy=False), *numbers
