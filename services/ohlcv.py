"""OHLCV questions as clients put them: so many bars from a time on, or up to a time, of one series."""

from domain.clock import Clock
from domain.errors import UnsupportedTimeframeError
from domain.series import Series
from domain.time_range import TimeRange
from domain.timeframe import Timeframe
from services.bar_walk import BarWalk, OhlcvAnswer, OhlcvQuery
from services.coverage import Tile
from services.data_orchestrator import DataOrchestrator
from services.market_service import Listing, MarketService


class OhlcvService:
    """Answers `OhlcvQuery`s and coverage questions."""

    def __init__(self, markets: MarketService, orchestrator: DataOrchestrator, clock: Clock) -> None:
        """Take what it finds series and bars with."""
        self._markets = markets
        self._orchestrator = orchestrator
        self._clock = clock

    async def bars(self, query: OhlcvQuery) -> OhlcvAnswer:
        """The bars of one series.

        Raises:
            UnknownNameError, UnsupportedTimeframeError: the question is wrong.
            PluginError: nothing is stored of the series and its provider cannot be asked.
            DatabaseUnavailableError: nothing can be answered now.
        """
        # A stream that has just told of a change must not begin with what was before it.
        listing = await self._markets.find(query.series, from_memory=not query.settled_ms)
        check_timeframe(listing, query.timeframe)
        walk = BarWalk(self._orchestrator, listing, query, self._clock.now_ms())
        return await (walk.backward() if query.start_ms is None else walk.forward(query.start_ms))

    async def coverage(self, series: Series, timeframe: Timeframe, wanted: TimeRange) -> list[Tile]:
        """Verdicts that tile the buckets which start in `wanted`. Asks no provider for bars."""
        listing = await self._markets.find(series)
        check_timeframe(listing, timeframe)
        aligned = TimeRange(timeframe.ceil(wanted.start_ms), timeframe.ceil(wanted.end_ms))
        return await self._orchestrator.coverage(
            await self._orchestrator.ask(listing, timeframe, aligned, self._clock.now_ms())
        )


def check_timeframe(listing: Listing, timeframe: Timeframe) -> None:
    """Raise `UnsupportedTimeframeError` where the provider has no bars of the timeframe, nor any to fold into it."""
    if listing.feed is None or listing.feed.capabilities.can_serve(timeframe):
        return
    offered = ", ".join(tf.value for tf in Timeframe if listing.feed.capabilities.can_serve(tf))
    raise UnsupportedTimeframeError(f"{listing.series.provider} has no {timeframe.value} bars; it has {offered}.")
