"""Bars from the provider itself. What it gives is stored first, and answered from the store."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar

from domain.clock import Clock
from domain.time_range import RangeSet
from services.bar_store import BarStore
from services.data_sources.base import Ask, DataSource, SourceAnswer, Trace, consult
from services.feed import Feed
from services.fetch import ErrandLimits, Fetch, StoreKeeper
from services.turns import Turns

#: For one question; what is left stays `never_fetched`, and the next question goes on from there.
QUESTION = ErrandLimits(calls=100, seconds=12)
#: For a look at where a provider's bars begin.
PEEK = ErrandLimits(calls=1, seconds=12)

#: How long a question waits for what is fetched of its series in the background; then both may ask for the same.
BACKGROUND_PATIENCE_S = 2.0


class PluginSource(DataSource):
    """Fetches what no other source knows: one upstream call for any number of equal questions at once."""

    name: ClassVar[str] = "provider"

    def __init__(self, store: BarStore, local: Sequence[DataSource], clock: Clock, shared: Turns | None = None) -> None:
        """Take the store, the sources that read it, the clock, and the turns that work in the background takes too."""
        self._store = store
        self._local = local
        self._clock = clock
        #: One fetch at a time for a series and timeframe; who waited finds the bars in the store.
        self._turns = Turns()
        self._shared = shared or Turns()

    async def read(self, ask: Ask, wanted: RangeSet, trace: Trace) -> SourceAnswer:
        """Fetch and store what is missing, then answer from the store."""
        if ask.feed is None or ask.stored_only:
            return SourceAnswer()
        async with self._turn(ask):
            known = (await consult(self._local, ask, wanted, Trace())).known
            missing = await self._worth_asking(ask, wanted - known)
            fetched = bool(missing) and await self._fetch(ask, ask.feed, missing, trace)
        local = Trace()
        answer = await consult(self._local, ask, wanted, local)
        for name in [self.name] if fetched and answer.bars else local.sources:
            trace.gave(name)
        return answer

    @asynccontextmanager
    async def _turn(self, ask: Ask) -> AsyncIterator[None]:
        """Alone among the questions; what works in the background is waited for a little, as somebody waits here."""
        key = (ask.series, ask.native)
        async with self._turns.of(key), self._shared.of(key, patience_s=BACKGROUND_PATIENCE_S):
            yield

    async def _worth_asking(self, ask: Ask, missing: RangeSet) -> RangeSet:
        """Leave out closed hours, what failed a moment ago, and what lies beyond the provider's memory."""
        missing = missing.outward(ask.native) - ask.closed - ask.forgotten
        span = missing.span
        if span is None:
            return missing
        knowledge = await self._store.knowledge(ask.stored.id, ask.native, span)
        return missing - knowledge.resting(self._clock.now_ms())

    async def peek(self, ask: Ask, unknown: RangeSet) -> bool:
        """Ask once from the start of what is unknown on; whether the provider answered."""
        span = unknown.span
        if ask.feed is None or ask.stored_only or span is None:
            return False
        async with self._turn(ask):
            return await self._fetch(ask, ask.feed, RangeSet((span,)), Trace(), PEEK)

    async def _fetch(
        self, ask: Ask, feed: Feed, missing: RangeSet, trace: Trace, limits: ErrandLimits | None = None
    ) -> bool:
        """Fetch into the store; whether the provider answered."""
        keeper = StoreKeeper(self._store, ask.stored.id, ask.native)
        errand = Fetch(
            keeper, feed, self._clock, symbol=ask.series.symbol, timeframe=ask.native, limits=limits or QUESTION
        )
        trace.error = await errand.run(missing, newest_first=ask.newest_first) or trace.error
        return errand.answered
