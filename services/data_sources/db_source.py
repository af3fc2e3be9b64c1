"""Bars as the provider gave them, out of the durable store."""

from typing import ClassVar

from domain.bar import Bar, fold, within
from domain.time_range import RangeSet
from services.bar_store import BarStore, runs_of
from services.coverage import Knowledge, settled
from services.data_sources.base import Ask, DataSource, SourceAnswer, Trace


class DbSource(DataSource):
    """Stored bars of the provider's own timeframe, folded where another was asked for.

    A provisional emptiness counts as known until it is due to be asked about again.
    """

    name: ClassVar[str] = "database"

    def __init__(self, store: BarStore) -> None:
        """Take the store."""
        self._store = store

    async def read(self, ask: Ask, wanted: RangeSet, trace: Trace) -> SourceAnswer:
        """Bars and knowledge of the native timeframe; the ledger is read first, so no bar it knows of is missed."""
        span = wanted.span
        if span is None:
            return SourceAnswer()
        knowledge = await self._store.knowledge(ask.stored.id, ask.native, span)
        if not (knowledge.answered or knowledge.not_listed or ask.closed):
            return SourceAnswer()
        bars = await self._store.read(ask.stored.id, ask.native, span) if knowledge.answered else []
        final = settled(runs_of(bars, ask.native), ask.closed, knowledge)
        known = _known(knowledge, final, ask.now_ms).whole_buckets(ask.timeframe) & wanted
        certain = final.whole_buckets(ask.timeframe) & known
        lasting = certain & knowledge.answered.whole_buckets(ask.timeframe)
        answer = SourceAnswer(_of(bars, ask, known), known, certain, lasting)
        if answer.bars:
            trace.gave(self.name)
        return answer


def _known(knowledge: Knowledge, final: RangeSet, now_ms: int) -> RangeSet:
    provisional = knowledge.answered - final
    return final | (provisional & knowledge.resting(now_ms))


def _of(bars: list[Bar], ask: Ask, known: RangeSet) -> list[Bar]:
    mine = within(bars, known)
    return mine if ask.native is ask.timeframe else fold(mine, ask.timeframe)
