"""Writing to people: a console that survives any terminal, and times, counts and durations in words."""

import io
import os
import sys
from datetime import UTC, datetime
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

#: Where nothing says how wide the output is, tables are not squeezed.
UNKNOWN_WIDTH = 160
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86_400


def write_what_can_be_written() -> None:
    """Write a question mark for a character that the terminal has not, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def console(*, stderr: bool = False) -> "Console":
    """A console that takes what it is given literally."""
    from rich.console import Console  # noqa: PLC0415 - a server has nothing to draw

    made = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = UNKNOWN_WIDTH
    return made


def say(text: str) -> None:
    """A line for people who look on, apart from what the command prints for other programs."""
    print(text, file=sys.stderr, flush=True)


def utc(ts_ms: int) -> str:
    """The instant, to the second."""
    return datetime.fromtimestamp(ts_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def utc_minute(ts_ms: int) -> str:
    """The instant, to the minute."""
    return datetime.fromtimestamp(ts_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def counted(number: int, noun: str) -> str:
    """`1 chunk`, `2,000 chunks`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """So many seconds in words of at most two units, rounded up: `2 minutes 5 seconds`."""
    if seconds < 1:
        return "less than a second"
    whole = ceil(seconds)
    if whole >= _DAY_S:
        return _units(whole, _DAY_S, "day", _HOUR_S, "hour")
    if whole >= _HOUR_S:
        return _units(whole, _HOUR_S, "hour", _MINUTE_S, "minute")
    if whole >= _MINUTE_S:
        return _units(whole, _MINUTE_S, "minute", 1, "second")
    return counted(whole, "second")


def _units(seconds: int, large_s: int, large: str, small_s: int, small: str) -> str:
    smalls = -(-seconds // small_s)
    larges, rest = divmod(smalls, large_s // small_s)
    return counted(larges, large) + (f" {counted(rest, small)}" if rest else "")
