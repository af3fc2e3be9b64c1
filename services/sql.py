"""Named queries, read once from the files under `sql/timescale/queries/`."""

import re
import struct
from functools import cache
from importlib.resources import files

from domain.time_range import NOWHERE, RangeSet
from domain.timeframe import Timeframe

#: Start and end in epoch milliseconds.
_RANGE = struct.Struct(">qq")
_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


@cache
def load_queries(group: str) -> dict[str, str]:
    """The queries of one file by name; a query begins at its `-- name:` line and ends at the next."""
    text = (files("sql.timescale") / "queries" / f"{group}.sql").read_text(encoding="utf-8")
    parts = _NAME.split(text)[1:]
    return {name: body.strip().rstrip(";") for name, body in zip(parts[::2], parts[1::2], strict=True)}


def unpacked_ranges(packed: bytes | None) -> RangeSet:
    """Ascending, disjoint ranges out of 16 bytes each; NULL is none."""
    return RangeSet.joining(_RANGE.iter_unpack(packed)) if packed else NOWHERE


def bucket_of(timeframe: Timeframe, column: str = "ts") -> str:
    """The SQL for the start of the bucket that holds `column`, equal to `Timeframe.floor`."""
    width = timeframe.width_ms
    if width is None:
        return f"date_trunc('month', {column}, 'UTC')"
    return (
        f"date_bin(interval '{width // 1000} seconds', {column}, "
        f"timestamptz 'epoch' + interval '{timeframe.origin_ms // 1000} seconds')"
    )
