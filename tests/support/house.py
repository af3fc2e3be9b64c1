"""The services on a real database, with a scripted provider and no HTTP."""

from collections.abc import Sequence
from dataclasses import dataclass

from domain.bar import Bar
from domain.errors import UnknownMarketError, UnknownProviderError
from domain.series import Series
from domain.time_range import TimeRange
from domain.timeframe import Timeframe
from plugins.base import MarketPlugin, PluginConfig, ProviderInfo
from services.backfill_manager import BackfillManager
from services.backfill_plan import Planner
from services.backfill_store import BackfillStore
from services.backfill_worker import BackfillWorkers
from services.backfills import BackfillRequest, Job
from services.bar_store import BarStore
from services.bar_walk import OhlcvAnswer, OhlcvQuery
from services.cache_manager import Cache, MemoryCache
from services.coverage import Tile
from services.data_orchestrator import DataOrchestrator
from services.data_sources.aggregate_source import AggregateSource
from services.data_sources.cache_source import CacheSource
from services.data_sources.db_source import DbSource
from services.data_sources.plugin_source import PluginSource
from services.data_sources.provisional_source import ProvisionalSource
from services.feed import FeedLimits
from services.listing_search import ListingSearch
from services.market_service import MarketService, ProviderSettings
from services.ohlcv import OhlcvService
from services.rechecks import Rechecker
from services.sessions import InMemorySessionRepository, SessionService
from services.turns import Turns
from tests.support.clock import ManualClock
from tests.support.scripted import ScriptedPlugin


class OnePlugin:
    """A loader that knows one plugin, already made."""

    def __init__(self, plugin: ScriptedPlugin) -> None:
        self._plugin = plugin
        self.made = 0

    def markets(self) -> Sequence[str]:
        return ("test",)

    def providers(self, market: str) -> list[tuple[object, ProviderInfo]]:
        return [(self, ProviderInfo("scripted", "Scripted"))]

    def find(self, market: str, provider: str) -> "OnePlugin":
        if market != "test":
            raise UnknownMarketError(f"There is no market {market!r}.")
        if provider != "scripted":
            raise UnknownProviderError(f"There is no provider {provider!r}.")
        return self

    def get_plugin_key(self) -> str:
        return "scripted"

    def default_calendar(self, market: str) -> str | None:
        return None

    def __call__(self, config: PluginConfig) -> MarketPlugin:
        self.made += 1
        return self._plugin


@dataclass
class House:
    plugin: ScriptedPlugin
    store: BarStore
    clock: ManualClock
    markets: MarketService
    ohlcv: OhlcvService
    cache: Cache
    backfills: BackfillManager
    workers: BackfillWorkers
    rechecker: Rechecker

    async def backfill(self, start_ms: int, end_ms: int, *symbols: str) -> Job:
        """Make a job and wait for its end; somebody must be working."""
        request = BackfillRequest("test", "scripted", symbols or ("A/B",), TimeRange(start_ms, end_ms))
        job = await self.backfills.create(request)
        return await self.finished(job.id)

    async def finished(self, job_id: str) -> Job:
        async for job in self.backfills.watch(job_id):
            last = job
        return last

    async def bars(self, symbol: str = "A/B", timeframe: str = "1m", **options: object) -> OhlcvAnswer:
        series = Series("test", "scripted", symbol)
        return await self.ohlcv.bars(OhlcvQuery(series=series, timeframe=Timeframe(timeframe), **options))  # type: ignore[arg-type]

    async def coverage(self, start_ms: int, end_ms: int, timeframe: str = "1m", symbol: str = "A/B") -> list[Tile]:
        series = Series("test", "scripted", symbol)
        return await self.ohlcv.coverage(series, Timeframe(timeframe), TimeRange(start_ms, end_ms))

    async def every_page(self, **options: object) -> tuple[list[Bar], int]:
        """Walk all pages from a start on; the bars and how many pages there were."""
        bars: list[Bar] = []
        pages = 0
        while True:
            answer = await self.bars(**options)
            pages += 1
            bars += answer.bars
            if answer.next_ms is None:
                return bars, pages
            options["start_ms"] = answer.next_ms
            options["carry"] = bars[-1].close if bars else None


def make_house(
    store: BarStore,
    clock: ManualClock,
    plugin: ScriptedPlugin,
    *,
    cache: Cache | None = None,
    lanes: int = 2,
    attempts: int = 3,
    lease_s: float = 5,
    tries: int = 1,
    kept_days: int = 0,
) -> House:
    cache = cache or MemoryCache(max_bytes=1 << 24, ttl_s=3600, clock=clock)
    settings = ProviderSettings(
        options=lambda *_: {}, limits=FeedLimits(attempts=tries, total_s=5, patience_s=1), idle_ms=60_000
    )
    markets = MarketService(OnePlugin(plugin), store, settings, clock)  # type: ignore[arg-type]
    sessions = SessionService(InMemorySessionRepository(), clock=clock)
    local = (AggregateSource(store), DbSource(store))
    turns = Turns()
    plugin_source = PluginSource(store, local, clock, turns)
    orchestrator = DataOrchestrator(
        store,
        sessions,
        clock,
        cache=CacheSource(cache),
        local=local,
        plugin=plugin_source,
        last=ProvisionalSource(store),
    )
    jobs = BackfillStore(store.database)
    planner = Planner(jobs, markets, orchestrator, clock, kept_days=kept_days)
    listings = ListingSearch(store, sessions, clock)
    workers = BackfillWorkers(
        store,
        clock,
        jobs=jobs,
        planner=planner,
        listings=listings,
        markets=markets,
        turns=turns,
        lanes=lanes,
        attempts=attempts,
        lease_s=lease_s,
        poll_s=0.05,
    )
    backfills = BackfillManager(jobs, planner, workers, clock, look_s=0.05)
    return House(
        plugin,
        store,
        clock,
        markets,
        OhlcvService(markets, orchestrator, clock),
        cache,
        backfills,
        workers,
        Rechecker(store, markets, listings, clock, turns=turns),
    )
