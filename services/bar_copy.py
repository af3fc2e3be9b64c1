"""Packed bars in the binary format of PostgreSQL's COPY: https://www.postgresql.org/docs/current/sql-copy.html."""

from collections.abc import AsyncIterator

import numpy as np

from domain.packed import PackedBars

#: PostgreSQL counts microseconds from 2000-01-01.
_EPOCH_MS = 946_684_800_000
_BEGIN, _END = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
_VALUES = ("open", "high", "low", "close", "volume")
_PACKED = np.dtype([("ts", ">i8"), *((name, ">f8") for name in _VALUES)])
#: Each number after its size in bytes.
_ROW = np.dtype(
    [("fields", ">i2"), ("series_size", ">i4"), ("series", ">i4"), ("ts_size", ">i4"), ("ts", ">i8")]
    + [part for name in _VALUES for part in ((f"{name}_size", ">i4"), (name, ">f8"))]
)
_CHUNK_ROWS = 2_000


async def copy_rows(series_id: int, bars: PackedBars) -> AsyncIterator[bytes]:
    """Rows of a series: its number, then time, open, high, low, close and volume; a little at a time."""
    packed = np.frombuffer(bars.raw(), _PACKED)
    yield _BEGIN
    for at in range(0, len(packed), _CHUNK_ROWS):
        part = packed[at : at + _CHUNK_ROWS]
        rows = np.empty(len(part), _ROW)
        rows["fields"] = 2 + len(_VALUES)
        rows["series_size"], rows["series"] = 4, series_id
        rows["ts_size"], rows["ts"] = 8, (part["ts"] - _EPOCH_MS) * 1000
        for name in _VALUES:
            rows[f"{name}_size"], rows[name] = 8, part[name]
        yield rows.tobytes()
    yield _END
