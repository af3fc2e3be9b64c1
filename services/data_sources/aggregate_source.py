"""Bars folded from the stored minutes, out of the aggregates."""

from collections.abc import Iterable
from itertools import chain
from typing import ClassVar

from domain.packed import PackedBars
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import Timeframe
from services.bar_store import BarStore, Folded
from services.coverage import Knowledge
from services.data_sources.base import Ask, DataSource, SourceAnswer, Trace
from services.heavy import aside


class AggregateSource(DataSource):
    """Buckets whose minutes are known in full. A bucket with one doubtful minute is left to the next source."""

    name: ClassVar[str] = "aggregate"

    def __init__(self, store: BarStore) -> None:
        """Take the store."""
        self._store = store

    async def read(self, ask: Ask, wanted: RangeSet, trace: Trace) -> SourceAnswer:
        """Folded bars of the buckets that this source picks of those whose every minute was answered for."""
        span = wanted.span
        if span is None or not ask.folds_minutes:
            return SourceAnswer()
        knowledge = await self._store.states(ask.stored.id, Timeframe.M1, span)
        reach = await aside(knowledge.size + len(wanted), _reach, ask, wanted, knowledge)
        if not reach:
            return SourceAnswer()
        folded = await self._store.read_folded(ask.stored.id, ask.timeframe, span)
        known, settled = await self._pick(ask, folded, knowledge, reach)
        size = knowledge.size + len(known) + folded.bars.parts(ask.timeframe)
        answer = await aside(size, _answer, ask, folded.bars, knowledge.answered, known, settled)
        if answer.bars:
            trace.gave(self.name)
        return answer

    async def _pick(self, ask: Ask, folded: Folded, knowledge: Knowledge, reach: RangeSet) -> tuple[RangeSet, RangeSet]:
        """Which buckets of `reach`, whose every minute was answered for, to give, and which of them are settled."""
        settled = await self._settled(ask, folded, knowledge, reach)
        return (reach if ask.minutes_final else settled), settled

    async def _settled(self, ask: Ask, folded: Folded, knowledge: Knowledge, reach: RangeSet) -> RangeSet:
        """Buckets of `reach` with a final verdict for every minute; minutes are looked at only where it is in doubt."""
        size = knowledge.size + len(reach) + folded.bars.parts(ask.timeframe)
        sure, empties, doubtful = await aside(size, _sure, ask, folded, knowledge, reach)
        found = [sure]
        for part in doubtful:
            data = await self._store.runs(ask.stored.id, Timeframe.M1, part, folded=True)
            found.append(await aside(len(data) + len(empties), _sure_of, ask, part, data, empties))
        return await aside(sum(map(len, found)), _union, found)


def _reach(ask: Ask, wanted: RangeSet, knowledge: Knowledge) -> RangeSet:
    return (knowledge.answered | ask.closed | knowledge.not_listed).whole_buckets(ask.timeframe) & wanted


def _sure(ask: Ask, folded: Folded, knowledge: Knowledge, reach: RangeSet) -> tuple[RangeSet, RangeSet, RangeSet]:
    """The buckets whose minutes are all there or surely empty, the empty minutes, and the buckets that are in doubt."""
    empties = knowledge.confirmed | ask.closed | knowledge.not_listed
    sure = (folded.full(ask.timeframe) | empties).whole_buckets(ask.timeframe) & reach
    return sure, empties, ((reach - sure) - empties).outward(ask.timeframe) & reach


def _sure_of(ask: Ask, part: TimeRange, data: RangeSet, empties: RangeSet) -> RangeSet:
    return (data | empties).whole_buckets(ask.timeframe) & RangeSet.of(*part)


def _union(parts: Iterable[RangeSet]) -> RangeSet:
    return RangeSet(chain.from_iterable(parts))


def _answer(ask: Ask, bars: PackedBars, answered: RangeSet, known: RangeSet, settled: RangeSet) -> SourceAnswer:
    return SourceAnswer(bars.between(known), known, settled, settled & answered.whole_buckets(ask.timeframe))
