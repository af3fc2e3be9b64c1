"""Hand-written fakes of the services behind the web application."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from config import TestingConfig
from domain.bar import Bar
from domain.errors import ConflictError, NotFoundError, UnknownMarketError, UnknownProviderError, UnknownSymbolError
from domain.series import Gap, Series, Verdict
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, MINUTE_MS, Timeframe
from plugins.base import Capabilities, ProviderInfo, SymbolInfo
from services.backfills import (
    BackfillRequest,
    Job,
    JobError,
    JobState,
    Origin,
    Plan,
    Progress,
    SymbolPlan,
)
from services.bar_walk import OhlcvAnswer, OhlcvQuery
from services.cache_manager import MemoryCache
from services.coverage import Tile
from services.fill import Fill
from services.market_service import ProviderListing, UpstreamUse, UpstreamWaits
from services.revisions import Revisions
from services.series_summary import SeriesFilter, StoredPart
from tests.support.clock import ManualClock
from tests.support.market import START_MS

CAPABILITIES = Capabilities(timeframes=(Timeframe.M1, Timeframe.H1), bars_per_call=500, live="stream")
SYMBOLS = {
    info.symbol: info
    for info in (
        SymbolInfo("ETH/USDT", "Ether"),
        SymbolInfo("BTC/USDT", "Bitcoin"),
        SymbolInfo("BTC", "The coin itself"),
        SymbolInfo("WBTC/USDT", "Wrapped Bitcoin", active=False),
        SymbolInfo("SPY", "SPDR S&P 500", "stock", calendar="XNYS", listed_ms=0),
    )
}


def bar(ts: int, close: float = 1.5) -> Bar:
    return Bar(ts, 1.0, 2.0, 0.5, close, 10.0)


@dataclass
class FakePing:
    """A database: there, gone, or silent."""

    error: Exception | None = None
    hang: Any = None
    usage: tuple[int, int] = (1, 2)

    async def ping(self) -> None:
        if self.hang is not None:
            await self.hang.wait()
        if self.error is not None:
            raise self.error


class FakeLoader:
    problems: Sequence[str] = ()

    def providers(self, market: str) -> list[tuple[object, ProviderInfo]]:
        return [(self, ProviderInfo("fake", "Fake"))]


@dataclass
class FakeBudget:
    paused_s: float = 0.0


@dataclass
class FakeFeed:
    capabilities: Capabilities
    calls: int = 7
    budget: FakeBudget = field(default_factory=FakeBudget)


@dataclass
class FakeOpenProvider:
    feed: FakeFeed
    market: str = "test"
    provider: str = "fake"
    failure: Exception | None = None


class FakeMarkets:
    """One market, `test`, with one provider, `fake`."""

    def __init__(self) -> None:
        self.capabilities: Capabilities | None = CAPABILITIES
        self.error: Exception | None = None
        self.opened = [FakeOpenProvider(FakeFeed(CAPABILITIES))]

    def markets(self) -> Sequence[str]:
        return ("test",)

    def open_providers(self) -> list[FakeOpenProvider]:
        return self.opened

    def upstream_use(self) -> dict[tuple[str, str], UpstreamUse]:
        return {("test", "fake"): UpstreamUse(calls=7, retries=2, failures=1)}

    def upstream_waits(self) -> dict[str, UpstreamWaits]:
        return {"fake": UpstreamWaits(3, 0.75)}

    def check(self, market: str, provider: str = "fake") -> None:
        if market != "test":
            raise UnknownMarketError(f"There is no market {market!r}.")
        if provider != "fake":
            raise UnknownProviderError(f"There is no provider {provider!r}.")
        if self.error is not None:
            raise self.error

    async def providers(self, market: str) -> list[ProviderListing]:
        self.check(market)
        return [ProviderListing(ProviderInfo("fake", "Fake", needs_credentials=True), self.capabilities)]

    async def symbols(self, market: str, provider: str) -> Mapping[str, SymbolInfo]:
        self.check(market, provider)
        return SYMBOLS

    async def feed(self, market: str, provider: str) -> FakeFeed:
        self.check(market, provider)
        assert self.capabilities is not None
        return FakeFeed(self.capabilities)


class FakeOhlcv:
    """Bars out of a dictionary, cut into pages as the real service does."""

    def __init__(self, markets: FakeMarkets, clock: ManualClock) -> None:
        self._markets = markets
        self._clock = clock
        self.market = {"BTC/USDT": [bar(START_MS + n * MINUTE_MS, 1 + n / 1000) for n in range(1440)]}
        self.queries: list[OhlcvQuery] = []
        self.error: Exception | None = None
        #: Laid over each answer.
        self.more: dict[str, Any] = {}
        self.tiles: list[Tile] = []
        self.asked: list[tuple[Series, Timeframe, TimeRange]] = []

    async def bars(self, query: OhlcvQuery) -> OhlcvAnswer:
        self.queries.append(query)
        self._check(query.series)
        end = min(query.end_ms or self._clock.now_ms(), self._clock.now_ms())
        found = [b for b in self.market[query.series.symbol] if (query.start_ms or 0) <= b.ts < end]
        if query.start_ms is None:
            answer = OhlcvAnswer(found[-query.limit :])
        else:
            page = found[: query.limit]
            answer = OhlcvAnswer(page, next_ms=page[-1].ts + MINUTE_MS if len(found) > len(page) else None)
        answer.sources = ["database"]
        answer.in_past = query.end_ms is not None
        answer.filled = [b.ts for b in answer.bars[:1]] if query.fill is Fill.PREVIOUS else []
        for name, value in self.more.items():
            setattr(answer, name, value)
        return answer

    async def coverage(self, series: Series, timeframe: Timeframe, wanted: TimeRange) -> list[Tile]:
        self._check(series)
        self.asked.append((series, timeframe, wanted))
        return self.tiles

    def _check(self, series: Series) -> None:
        self._markets.check(series.market, series.provider)
        if series.symbol not in self.market:
            raise UnknownSymbolError(f"fake lists no symbol {series.symbol!r}.")
        if self.error is not None:
            raise self.error


class FakeSummaries:
    """Series as they are said to be stored, in pages."""

    def __init__(self) -> None:
        self.parts: list[StoredPart] = []
        self.asked: list[tuple[SeriesFilter, int, Series | None]] = []
        self.error: Exception | None = None

    async def page(
        self, wanted: SeriesFilter, *, limit: int, after: Series | None = None
    ) -> tuple[list[StoredPart], bool]:
        self.asked.append((wanted, limit, after))
        if self.error is not None:
            raise self.error
        found = [part for part in self.parts if after is None or part.series > after]
        return found[:limit], len(found) > limit


@dataclass
class FakeTotals:
    series: int | None = 3
    minutes: Mapping[tuple[str, str, Verdict], int] = field(
        default_factory=lambda: {("test", "fake", Verdict.DATA): 60, ("test", "fake", Verdict.NO_TRADES): 2}
    )


@dataclass
class FakeStore:
    bars_written: int = 60
    bars_revised: int = 1


class FakeBackfills:
    """Jobs in memory that nobody works on: tests move them. Every minute of every known symbol is missing."""

    def __init__(self, markets: FakeMarkets, clock: ManualClock) -> None:
        self._markets = markets
        self._clock = clock
        self._jobs: dict[str, Job] = {}
        self._changed = asyncio.Condition()
        self.chunk_counts: Mapping[str, int] = {"queued": 4, "failed": 1}
        self.chunks_finished: Mapping[str, int] = {"done": 5, "failed": 1, "refused": 0}
        self.error: Exception | None = None
        #: Raised by those who watch, once, at the next change.
        self.interruption: Exception | None = None
        self.watchers = 0
        #: Set whenever nobody watches.
        self.unwatched = asyncio.Event()
        self.requests: list[BackfillRequest] = []

    async def plan(self, request: BackfillRequest) -> Plan:
        self._markets.check(request.market, request.provider)
        self._fail()
        self.requests.append(request)
        known = [symbol for symbol in request.symbols if symbol in SYMBOLS]
        if not known:
            raise UnknownSymbolError(f"fake lists no symbol {request.symbols[0]!r}.")
        plans = tuple(SymbolPlan(symbol, RangeSet([request.range]), (request.range,)) for symbol in known)
        errors = tuple(
            JobError(symbol, "There is no such symbol.") for symbol in request.symbols if symbol not in known
        )
        return Plan(request, plans, errors, calls=len(plans), estimated_s=1.5)

    async def create(self, request: BackfillRequest, *, origin: Origin = Origin.OPERATOR) -> Job:
        plan = await self.plan(request)
        job = Job(
            id=f"job-{len(self._jobs) + 1}",
            state=JobState.QUEUED,
            origin=origin,
            request=request,
            progress=Progress(0, 0, plan.chunks, 0, None),
            errors=plan.errors,
            error_count=len(plan.errors),
            created_ms=self._clock.now_ms(),
            started_ms=None,
            finished_ms=None,
        )
        self._jobs[job.id] = job
        return job

    async def jobs(self, *, limit: int = 100) -> list[Job]:
        self._fail()
        return list(self._jobs.values())[::-1][:limit]

    async def job(self, job_id: str) -> Job:
        self._fail()
        if job_id not in self._jobs:
            raise NotFoundError(f"There is no backfill {job_id!r}.")
        return self._jobs[job_id]

    async def pause(self, job_id: str) -> Job:
        return await self._steer(job_id, JobState.PAUSED, JobState.QUEUED, JobState.RUNNING)

    async def resume(self, job_id: str) -> Job:
        return await self._steer(job_id, JobState.QUEUED, JobState.PAUSED)

    async def cancel(self, job_id: str) -> Job:
        return await self._steer(job_id, JobState.CANCELLED, JobState.QUEUED, JobState.RUNNING, JobState.PAUSED)

    async def retry(self, job_id: str) -> Job:
        return await self._steer(job_id, JobState.QUEUED, JobState.FAILED)

    async def watch(self, job_id: str) -> AsyncGenerator[Job, None]:
        self.watchers += 1
        self.unwatched.clear()
        try:
            seen: Job | None = None
            while seen is None or not seen.state.is_over:
                async with self._changed:
                    while self.interruption is None and self._jobs.get(job_id) == seen:
                        await self._changed.wait()
                    interruption, self.interruption = self.interruption, None
                if interruption is not None:
                    raise interruption
                seen = await self.job(job_id)
                yield seen
        finally:
            self.watchers -= 1
            if not self.watchers:
                self.unwatched.set()

    async def someone_works(self) -> bool:
        return True

    async def move(self, job_id: str, **changes: Any) -> Job:
        """The job as workers might have left it."""
        async with self._changed:
            self._jobs[job_id] = self._jobs[job_id]._replace(**changes)
            self._changed.notify_all()
        return self._jobs[job_id]

    async def interrupt(self, error: Exception) -> None:
        """Let those who watch fail once."""
        async with self._changed:
            self.interruption = error
            self._changed.notify_all()

    async def _steer(self, job_id: str, state: JobState, *only: JobState) -> Job:
        job = await self.job(job_id)
        if job.state not in only:
            raise ConflictError(f"The backfill is {job.state.value}.")
        return await self.move(job_id, state=state)

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


class FakeServices:
    """What `app_extensions.wiring.Services` is to the web application."""

    def __init__(self, **settings: Any) -> None:
        self.config = TestingConfig(**settings)
        self.clock = ManualClock(START_MS + 30 * DAY_MS)
        self.database = FakePing()
        self.cache = MemoryCache(max_bytes=1 << 20, ttl_s=60, clock=self.clock)
        self.loader = FakeLoader()
        self.markets = FakeMarkets()
        self.ohlcv = FakeOhlcv(self.markets, self.clock)
        self.store = FakeStore()
        self.revisions = Revisions()
        self.summaries = FakeSummaries()
        self.totals = FakeTotals()
        self.backfills = FakeBackfills(self.markets, self.clock)


def gap(start_ms: int, end_ms: int, verdict: Verdict = Verdict.FETCH_FAILED) -> Gap:
    return Gap(TimeRange(start_ms, end_ms), verdict)
