"""Bars for PostgreSQL's COPY in its binary format, https://www.postgresql.org/docs/current/sql-copy.html."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domain.packed import PackedBars
from services.bar_columns import PACKED

#: PostgreSQL counts microseconds from 2000-01-01.
_EPOCH_MS = 946_684_800_000
_BEGIN, _END = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
_CHUNK_ROWS = 2_000

#: Times in UTC epoch milliseconds, opens, highs, lows, closes, volumes, and what else a table has.
Columns = Sequence[NDArray[Any]]


def columns_of(bars: PackedBars) -> Columns:
    """The bars as columns."""
    packed = np.frombuffer(bars.raw(), PACKED)
    return [packed[name].astype(packed.dtype[name].newbyteorder("=")) for name in PACKED.names or ()]


async def copy_rows(series_id: int, columns: Columns) -> AsyncIterator[bytes]:
    """Rows of a series, its number first; a little at a time."""
    # Each number after its size in bytes.
    kinds = [(f"{number}", f">{column.dtype.kind}8") for number, column in enumerate(columns)]
    parts = [part for name, kind in kinds for part in ((f"size of {name}", ">i4"), (name, kind))]
    row = np.dtype([("fields", ">i2"), ("size of series", ">i4"), ("series", ">i4"), *parts])
    yield _BEGIN
    for at in range(0, len(columns[0]), _CHUNK_ROWS):
        chunk = [column[at : at + _CHUNK_ROWS] for column in columns]
        chunk[0] = (chunk[0] - _EPOCH_MS) * 1000
        rows = np.empty(len(chunk[0]), row)
        rows["fields"] = 1 + len(columns)
        rows["size of series"], rows["series"] = 4, series_id
        for (name, _), column in zip(kinds, chunk, strict=True):
            rows[f"size of {name}"], rows[name] = 8, column
        yield rows.tobytes()
    yield _END
