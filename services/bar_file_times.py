"""Times of a file of bars: epoch seconds to nanoseconds by magnitude, ISO-8601, calendar dates; all become UTC ms."""

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from domain.timeframe import DAY_MS, HOUR_MS
from services.bar_file_layout import BarFileError

#: Takes a cell; gives UTC epoch milliseconds; raises ValueError saying what is wrong.
TimeReader = Callable[[object], int]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)
# Seconds reach this in 2103. Each finer unit is a thousand times the last, so that a number tells its unit, except for
# the weeks around 1970-01-01.
SECONDS_END = 4_200_000_000
# Factor and divisor that make milliseconds, and the numbers of today's magnitude.
UNITS = {
    "seconds": (1_000, 1, range(SECONDS_END)),
    "milliseconds": (1, 1, range(SECONDS_END, SECONDS_END * 10**3)),
    "microseconds": (1, 1_000, range(SECONDS_END * 10**3, SECONDS_END * 10**6)),
    "nanoseconds": (1, 1_000_000, range(SECONDS_END * 10**6, SECONDS_END * 10**9)),
}
# Eight digits that read as a date; as epoch seconds they would all lie in August to September 1970.
DATES = range(1900_01_01, 2100_01_01)
# Seconds as a double are right to a few ten-thousandths of a millisecond.
FLOAT_NOISE = 0.01
NEW_YORK = "America/New_York"


def detect(samples: Iterable[object]) -> TimeReader:
    """The reader that suits most of the sampled cells.

    Raises:
        BarFileError: it is none of the kinds.
    """
    kinds: Counter[str] = Counter()
    odd: object = ""
    for cell in samples:
        kind = _kind(cell)
        if kind is None:
            odd = cell
        else:
            kinds[kind] += 1
    if not kinds and odd == "":
        return EpochReader("milliseconds")  # there is no row at all, or none with a time: nothing to go by
    if not kinds:
        raise BarFileError(f"times like {str(odd)[:40]!r} are not understood; use epoch milliseconds or ISO-8601")
    (kind, _), *_ = kinds.most_common(1)
    return {"iso": read_iso, "date": read_date}.get(kind) or EpochReader(kind)


def _kind(cell: object) -> str | None:
    try:
        number = abs(float(cell))  # type: ignore[arg-type] # the errors are caught
    except (TypeError, ValueError):
        try:
            read_iso(cell)
        except ValueError:
            return None
        return "iso"
    if DATES.start <= number < DATES.stop and number.is_integer():
        return "date"
    return next((unit for unit, (_, _, numbers) in UNITS.items() if number < numbers.stop), None)


class EpochReader:
    """Reads epoch times of one unit.

    Numbers of another unit's magnitude are refused, unless the unit is known for certain (`exact`).
    """

    def __init__(self, unit: str, *, exact: bool = False) -> None:
        """Take the unit's name."""
        self._unit = unit
        self._exact = exact
        self._factor, self._divisor, self._numbers = UNITS[unit]

    def __call__(self, cell: object) -> int:
        """See `TimeReader`."""
        try:
            number = int(cell)  # type: ignore[call-overload] # the errors are caught
            whole = not isinstance(cell, float) or cell == number
        except (TypeError, ValueError, OverflowError):
            whole = False
        if not whole:
            return _read_fraction(cell, self._unit)
        if number not in self._numbers and not self._exact:
            _check_magnitude(number, self._unit)
        ms, rest = divmod(number * self._factor, self._divisor)
        if rest:
            raise ValueError(f"time {cell} is not a whole number of milliseconds")
        return int(ms)

    def read_all(self, column: Any) -> Any:
        """An array of whole numbers at once; None where one is not a time of today's magnitude."""
        numbers = self._numbers
        if column.min() < numbers.start or column.max() >= numbers.stop:
            return None
        ms = column * self._factor
        return None if (ms % self._divisor).any() else ms // self._divisor


def _read_fraction(cell: object, unit: str) -> int:
    factor, divisor, _ = UNITS[unit]
    try:
        number = float(cell)  # type: ignore[arg-type] # the errors are caught
        ms = round(exact := number * factor / divisor)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"time {str(cell)[:40]!r} is no number of {unit}") from None
    _check_magnitude(number, unit)
    if abs(exact - ms) > FLOAT_NOISE:
        raise ValueError(f"time {cell} is not a whole number of milliseconds")
    return ms


def _check_magnitude(number: float, unit: str) -> None:
    factor, divisor, numbers = UNITS[unit]
    size = abs(number)
    # Near 1970 a number is small in any unit; there, one that is a whole hour is taken for what the file says.
    if numbers.start <= size < numbers.stop or (size < numbers.start and number * factor % (HOUR_MS * divisor) == 0):
        return
    other = next((name for name, (_, _, its) in UNITS.items() if its.start <= size < its.stop), "no epoch time")
    raise ValueError(f"time {number:.0f} looks like {other}, in a file of {unit}")


def read_iso(cell: object) -> int:
    """ISO-8601, with a space for the T too; without a zone it is UTC.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(cell, str):
        raise ValueError(f"time {cell!r} is not ISO-8601")  # noqa: TRY004 - a fault of the row, like the others
    try:
        time = datetime.fromisoformat(cell.strip().removesuffix(" UTC"))
    except ValueError:
        raise ValueError(f"time {cell[:40]!r} is not ISO-8601") from None
    return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - EPOCH) // MILLISECOND


def read_date(cell: object) -> int:
    """`20240131`: that day, 00:00 UTC.

    Raises:
        ValueError: it is no date.
    """
    try:
        number = int(cell)  # type: ignore[call-overload] # the errors are caught
        day = date(number // 10_000, number // 100 % 100, number % 100)
    except (TypeError, ValueError):
        raise ValueError(f"time {str(cell)[:40]!r} is no date") from None
    return (day - EPOCH.date()).days * DAY_MS


def session_date_ms(ts_ms: int) -> int:
    """The session's date, 00:00 UTC, of a US stock's daily bar, which most sources stamp with New York's midnight.

    A bar that is at 00:00 UTC already keeps its date.
    """
    return ts_ms if ts_ms % DAY_MS == 0 else _new_york_date_ms(ts_ms)


@lru_cache(maxsize=1 << 16)
def _new_york_date_ms(ts_ms: int) -> int:
    day = datetime.fromtimestamp(ts_ms / 1000, ZoneInfo(NEW_YORK)).date()
    return (day - EPOCH.date()).days * DAY_MS
