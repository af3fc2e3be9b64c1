"""Bars as the provider gave them, out of the durable store."""

from collections.abc import Sequence
from typing import ClassVar

from domain.bar import Bar, fold
from domain.packed import PackedBars
from domain.time_range import RangeSet
from services.bar_store import BarStore
from services.coverage import Knowledge, settled
from services.data_sources.base import Ask, DataSource, SourceAnswer, Trace
from services.heavy import aside


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
        knowledge, bars = await self._store.stock(ask.stored.id, ask.native, span)
        if not (knowledge.answered or knowledge.not_listed or ask.closed):
            return SourceAnswer()
        size = knowledge.size + len(wanted) + bars.parts(ask.native)
        final, provisional = await aside(size, _final, ask, bars, knowledge)
        if provisional:
            asked = await self._store.knowledge(ask.stored.id, ask.native, span)
            provisional = await aside(asked.size + len(provisional), _resting, provisional, asked, ask.now_ms)
        answer = await aside(size, _answer, ask, wanted, bars, knowledge.answered, final=final, provisional=provisional)
        if answer.bars:
            trace.gave(self.name)
        return answer


def _final(ask: Ask, bars: PackedBars, knowledge: Knowledge) -> tuple[RangeSet, RangeSet]:
    """Native buckets whose verdict is final, and those whose emptiness is not."""
    final = settled(bars.runs(ask.native), ask.closed, knowledge)
    return final, knowledge.answered - final


def _resting(provisional: RangeSet, asked: Knowledge, now_ms: int) -> RangeSet:
    return provisional & asked.resting(now_ms)


def _answer(
    ask: Ask, wanted: RangeSet, bars: PackedBars, answered: RangeSet, *, final: RangeSet, provisional: RangeSet
) -> SourceAnswer:
    known = (final | provisional).whole_buckets(ask.timeframe) & wanted
    certain = final.whole_buckets(ask.timeframe) & known
    lasting = certain & answered.whole_buckets(ask.timeframe)
    return SourceAnswer(_of(bars, ask, known), known, certain, lasting)


def _of(bars: PackedBars, ask: Ask, known: RangeSet) -> Sequence[Bar]:
    mine = bars.between(known)
    return mine if ask.native is ask.timeframe else fold(mine, ask.timeframe)
