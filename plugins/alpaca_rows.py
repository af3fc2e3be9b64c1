"""The rows of Alpaca's answers, and its times: daily bars of stocks begin at midnight in New York."""

from collections.abc import Sequence
from datetime import UTC, datetime, time
from zoneinfo import ZoneInfo

from domain.bar import Bar, bar_from_row
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import Timeframe
from domain.times import LATEST_MS
from plugins.base import Page

_NEW_YORK = ZoneInfo("America/New_York")


class RowReader:
    """Reads the rows of an answer, and keeps account of which buckets they tell something about."""

    def __init__(self, timeframe: Timeframe, wanted: TimeRange) -> None:
        """Take what was asked for."""
        self._timeframe = timeframe
        self._wanted = wanted
        self._bars: dict[int, Bar] = {}
        self._rejected: list[str] = []
        self._refused: set[int] = set()
        self._unknown: list[tuple[int, int]] = []
        self._reach_ms = wanted.start_ms
        self._lost_from_ms: int | None = None
        self._is_ascending = True

    def read(self, rows: Sequence[object]) -> None:
        """Take the next rows."""
        for row in rows:
            ts_ms = _time_of(row, self._timeframe)
            if ts_ms is None:
                self._lose(row)
                continue
            self._find(ts_ms)
            bucket_ms = self._timeframe.floor(ts_ms)
            self._is_ascending = self._is_ascending and self._timeframe.next(bucket_ms) >= self._reach_ms
            self._reach_ms = max(self._reach_ms, self._timeframe.next(bucket_ms))
            if self._wanted.contains(bucket_ms):
                self._take(bucket_ms, _bar(ts_ms, row, self._timeframe))

    def page(self, *, is_last: bool) -> Page:
        """What was read. The last page accounts for the rest of the range as well."""
        end_ms = self._wanted.end_ms if is_last else min(self._reach_ms, self._wanted.end_ms)
        self._find(end_ms)
        covered = RangeSet.of(self._wanted.start_ms, end_ms) - RangeSet(self._unknown).outward(self._timeframe)
        if not (is_last or self._is_ascending):
            # What the next page holds may lie between these rows.
            covered &= RangeSet((ts_ms, self._timeframe.next(ts_ms)) for ts_ms in self._bars)
        return Page([self._bars[ts_ms] for ts_ms in sorted(self._bars)], covered, self._rejected)

    def _lose(self, row: object) -> None:
        """A row without a time may belong anywhere between its neighbours."""
        self._rejected.append(f"no time in {str(row)[:80]}")
        self._lost_from_ms = self._reach_ms if self._lost_from_ms is None else self._lost_from_ms

    def _find(self, ts_ms: int) -> None:
        if self._lost_from_ms is not None:
            self._unknown.append((self._lost_from_ms, ts_ms))
            self._lost_from_ms = None

    def _take(self, bucket_ms: int, bar: Bar | str) -> None:
        if isinstance(bar, Bar) and bucket_ms not in self._refused:
            if self._bars.setdefault(bucket_ms, bar) == bar:
                return
            bar = f"two different bars at {rfc3339(bucket_ms)}"
        self._rejected.append(bar if isinstance(bar, str) else f"a row beside a bad one at {rfc3339(bucket_ms)}")
        self._refused.add(bucket_ms)
        self._unknown.append((bucket_ms, bucket_ms + 1))
        self._bars.pop(bucket_ms, None)


def minute_of(row: object) -> Bar | str:
    """The minute that a row of the stream holds, or what is wrong with it."""
    ts_ms = _time_of(row, Timeframe.M1)
    return f"no time in {str(row)[:80]}" if ts_ms is None else _bar(ts_ms, row, Timeframe.M1)


def _time_of(row: object, timeframe: Timeframe) -> int | None:
    """When the row's bucket begins; a date at 00:00 UTC for daily bars."""
    stamp = row.get("t") if isinstance(row, dict) else None
    if not isinstance(stamp, str):
        return None
    try:
        when = datetime.fromisoformat(stamp)
    except ValueError:
        return None
    ts_ms = int(when.timestamp() * 1000) if when.tzinfo else -1
    if not 0 <= ts_ms < LATEST_MS:
        return None
    return to_session_time(ts_ms) if timeframe is Timeframe.D1 else ts_ms


def _bar(ts_ms: int, row: object, timeframe: Timeframe) -> Bar | str:
    values = [row.get(name) for name in "ohlcv"] if isinstance(row, dict) else []
    try:
        return bar_from_row([ts_ms, *values], timeframe)
    except OverflowError:
        return f"a number beyond all bounds at {rfc3339(ts_ms)}"


def to_session_time(ts_ms: int) -> int:
    """The date and time in New York at an instant, written as if they were UTC's: midnight begins the session date."""
    local = datetime.fromtimestamp(ts_ms / 1000, _NEW_YORK)
    return int(local.replace(tzinfo=UTC).timestamp() * 1000)


def new_york_midnight(date_ms: int) -> int:
    """The instant at which a session date, given at 00:00 UTC, begins in New York."""
    day = datetime.fromtimestamp(date_ms / 1000, UTC).date()
    return int(datetime.combine(day, time(), _NEW_YORK).timestamp()) * 1000


def rfc3339(ts_ms: int) -> str:
    """The instant, to the millisecond."""
    return datetime.fromtimestamp(ts_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
