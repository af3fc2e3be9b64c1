"""Bars out of the cache."""

from typing import ClassVar

from domain.time_range import RangeSet
from domain.timeframe import Timeframe
from services.cache_manager import Cache
from services.data_sources.base import Ask, DataSource, SourceAnswer, Trace


class CacheSource(DataSource):
    """Settled bars of this revision of the series: minutes in blocks, other timeframes as whole answers."""

    name: ClassVar[str] = "cache"

    def __init__(self, cache: Cache) -> None:
        """Take the cache."""
        self._cache = cache

    async def read(self, ask: Ask, wanted: RangeSet, trace: Trace) -> SourceAnswer:
        """What the cache has; all of it is settled."""
        series_id, revision = ask.stored.id, ask.stored.revision
        if ask.timeframe is Timeframe.M1:
            found = await self._cache.get_1m_bars(series_id, revision, wanted)
            bars, known = found.bars, found.known
        else:
            whole = await self._cache.get_resampled(series_id, revision, ask.timeframe, ask.range)
            bars, known = (whole, wanted) if whole is not None else ([], RangeSet())
        if bars:
            trace.gave(self.name)
        return SourceAnswer(bars, known, known, known)

    async def keep(self, ask: Ask, answer: SourceAnswer) -> None:
        """Put what lasts of an answer into the cache."""
        series_id, revision = ask.stored.id, ask.stored.revision
        if ask.timeframe is Timeframe.M1:
            await self._cache.store_1m_bars(series_id, revision, answer.bars, answer.lasting)
        elif answer.lasting.covers(RangeSet.of(*ask.range)):
            await self._cache.set_resampled(series_id, revision, ask.timeframe, ask.range, answer.bars)
