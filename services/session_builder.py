"""Prints an exchange's trading sessions as JSON: a program of its own, because the calendar library brings pandas.

`python -m services.session_builder XNYS 2010-01-01 2027-12-31` prints `{"first_ms", "last_ms", "sessions"}`: what is
covered, as a half-open range of dates at 00:00 UTC, and for each session `[date, open, close, extended open, extended
close]`, all in UTC epoch milliseconds. A lunch break counts as open. Only US stocks have extended hours here; for
others they equal the regular ones. It exits with 3 where there is no such calendar.
"""

import json
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from typing import Any
from zoneinfo import ZoneInfo

UNKNOWN_CALENDAR = 3

_DAY_MS = 86_400_000
_NEW_YORK = ZoneInfo("America/New_York")
#: Exchanges of US stocks are aliases of this calendar.
_US_STOCKS = "XNYS"
_EARLY, _LATE, _LATE_ON_HALF_DAYS, _USUAL_CLOSE = time(4), time(20), time(17), time(16)


def extended_hours(day: date, close_ms: int) -> tuple[int, int]:
    """When US stocks trade before and after the regular session of a date, which closes at `close_ms`."""
    close = datetime.fromtimestamp(close_ms / 1000, _NEW_YORK)
    late = _LATE_ON_HALF_DAYS if close.time() < _USUAL_CLOSE else _LATE
    return _new_york_ms(day, _EARLY), _new_york_ms(day, late)


def _new_york_ms(day: date, at: time) -> int:
    return int(datetime.combine(day, at, _NEW_YORK).timestamp()) * 1000


def _midnight_ms(day: date) -> int:
    return int(datetime.combine(day, time(), UTC).timestamp()) * 1000


def _calendar(name: str, first: date, last: date) -> Any:
    """The library's calendar, over as much of the dates as it knows."""
    import exchange_calendars  # noqa: PLC0415 - 65 MB that no one who imports this module wants

    usual = exchange_calendars.get_calendar(name)
    least, most = usual.bound_min(), usual.bound_max()
    start = max(first, least.date()) if least is not None else first
    end = min(last, most.date()) if most is not None else last
    return exchange_calendars.get_calendar(name, start=start.isoformat(), end=end.isoformat())


def _sessions(calendar: Any) -> Iterator[list[int]]:
    for session, opens, closes in zip(calendar.sessions, calendar.opens, calendar.closes, strict=True):
        day = session.date()
        open_ms, close_ms = (round(instant.timestamp()) * 1000 for instant in (opens, closes))
        extended = extended_hours(day, close_ms) if calendar.name == _US_STOCKS else (open_ms, close_ms)
        yield [_midnight_ms(day), open_ms, close_ms, min(extended[0], open_ms), max(extended[1], close_ms)]


def build(name: str, first: date, last: date) -> dict[str, object]:
    """Sessions of the dates from `first` to `last`, both included, or of those the library knows."""
    calendar = _calendar(name, first, last)
    # The library moves its ends inward to sessions; what lies beyond them is left unknown.
    covered = max(first, calendar.first_session.date()), min(last, calendar.last_session.date())
    return {
        "first_ms": _midnight_ms(covered[0]),
        "last_ms": _midnight_ms(covered[1]) + _DAY_MS,
        "sessions": list(_sessions(calendar)),
    }


def main(arguments: list[str]) -> int:
    """Run with the calendar's name, the first and the last date; the code to exit with."""
    name, first, last = arguments
    from exchange_calendars.errors import InvalidCalendarName  # noqa: PLC0415

    try:
        built = build(name, date.fromisoformat(first), date.fromisoformat(last))
    except InvalidCalendarName as exc:
        sys.stderr.write(f"{exc}\n")
        return UNKNOWN_CALENDAR
    json.dump(built, sys.stdout, separators=(",", ":"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
