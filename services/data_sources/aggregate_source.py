"""Bars folded from the stored minutes, out of the aggregates."""

from typing import ClassVar

from domain.time_range import RangeSet, TimeRange
from domain.timeframe import Timeframe
from services.bar_store import BarStore, Folded
from services.coverage import Knowledge
from services.data_sources.base import Ask, DataSource, SourceAnswer, Trace


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
        reach = (knowledge.answered | ask.closed | knowledge.not_listed).whole_buckets(ask.timeframe) & wanted
        if not reach:
            return SourceAnswer()
        folded = await self._store.read_folded(ask.stored.id, ask.timeframe, span)
        known, settled = await self._pick(ask, folded, knowledge, reach)
        bars = folded.bars.between(known)
        if bars:
            trace.gave(self.name)
        return SourceAnswer(bars, known, settled, settled & knowledge.answered.whole_buckets(ask.timeframe))

    async def _pick(self, ask: Ask, folded: Folded, knowledge: Knowledge, reach: RangeSet) -> tuple[RangeSet, RangeSet]:
        """Which buckets of `reach`, whose every minute was answered for, to give, and which of them are settled."""
        settled = await self._settled(ask, folded, knowledge, reach)
        return (reach if ask.minutes_final else settled), settled

    async def _settled(self, ask: Ask, folded: Folded, knowledge: Knowledge, reach: RangeSet) -> RangeSet:
        """Buckets of `reach` with a final verdict for every minute; minutes are looked at only where it is in doubt."""
        empties_are_final = knowledge.confirmed | ask.closed | knowledge.not_listed
        sure = (folded.full(ask.timeframe) | empties_are_final).whole_buckets(ask.timeframe) & reach
        doubtful = reach - sure
        for part in (doubtful - empties_are_final).outward(ask.timeframe) & reach:
            sure |= await self._by_minutes(ask, part, empties_are_final)
        return sure

    async def _by_minutes(self, ask: Ask, part: TimeRange, empties_are_final: RangeSet) -> RangeSet:
        data = await self._store.runs(ask.stored.id, Timeframe.M1, part, folded=True)
        return (data | empties_are_final).whole_buckets(ask.timeframe) & RangeSet.of(*part)
