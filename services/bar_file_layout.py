"""What a file of bars looks like: which of its columns is what, by their names or, without names, by their number."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from domain.errors import CandleryError

FIELDS = ("time", "open", "high", "low", "close", "volume")
WANTED = "columns ts_ms,open,high,low,close,volume (any order, with a header), or Binance's twelve"
#: Best first: a file with `unix` and `date` says the same thing twice, and the number is the surer one.
TIME_NAMES = (
    *("open_time", "opentime", "open_timestamp", "ts_ms", "timestamp_ms", "time_ms", "epoch_ms", "ts", "timestamp"),
    *("unix", "unix_timestamp", "unix_time", "epoch", "t", "window_start", "bucket", "datetime", "date_time"),
    *("time", "date", "__index_level_0__"),
)
NAMES = {
    "open": ("open", "o", "open_price", "first"),
    "high": ("high", "h", "high_price", "max"),
    "low": ("low", "l", "low_price", "min"),
    "close": ("close", "c", "close_price", "last"),
    "volume": ("volume", "v", "vol", "base_volume", "volume_base"),
}
#: Binance's archive (github.com/binance/binance-public-data): open time, prices, volume, close time, and five more.
BINANCE_COLUMNS = 12
BINANCE_CLOSE_TIME = 6


class BarFileError(CandleryError):
    """The file cannot be read as bars."""


class Layout(NamedTuple):
    """Positions of time, open, high, low, close and volume, and how many columns a row has."""

    columns: tuple[int, int, int, int, int, int]
    width: int


def normal(name: str) -> str:
    """A column's name in one spelling."""
    return re.sub(r"[\s.-]+", "_", name.strip().strip("\"'<>").strip().lower())


def is_header(fields: Sequence[str]) -> bool:
    """Whether the row names columns, by two or more of the names that bars have."""
    known = {*TIME_NAMES, *(name for names in NAMES.values() for name in names)}
    return sum(normal(field) in known for field in fields) > 1


def layout_of_names(names: Sequence[str]) -> Layout:
    """The layout that the names say.

    Raises:
        BarFileError: a column is missing, or there are several that it could be.
    """
    places: dict[str, list[int]] = {}
    for place, name in enumerate(normal(name) for name in names):
        places.setdefault(name, []).append(place)
    time, *rest = (_place(places, field, names) for field in FIELDS)
    return Layout((time, *rest), len(names))  # type: ignore[arg-type] # six of them, as FIELDS has


def _place(places: dict[str, list[int]], field: str, names: Sequence[str]) -> int:
    found = [place for name in NAMES.get(field, TIME_NAMES) for place in places.get(name, ())]
    if field == "volume" and not found:  # `Volume BTC`
        found = [place for name, at in places.items() if name.startswith("volume") for place in at]
        ambiguous = len(found) > 1
    else:
        ambiguous = any(len(places[name]) > 1 for name in map(normal, names) if places[name][0] in found[:1])
    if field == "time" and found and normal(names[found[0]]) == "time" and "date" in places:
        ambiguous = True  # two halves of one time, in a zone that the file does not tell
    listed = ", ".join(str(name)[:40] for name in names[:30])
    if ambiguous:
        raise BarFileError(f"several columns could be the {field} (columns: {listed}); leave one of them")
    if not found:
        raise BarFileError(f"no column is the {field} (columns: {listed}); needed: {WANTED}")
    return found[0]


def layout_of_width(fields: Sequence[str]) -> Layout:
    """The layout of a file without a header, by its first row.

    Raises:
        BarFileError: it could be anything.
    """
    if (len(fields) == len(FIELDS) and any(char.isdigit() for char in "".join(fields))) or _is_binance(fields):
        return Layout((0, 1, 2, 3, 4, 5), len(fields))
    raise BarFileError(
        f"the first row has {len(fields)} columns and none of the known names ({', '.join(fields)[:80]!r}); "
        f"needed: {WANTED}"
    )


def _is_binance(fields: Sequence[str]) -> bool:
    if len(fields) != BINANCE_COLUMNS:
        return False
    opened, closed = fields[0].strip(), fields[BINANCE_CLOSE_TIME].strip()
    return opened.isdigit() and closed.isdigit() and len(opened) == len(closed) and opened < closed
