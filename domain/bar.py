"""The bar, its rules, and folding bars into coarser ones."""

from collections.abc import Iterable, Sequence
from math import inf, isfinite

import msgspec

from domain.time_range import TimeRange
from domain.timeframe import Timeframe


class Bar(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One OHLCV bar, `[ts, open, high, low, close, volume]`; `ts` is the OPEN time in UTC epoch milliseconds."""

    ts: int
    open: float
    high: float
    low: float
    close: float
    volume: float


def fault_of(bar: Bar, timeframe: Timeframe) -> str | None:
    """What breaks the bar's rules, in words; None for a good bar."""
    # One chained test settles the common case; NaN fails every comparison, so it ends up below.
    if (
        bar.low <= bar.open <= bar.high
        and bar.low <= bar.close <= bar.high
        and 0 <= bar.volume < inf
        and -inf < bar.low <= bar.high < inf
        and timeframe.floor(bar.ts) == bar.ts
    ):
        return None
    return _explain(bar, timeframe)


def _explain(bar: Bar, timeframe: Timeframe) -> str:
    for name in ("open", "high", "low", "close", "volume"):
        if not isfinite(getattr(bar, name)):
            return f"{name} is not a finite number"
    if bar.high < bar.low:
        return f"high {bar.high} is below low {bar.low}"
    for name, price in (("open", bar.open), ("close", bar.close)):
        if not bar.low <= price <= bar.high:
            return f"{name} {price} is outside low..high {bar.low}..{bar.high}"
    if bar.volume < 0:
        return f"volume {bar.volume} is negative"
    return f"time {bar.ts} is not the start of a {timeframe.value} bucket"


def bar_from_row(row: object, timeframe: Timeframe) -> Bar | str:
    """A bar from an untrusted row of six numbers, or what is wrong with the row.

    Numbers may be given as decimal strings, as several venues send them.
    """
    if not isinstance(row, Sequence) or isinstance(row, str | bytes) or len(row) < 6:  # noqa: PLR2004
        return "not a row of six values"
    if isinstance(row[0], bool) or not isinstance(row[0], int | float) or not isfinite(row[0]):
        return f"time {row[0]!r} is not a number"
    try:
        numbers = [_number(value) for value in row[1:6]]
    except (TypeError, ValueError, OverflowError):
        return f"values {list(row[1:6])!r} are not all numbers"
    bar = Bar(int(row[0]), *numbers)
    return fault_of(bar, timeframe) or bar


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        msg = f"{value!r} is not a number"
        raise TypeError(msg)
    return float(value)


def fold(bars: Iterable[Bar], timeframe: Timeframe) -> list[Bar]:
    """Fold ascending finer bars into bars of `timeframe`; buckets without a bar stay out.

    This is the definition that every stored aggregate must equal.
    """
    out: list[Bar] = []
    end = ts = 0
    open_ = high = low = close = volume = 0.0
    started = False
    for bar in bars:
        if started and bar.ts < end:
            high, low, close = max(high, bar.high), min(low, bar.low), bar.close
            volume += bar.volume
            continue
        if started:
            out.append(Bar(ts, open_, high, low, close, volume))
        started, ts, end = True, timeframe.floor(bar.ts), timeframe.next(bar.ts)
        open_, high, low, close, volume = bar.open, bar.high, bar.low, bar.close, bar.volume
    if started:
        out.append(Bar(ts, open_, high, low, close, volume))
    return out


def merge(*parts: Sequence[Bar]) -> list[Bar]:
    """Join sequences of bars into one ascending list with one bar a `ts`; later arguments win."""
    filled = [part for part in parts if part]
    if len(filled) == 1:
        return list(filled[0])
    by_ts = {bar.ts: bar for part in filled for bar in part}
    return [by_ts[ts] for ts in sorted(by_ts)]


def within(bars: Iterable[Bar], ranges: Iterable[TimeRange]) -> list[Bar]:
    """The ascending `bars` whose `ts` lies in the ascending, disjoint `ranges`."""
    out: list[Bar] = []
    pending = iter(ranges)
    current = next(pending, None)
    for bar in bars:
        while current is not None and bar.ts >= current.end_ms:
            current = next(pending, None)
        if current is None:
            break
        if bar.ts >= current.start_ms:
            out.append(bar)
    return out
