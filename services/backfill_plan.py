"""What a backfill has to fetch: the minutes that the ledger does not know, interior holes included, newest first."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from domain.clock import Clock
from domain.errors import CandleryError, InvalidParameterError, UnknownSymbolError, UnsupportedTimeframeError
from domain.series import Series
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import Timeframe
from plugins.base import Capabilities, NetworkPluginError, PluginError
from services.backfill_store import BackfillStore, NewChunk
from services.backfills import BackfillRequest, JobError, Plan, SymbolPlan
from services.data_orchestrator import DataOrchestrator
from services.fetch import joined_windows, newest_pages, page_length_ms
from services.market_service import Listing, MarketService

#: Chunks of one job; more would make one transaction too large.
MOST_CHUNKS = 500_000
#: Minutes that a provider on the loopback and a small machine store in a second: a plan is not faster than that.
STORED_PER_SECOND = 50_000

FETCH = "fetch"


@dataclass(frozen=True)
class _Found:
    """A symbol that its provider lists, and what is missing of it."""

    listing: Listing
    capabilities: Capabilities
    plan: SymbolPlan


class Planner:
    """Reads the ledger and the calendar; asks the provider for nothing but its list of symbols."""

    def __init__(
        self, jobs: BackfillStore, markets: MarketService, orchestrator: DataOrchestrator, clock: Clock
    ) -> None:
        """Take where the ledger and the series are found."""
        self._jobs = jobs
        self._markets = markets
        self._orchestrator = orchestrator
        self._clock = clock

    async def plan(self, request: BackfillRequest) -> tuple[Plan, list[NewChunk]]:
        """What the request comes to, and the chunks of it in the order they are to be worked.

        Raises:
            UnknownNameError: there is no such market or provider, or none of the symbols.
            PluginError: the provider cannot be asked for its symbols.
            InvalidParameterError: it is too much for one job.
        """
        found: list[_Found] = []
        bad: list[JobError] = []
        first: CandleryError | None = None
        for symbol in request.symbols:
            try:
                found.append(await self._symbol(Series(request.market, request.provider, symbol), request.range))
            except (UnknownSymbolError, UnsupportedTimeframeError) as exc:
                first = first or exc
                bad.append(JobError(symbol, exc.detail))
            _check_size(found)
            await asyncio.sleep(0)
        if first is not None and not found:
            raise first
        calls = sum(len(one.plan.chunks) for one in found)
        plans = tuple(one.plan for one in found)
        return Plan(request, plans, tuple(bad), calls, _estimate_s(found, calls)), _in_order(found)

    async def missing(self, listing: Listing, wanted: TimeRange) -> RangeSet:
        """Final minutes of `wanted` that are worth asking for: unknown, in open hours, within the provider's memory."""
        if listing.feed is None:
            raise NetworkPluginError(f"{listing.series.provider} cannot be reached.")
        settle_ms = listing.feed.capabilities.settle_ms
        now_ms = self._clock.now_ms()
        minute = Timeframe.M1
        final = TimeRange(
            minute.ceil(wanted.start_ms), min(minute.ceil(wanted.end_ms), minute.floor(now_ms - settle_ms))
        )
        if final.length_ms <= 0:
            return RangeSet()
        unknown = await self._jobs.missing(listing.stored.id, final)
        if not unknown:
            return unknown
        ask = await self._orchestrator.ask(listing, minute, final, now_ms)
        return unknown - ask.closed - ask.forgotten

    async def _symbol(self, series: Series, wanted: TimeRange) -> _Found:
        listing = await self._markets.find(series)
        feed = listing.feed
        if feed is None:
            raise PluginError(f"{series.provider} cannot be opened.")
        if feed.capabilities.native_for(Timeframe.M1) is None:
            raise UnsupportedTimeframeError(f"{series.provider} has no bars of one minute.")
        gaps = await self.missing(listing, wanted)
        page_ms = page_length_ms(feed, Timeframe.M1)
        chunks = tuple(newest_pages(joined_windows(gaps, page_ms), page_ms, Timeframe.M1))
        return _Found(listing, feed.capabilities, SymbolPlan(series.symbol, gaps, chunks))


def _check_size(found: Iterable[_Found]) -> None:
    if sum(len(one.plan.chunks) for one in found) > MOST_CHUNKS:
        msg = f"It would be more than {MOST_CHUNKS} chunks: make several jobs, with fewer symbols or shorter ranges."
        raise InvalidParameterError("symbols", msg)


def _in_order(found: Iterable[_Found]) -> list[NewChunk]:
    """The newest minutes of every symbol before older ones of any."""
    chunks = [
        NewChunk(one.listing.stored.id, one.plan.symbol, FETCH, part) for one in found for part in one.plan.chunks
    ]
    return sorted(chunks, key=lambda chunk: -chunk.range.end_ms)


def _estimate_s(found: list[_Found], calls: int) -> float:
    """Calls at the pace that the provider allows, or minutes at the pace that they can be stored."""
    if not found:
        return 0.0
    minutes = sum(one.plan.minutes for one in found)
    return float(ceil(max(calls / found[0].capabilities.calls_per_second, minutes / STORED_PER_SECOND)))
