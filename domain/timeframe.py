"""Timeframes and their buckets, in UTC epoch milliseconds."""

from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
WEEK_MS = 7 * DAY_MS
# 1970-01-01 was a Thursday; the first Monday of the epoch is the 5th.
FIRST_MONDAY_MS = 4 * DAY_MS


class Timeframe(StrEnum):
    """Width of a bar. Buckets are aligned to the UTC epoch, weeks start on Monday, months are calendar months."""

    M1 = "1m"
    M3 = "3m"
    M5 = "5m"
    M15 = "15m"
    M30 = "30m"
    H1 = "1h"
    H2 = "2h"
    H4 = "4h"
    H6 = "6h"
    H8 = "8h"
    H12 = "12h"
    D1 = "1d"
    D3 = "3d"
    W1 = "1w"
    MN1 = "1M"

    @property
    def width_ms(self) -> int | None:
        """Length of a bucket; None for months, which differ in length."""
        return _WIDTHS[self]

    @property
    def nominal_ms(self) -> int:
        """Length of a bucket for estimates only: a month counts as 31 days, its longest."""
        return self.width_ms or 31 * DAY_MS

    @property
    def origin_ms(self) -> int:
        """Start of one bucket, from which all others of this width follow."""
        return FIRST_MONDAY_MS if self is Timeframe.W1 else 0

    def floor(self, ts_ms: int) -> int:
        """Start of the bucket that holds `ts_ms`."""
        width = self.width_ms
        if width is None:
            return _month_start_ms(ts_ms, months=0)
        return ts_ms - (ts_ms - self.origin_ms) % width

    def next(self, ts_ms: int) -> int:
        """Start of the bucket after the one that holds `ts_ms`."""
        width = self.width_ms
        if width is None:
            return _month_start_ms(ts_ms, months=1)
        return self.floor(ts_ms) + width

    def ceil(self, ts_ms: int) -> int:
        """`ts_ms` itself where a bucket starts there, else the start of the next bucket."""
        floor = self.floor(ts_ms)
        return floor if floor == ts_ms else self.next(ts_ms)

    def back(self, ts_ms: int, buckets: int) -> int:
        """Start of the bucket that lies `buckets` before the one that holds `ts_ms`."""
        width = self.width_ms
        if width is None:
            return _month_start_ms(ts_ms, months=-buckets)
        return self.floor(ts_ms) - buckets * width

    def starts(self, start_ms: int, end_ms: int) -> Iterator[int]:
        """Starts of the buckets that begin in `[start_ms, end_ms)`."""
        ts, width = self.ceil(start_ms), self.width_ms
        if width is not None:
            yield from range(ts, end_ms, width)
            return
        while ts < end_ms:
            yield ts
            ts = self.next(ts)

    def divides(self, coarser: "Timeframe") -> bool:
        """Whether buckets of `coarser` are made of whole buckets of this timeframe."""
        if self is coarser:
            return True
        width = self.width_ms
        if width is None or width > DAY_MS:
            return False
        if coarser.width_ms is None:
            return DAY_MS % width == 0
        return coarser.width_ms % width == 0

    def buckets_between(self, start_ms: int, end_ms: int) -> int:
        """Number of buckets that start in `[start_ms, end_ms)`."""
        first, last = self.ceil(start_ms), self.ceil(end_ms)
        if last <= first:
            return 0
        width = self.width_ms
        if width is None:
            return _month_number(last) - _month_number(first)
        return (last - first) // width


_WIDTHS: dict[Timeframe, int | None] = {
    Timeframe.M1: MINUTE_MS,
    Timeframe.M3: 3 * MINUTE_MS,
    Timeframe.M5: 5 * MINUTE_MS,
    Timeframe.M15: 15 * MINUTE_MS,
    Timeframe.M30: 30 * MINUTE_MS,
    Timeframe.H1: HOUR_MS,
    Timeframe.H2: 2 * HOUR_MS,
    Timeframe.H4: 4 * HOUR_MS,
    Timeframe.H6: 6 * HOUR_MS,
    Timeframe.H8: 8 * HOUR_MS,
    Timeframe.H12: 12 * HOUR_MS,
    Timeframe.D1: DAY_MS,
    Timeframe.D3: 3 * DAY_MS,
    Timeframe.W1: WEEK_MS,
    Timeframe.MN1: None,
}


def _month_number(ts_ms: int) -> int:
    day = datetime.fromtimestamp(ts_ms / 1000, UTC)
    return day.year * 12 + day.month - 1


def _month_start_ms(ts_ms: int, *, months: int) -> int:
    year, month = divmod(_month_number(ts_ms) + months, 12)
    return int(datetime(year, month + 1, 1, tzinfo=UTC).timestamp()) * 1000
