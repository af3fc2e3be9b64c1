"""Reading what a live series missed, or begins with: the same way of asking for bars as everybody's."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from domain.bar import Bar, fold
from domain.series import Gap, Series, Verdict
from domain.time_range import TimeRange
from domain.timeframe import Timeframe
from services.bar_walk import OhlcvAnswer, OhlcvQuery
from services.ohlcv import OhlcvService

#: What could not be had, as against what is known to be empty for now.
_LOST = frozenset({Verdict.FETCH_FAILED, Verdict.NEVER_FETCHED})
PAGE_BARS = 1_000


class Part(NamedTuple):
    """Closed bars up to `end_ms`, and the stretches among them that could not be had."""

    bars: list[Bar]
    lost: list[Gap]
    end_ms: int


class LiveReader:
    """Closed bars of one series from the store, and from its provider where the store misses them."""

    def __init__(self, ohlcv: OhlcvService, series: Series, places: asyncio.Semaphore) -> None:
        """Take whose bars are read; `places`: how many answers may be in the making at once, of all series."""
        self._ohlcv = ohlcv
        self._series = series
        self._places = places

    async def part(self, timeframe: Timeframe, wanted: TimeRange) -> Part:
        """The closed bars of a range of settled buckets, as far as one answer goes: always a little at least."""
        answer = await self._ask(timeframe, wanted.end_ms, start_ms=wanted.start_ms, limit=PAGE_BARS)
        end_ms = wanted.end_ms if answer.next_ms is None else answer.next_ms
        if end_ms <= wanted.start_ms:
            # Nobody can say more than that.
            return Part([], [Gap(wanted, Verdict.NEVER_FETCHED)], wanted.end_ms)
        return Part(list(answer.bars), lost_of(answer), end_ms)

    async def start_of_last(self, timeframe: Timeframe, before_ms: int, count: int) -> int:
        """Where so many last closed bars before an instant begin.

        Many clients ask for many bars: they are read in parts, and none is held while another one waits for its turn.
        """
        at, left = before_ms, count
        while left > 0:
            wanted = min(left, PAGE_BARS)
            at, found = await self._first_of_last(timeframe, at, wanted)
            left = left - wanted if found == wanted else 0
        return at

    async def _first_of_last(self, timeframe: Timeframe, before_ms: int, count: int) -> tuple[int, int]:
        """When the first of so many last bars begins, and how many there are."""
        answer = await self._ask(timeframe, before_ms, limit=count)
        return (answer.bars[0].ts if answer.bars else before_ms), len(answer.bars)

    async def official(self, timeframe: Timeframe, start_ms: int) -> OhlcvAnswer:
        """The provider's own bars from an instant on, with the forming one."""
        query = OhlcvQuery(
            series=self._series, timeframe=timeframe, start_ms=start_ms, limit=PAGE_BARS, include_forming=True
        )
        async with self._places:
            return await self._ohlcv.bars(query)

    async def partial(self, timeframe: Timeframe, wanted: TimeRange) -> tuple[Bar | None, bool]:
        """What a bucket of the timeframe holds of a range from its start on; whether it is folded from minutes alone.

        Of a long range most is read as days and hours.
        """
        bars: list[Bar] = []
        whole = True
        for finer, step in steps(wanted, timeframe):
            left = step
            while left.length_ms > 0:
                read = await self.part(finer, left)
                bars += read.bars
                whole = whole and finer is Timeframe.M1 and not read.lost
                left = TimeRange(read.end_ms, step.end_ms)
        folded = fold(bars, timeframe)
        return (folded[-1] if folded else None), whole

    async def _ask(self, timeframe: Timeframe, end_ms: int, *, start_ms: int | None = None, limit: int) -> OhlcvAnswer:
        query = OhlcvQuery(
            series=self._series,
            timeframe=timeframe,
            start_ms=start_ms,
            end_ms=end_ms,
            limit=limit,
            settled_ms=end_ms,
        )
        async with self._places:
            return await self._ohlcv.bars(query)


def lost_of(answer: OhlcvAnswer) -> list[Gap]:
    """The gaps of an answer that are more than a silence to be confirmed."""
    return [gap for gap in answer.gaps if gap.verdict in _LOST]


def steps(wanted: TimeRange, timeframe: Timeframe) -> Sequence[tuple[Timeframe, TimeRange]]:
    """A range as whole days, then hours, then minutes; only what is finer than the timeframe."""
    out: list[tuple[Timeframe, TimeRange]] = []
    at = wanted.start_ms
    for finer in (Timeframe.D1, Timeframe.H1, Timeframe.M1):
        if finer.nominal_ms >= timeframe.nominal_ms:
            continue
        end = finer.floor(wanted.end_ms)
        if at < end:
            out.append((finer, TimeRange(at, end)))
            at = end
    return out
