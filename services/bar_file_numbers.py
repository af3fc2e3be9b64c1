"""Whole columns of numbers out of a block of text at once, where every line of it is as plain as can be."""

from collections.abc import Sequence
from typing import Any

#: What makes a line mean something else to Python than to Arrow: quotes, comments, hexadecimal numbers, odd line ends.
_ODD = (b'"', b"#", b"x", b"X", b"\r")


def numbers_in(text: bytes, delimiter: str, width: int, columns: Sequence[int]) -> tuple[Any, ...] | None:
    """The columns of the lines (ended by newlines, the last one not) as arrays: a time, then numbers.

    None where a line is not `width` cells, or one of these cells is no plain number (the time: no whole one). What is
    given is what Python's `int` and `float` make of each cell.
    """
    text = text.replace(b"\r\n", b"\n").removesuffix(b"\r")
    if any(odd in text for odd in _ODD):
        return None
    # Here, since the import takes a quarter of a second, which small files need not wait for.
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.csv as pc  # noqa: PLC0415

    names = [str(place) for place in range(width)]
    wanted = [names[place] for place in columns]
    types = {name: pa.float64() for name in wanted} | {wanted[0]: pa.int64()}
    try:
        table = pc.read_csv(
            pa.py_buffer(text),
            pc.ReadOptions(use_threads=False, column_names=names, block_size=len(text) + 1),
            pc.ParseOptions(delimiter=delimiter, quote_char=False),
            pc.ConvertOptions(column_types=types, include_columns=wanted, null_values=[""]),
        )
    except pa.ArrowException:
        return None
    # Blank lines are left out.
    if table.num_rows != text.count(b"\n") + 1 or any(column.null_count for column in table.columns):
        return None
    return tuple(column.to_numpy() for column in table.columns)
