"""Arguments that several commands take, and how their text is read."""

import argparse
import re
from collections.abc import Callable
from typing import TypeAlias

from domain.series import Series
from domain.timeframe import Timeframe
from domain.times import parse_time_ms

#: Where a command adds itself.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - argparse has no other name for it


def add_series(command: argparse.ArgumentParser) -> None:
    """`--market`, `--provider`, `--symbol` and `--timeframe`."""
    command.add_argument("--market", required=True, help="for example crypto")
    command.add_argument("--provider", required=True, help="for example binance")
    command.add_argument("--symbol", required=True, help="for example BTC/USDT")
    command.add_argument(
        "--timeframe", type=_timeframe, default=Timeframe.M1, help="1m (default), 5m, 1h, 1d, 1w, 1M ..."
    )


def add_range(command: argparse.ArgumentParser, *, start_required: bool) -> None:
    """`--start` and `--end`, as epoch milliseconds in `start` and `end`; None where they are absent."""
    said = "ISO-8601 or epoch milliseconds"
    command.add_argument("--start", type=_time_ms, required=start_required, metavar="TIME", help=said)
    command.add_argument("--end", type=_time_ms, metavar="TIME", help=f"{said}; default: now")


def series_of(options: argparse.Namespace) -> Series:
    """The series that `add_series` asked for."""
    return Series(options.market, options.provider, options.symbol)


def whole(low: int, high: int) -> Callable[[str], int]:
    """How a whole number within bounds is read."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {low} to {high}")
        return int(text)

    return read


def _timeframe(text: str) -> Timeframe:
    try:
        return Timeframe(text)
    except ValueError:
        names = ", ".join(timeframe.value for timeframe in Timeframe)
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {names}") from None


def _time_ms(text: str) -> int:
    try:
        return parse_time_ms(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None
