"""Bars folded from minutes that were all answered for, though some emptiness among them is not confirmed yet."""

from typing import ClassVar

from domain.bar import within
from domain.time_range import RangeSet
from domain.timeframe import Timeframe
from services.bar_store import BarStore
from services.data_sources.base import Ask, DataSource, SourceAnswer, Trace


class ProvisionalSource(DataSource):
    """The last resort for coarser timeframes: asked when the provider did not give its own bars. Settles nothing."""

    name: ClassVar[str] = "aggregate"

    def __init__(self, store: BarStore) -> None:
        """Take the store."""
        self._store = store

    async def read(self, ask: Ask, wanted: RangeSet, trace: Trace) -> SourceAnswer:
        """Folded bars of the buckets for whose every minute somebody answered."""
        span = wanted.span
        if span is None or not ask.folds_minutes:
            return SourceAnswer()
        minutes = await self._store.knowledge(ask.stored.id, Timeframe.M1, span)
        answered = (minutes.answered | minutes.not_listed | ask.closed).whole_buckets(ask.timeframe) & wanted
        if not answered:
            return SourceAnswer()
        folded = await self._store.read_folded(ask.stored.id, ask.timeframe, span)
        bars = within((item.bar for item in folded), answered)
        if bars:
            trace.gave(self.name)
        return SourceAnswer(bars, answered)
