"""What a backfill has to fetch: the minutes that the ledger does not know, interior holes included, newest first."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from domain.clock import Clock
from domain.errors import CandleryError, InvalidParameterError, UnknownSymbolError, UnsupportedTimeframeError
from domain.series import Series
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import Timeframe
from plugins.base import Capabilities, NetworkPluginError
from services.backfill_store import BackfillStore, NewChunk
from services.backfills import BackfillRequest, JobError, Plan, SymbolPlan
from services.coverage import Knowledge
from services.data_orchestrator import DataOrchestrator
from services.fetch import joined_windows, newest_pages, page_length_ms
from services.listing_search import worthwhile
from services.market_service import Listing, MarketService
from services.retention import kept_from_ms

#: Chunks of a job of several symbols; more would make one transaction too large.
MOST_CHUNKS = 100_000
#: Minutes that a provider on the loopback and a small machine store in a second: a plan is not faster than that.
STORED_PER_SECOND = 50_000

FETCH = "fetch"
SEARCH = "search"
#: Calls that a search for a first bar makes, mostly fewer.
_SEARCH_CALLS = 10


@dataclass(frozen=True)
class _Found:
    """A symbol that its provider lists, and what is missing of it."""

    listing: Listing
    capabilities: Capabilities
    plan: SymbolPlan


class Planner:
    """Reads the ledger and the calendar; asks the provider for nothing but its list of symbols."""

    def __init__(
        self,
        jobs: BackfillStore,
        markets: MarketService,
        orchestrator: DataOrchestrator,
        clock: Clock,
        *,
        kept_days: int = 0,
    ) -> None:
        """Take where the ledger and the series are found, and how many days of minutes are kept (0: all)."""
        self._kept_days = kept_days
        self._jobs = jobs
        self._markets = markets
        self._orchestrator = orchestrator
        self._clock = clock

    async def plan(
        self, request: BackfillRequest, starts: Mapping[str, int] | None = None
    ) -> tuple[Plan, list[NewChunk]]:
        """What the request comes to, and the chunks of it in the order they are to be worked.

        `starts`: where the symbols begin, if not where the request does.

        Raises:
            UnknownNameError: there is no such market or provider, or none of the symbols.
            PluginError: the provider cannot be asked for its symbols.
            InvalidParameterError: it is too much for one job.
        """
        found: list[_Found] = []
        bad: list[JobError] = []
        first: CandleryError | None = None
        for symbol in request.symbols:
            wanted = request.range if starts is None else TimeRange(starts[symbol], request.range.end_ms)
            try:
                found.append(await self._symbol(Series(request.market, request.provider, symbol), wanted))
            except (UnknownSymbolError, UnsupportedTimeframeError) as exc:
                first = first or exc
                bad.append(JobError(symbol, exc.detail))
            _check_size(found)
            await asyncio.sleep(0)
        if first is not None and not found:
            raise first
        calls = sum(len(one.plan.chunks) + (_SEARCH_CALLS if one.plan.search else 0) for one in found)
        plans = tuple(one.plan for one in found)
        chunks = await asyncio.to_thread(_in_order, found)
        return Plan(request, plans, tuple(bad), calls, _estimate_s(found, calls)), chunks

    async def missing(self, listing: Listing, wanted: TimeRange) -> RangeSet:
        """Final minutes of `wanted` that are worth asking for: unknown, in open hours, within the provider's memory.

        Raises:
            PluginError: the provider cannot be opened.
        """
        return (await self._missing(listing, wanted))[0]

    async def lost(self, listing: Listing, wanted: TimeRange) -> RangeSet:
        """Unknown minutes of `wanted` that the provider has forgotten by now."""
        missing, unknown = await self._missing(listing, wanted)
        ask = await self._orchestrator.ask(listing, Timeframe.M1, wanted, self._clock.now_ms())
        return (unknown - missing - ask.closed) & ask.forgotten

    async def _missing(self, listing: Listing, wanted: TimeRange) -> tuple[RangeSet, RangeSet]:
        """What is worth asking for, and all that is unknown."""
        if listing.feed is None:
            raise NetworkPluginError(f"{listing.series.provider} cannot be opened.")
        minute, now_ms = Timeframe.M1, self._clock.now_ms()
        final_ms = minute.floor(now_ms - listing.feed.capabilities.settle_ms)
        # What is dropped again within the hour is not worth asking for.
        start_ms = max(minute.ceil(wanted.start_ms), kept_from_ms(now_ms, self._kept_days))
        final = TimeRange(start_ms, min(minute.ceil(wanted.end_ms), final_ms))
        if final.length_ms <= 0:
            return RangeSet(), RangeSet()
        unknown = await self._jobs.missing(listing.stored.id, final)
        if not unknown:
            return unknown, unknown
        ask = await self._orchestrator.ask(listing, minute, final, now_ms)
        return unknown - ask.closed - ask.forgotten, unknown

    async def _symbol(self, series: Series, wanted: TimeRange) -> _Found:
        listing = await self._markets.find(series)
        gaps, unknown = await self._missing(listing, wanted)
        assert listing.feed is not None
        capabilities = listing.feed.capabilities
        if capabilities.native_for(Timeframe.M1) is None:
            raise UnsupportedTimeframeError(f"{series.provider} has no bars of one minute.")
        page_ms = page_length_ms(listing.feed, Timeframe.M1)
        chunks = tuple(newest_pages(joined_windows(gaps, page_ms), page_ms, Timeframe.M1))
        start_ms = max(Timeframe.M1.ceil(wanted.start_ms), kept_from_ms(self._clock.now_ms(), self._kept_days))
        search = _search(capabilities, unknown, start_ms) if gaps else None
        return _Found(listing, capabilities, SymbolPlan(series.symbol, gaps, chunks, search))


def _search(capabilities: Capabilities, unknown: RangeSet, start_ms: int) -> TimeRange | None:
    """The stretch before the first thing known, where it is so long that the first bar is worth looking for."""
    first = unknown.ranges[0]
    if first.start_ms > start_ms or not worthwhile(capabilities, first, Knowledge()):
        return None
    return first


def _check_size(found: Sequence[_Found]) -> None:
    if len(found) > 1 and sum(len(one.plan.chunks) for one in found) > MOST_CHUNKS:
        msg = f"It would be more than {MOST_CHUNKS} chunks: make several jobs, with fewer symbols or shorter ranges."
        raise InvalidParameterError("symbols", msg)


def _in_order(found: Iterable[_Found]) -> list[NewChunk]:
    """Searches, then the newest minutes of every symbol before older ones of any."""
    searches, chunks = [], []
    for one in found:
        series_id, symbol = one.listing.stored.id, one.plan.symbol
        chunks += [NewChunk(series_id, symbol, FETCH, part) for part in one.plan.chunks]
        if one.plan.search is not None:
            searches.append(NewChunk(series_id, symbol, SEARCH, one.plan.search))
    return searches + sorted(chunks, key=lambda chunk: -chunk.range.end_ms)


def _estimate_s(found: list[_Found], calls: int) -> float:
    """Calls at the pace that the provider allows, or minutes at the pace that they can be stored."""
    if not found:
        return 0.0
    minutes = sum(one.plan.minutes for one in found)
    return float(ceil(max(calls / found[0].capabilities.calls_per_second, minutes / STORED_PER_SECOND)))
