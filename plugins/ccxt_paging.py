"""What to ask an exchange for, and what its answer proves. Pure: rows in, page out."""

from collections.abc import Iterator, Sequence
from math import isfinite
from typing import NamedTuple

from domain.bar import Bar, bar_from_row
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import Timeframe
from plugins.base import NetworkPluginError, Page
from plugins.ccxt_rules import Reach

_BEGINNING, _END = 0, 1 << 62


class Ask(NamedTuple):
    """One question: `limit` bars from `window.start_ms` on; the answer can prove nothing outside `window`."""

    timeframe: Timeframe
    reach: Reach
    window: TimeRange
    limit: int


def plan(timeframe: Timeframe, wanted: TimeRange, *, reach: Reach, cap: int) -> Ask:
    """The question for the beginning of `wanted`, or as much of it as one answer can hold."""
    if reach is Reach.NEWEST:
        return Ask(timeframe, reach, wanted, cap)
    limit = min(cap, max(1, timeframe.buckets_between(*wanted)))
    if reach is Reach.SINCE:
        return Ask(timeframe, reach, wanted, limit)
    end_ms = min(wanted.end_ms, timeframe.back(wanted.start_ms, -limit))
    return Ask(timeframe, reach, TimeRange(wanted.start_ms, end_ms), limit)


def read_page(ask: Ask, rows: Sequence[object], *, now_ms: int, known_ms: int | None = None) -> Page:
    """The page that the rows amount to. `known_ms`: a bar at that time is known to exist.

    Exchanges cut answers short without a word, and by either end. So an answer accounts for what lies between its
    first and its last good row; beyond them only for what the exchange's way of answering proves. The rest is left
    for the next question, whose empty answer is proof.

    Raises:
        NetworkPluginError: no row has a time, or the answer is empty although it cannot be.
    """
    if not rows:
        if ask.reach is not Reach.WINDOW and known_ms is not None and known_ms >= ask.window.start_ms:
            raise NetworkPluginError("The exchange sent no bars, though it has sent later ones before.")
        return Page((), RangeSet((ask.window,)))
    reading = _Reading(ask, rows, now_ms)
    covered = RangeSet((reading.reached(),)) - reading.doubtful()
    inside = [reading.good[ts] for ts in sorted(reading.good) if ask.window.contains(ts)]
    return Page(inside, covered & RangeSet((ask.window,)), tuple(reading.faults))


class _Reading:
    """The rows of one answer, sifted."""

    def __init__(self, ask: Ask, rows: Sequence[object], now_ms: int) -> None:
        self._ask = ask
        self._tf = ask.timeframe
        self._rows = len(rows)
        #: Times in the order in which they came; None for a row that cannot be placed.
        self._times = [_time_of(row, self._tf) for row in rows]
        if all(ts is None for ts in self._times):
            raise NetworkPluginError(f"None of the {len(rows)} rows that the exchange sent has a time.")
        self.good: dict[int, Bar] = {}
        self.faults: list[str] = []
        self._bad: set[int] = set()
        for number, (ts, row) in enumerate(zip(self._times, rows, strict=True), 1):
            if fault := self._take(ts, row, now_ms):
                self.faults.append(f"row {number}: {fault}")
        for bad in self._bad:
            self.good.pop(bad, None)

    def _take(self, ts: int | None, row: object, now_ms: int) -> str | None:
        """Keep a good row; what is wrong with a bad one."""
        bar = bar_from_row(row, self._tf)
        if isinstance(bar, str):
            fault: str | None = bar
        elif bar.ts > now_ms:
            fault = f"time {bar.ts} lies in the future"
        elif bar != self.good.setdefault(bar.ts, bar):
            fault = f"time {bar.ts} came twice with different values"
        else:
            fault = None
        if fault and ts is not None:
            self._bad.add(ts)
        return fault

    def reached(self) -> tuple[int, int]:
        """From where to where the answer would have shown every bar; empty where that cannot be told."""
        start, end = self._ask.window
        inside = [ts for ts in self.good if start <= ts < end]
        from_start = self._ask.reach is Reach.SINCE or any(ts < start for ts in self.good)
        to_end = any(ts >= end for ts in self.good)
        if inside:
            return (start if from_start else min(inside), end if to_end else self._tf.next(max(inside)))
        if self._bad:
            return start, start
        # All of the rows lie outside. An answer that was not filled up with them would have had room for others.
        proven = from_start or (to_end and self._rows < self._ask.limit)
        return (start, end) if proven else (start, start)

    def doubtful(self) -> RangeSet:
        """Buckets of bad rows, and wherever a row may belong that cannot be placed."""
        buckets = [(ts, self._tf.next(ts)) for ts in self._bad]
        return RangeSet([*buckets, *self._unplaced()])

    def _unplaced(self) -> Iterator[tuple[int, int]]:
        placed = [ts for ts in self._times if ts is not None]
        if len(placed) == self._rows:
            return
        if len(set(placed)) == 1 or placed not in (sorted(placed), sorted(placed, reverse=True)):
            # In no order that can be seen, it may belong anywhere but where the good ones are.
            yield from RangeSet.of(_BEGINNING, _END) - RangeSet((ts, self._tf.next(ts)) for ts in self.good)
            return
        for index, ts in enumerate(self._times):
            if ts is None:
                yield self._between_neighbours(index, ascending=placed[0] < placed[-1])

    def _between_neighbours(self, index: int, *, ascending: bool) -> tuple[int, int]:
        before = next((ts for ts in reversed(self._times[:index]) if ts is not None), None)
        after = next((ts for ts in self._times[index + 1 :] if ts is not None), None)
        low, high = (before, after) if ascending else (after, before)
        return (_BEGINNING if low is None else self._tf.next(low), _END if high is None else high)


def _time_of(row: object, timeframe: Timeframe) -> int | None:
    """The bucket that a row speaks of; None where it cannot be told."""
    if not isinstance(row, Sequence) or not row or isinstance(row[0], bool) or not isinstance(row[0], int | float):
        return None
    if not isfinite(row[0]) or not 0 < row[0] < _END:
        return None
    ts = int(row[0])
    return ts if timeframe.floor(ts) == ts else None
