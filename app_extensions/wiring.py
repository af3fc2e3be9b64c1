"""The one composition root: builds the graph of services, opens it in order, and closes it in reverse."""

import gc
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from uuid import uuid4

from app_extensions.db_pool import DatabasePool
from app_extensions.embedded_postgres import EmbeddedPostgres
from app_extensions.embedded_postgres.attach import running_dsn
from app_extensions.migrations import Flavour, database_identity, migrate, set_compression
from app_extensions.redis_manager import RedisManager
from app_extensions.revision_watch import RevisionWatch
from app_extensions.supervisor import Supervisor
from config import BaseConfig
from domain.clock import Clock, SystemClock
from plugins import PluginLoader
from plugins.base import Credentials
from services.backfill_manager import BackfillManager
from services.backfill_plan import Planner
from services.backfill_store import BackfillStore
from services.backfill_worker import BackfillWorkers
from services.bar_store import BarStore
from services.broadcast_manager import BroadcastManager, MemoryBroadcast
from services.cache_manager import Cache, MemoryCache, NoCache
from services.coverage import CoverageLedger
from services.data_orchestrator import DataOrchestrator
from services.data_sources.aggregate_source import AggregateSource
from services.data_sources.cache_source import CacheSource
from services.data_sources.db_source import DbSource
from services.data_sources.plugin_source import PluginSource
from services.data_sources.provisional_source import ProvisionalSource
from services.followers import Followers
from services.healing import Healer
from services.listing_search import ListingSearch
from services.live_store import FeedClaim, LiveStore
from services.market_service import MarketService, ProviderSettings
from services.ohlcv import OhlcvService
from services.rechecks import Rechecker
from services.redis_broadcast import RedisBroadcast
from services.redis_cache import RedisCache
from services.retention import Retention
from services.revisions import Revisions
from services.rollups import PlainRollups, Rollups, TimescaleRollups
from services.series_summary import SeriesSummaries
from services.series_totals import SeriesTotals
from services.session_store import StoredSessionRepository
from services.sessions import SessionService
from services.subscription_registry import SubscriptionRegistry
from services.subscription_service import SubscriptionService
from services.subscription_worker import SubscriptionWorker
from services.turns import Turns
from services.upstream import Pollers

log = logging.getLogger(__name__)

#: Of the time that the process has to end, for the embedded database.
DATABASE_STOP_SHARE = 0.6
_IDLE_CHECK_S = 60
_ROLLUP_CHECK_S = 60
_RETENTION_CHECK_S = 3600
_BACKFILL_CHECK_S = 15
_RECHECK_S = 60
_TOTALS_S = 60
_LISTEN_AGAIN_S = 1


@dataclass(frozen=True)
class Services:
    """What handlers and commands use."""

    config: BaseConfig
    clock: Clock
    database: DatabasePool
    store: BarStore
    cache: Cache
    loader: PluginLoader
    markets: MarketService
    ohlcv: OhlcvService
    revisions: Revisions
    summaries: SeriesSummaries
    totals: SeriesTotals
    backfills: BackfillManager
    backfill_workers: BackfillWorkers
    rechecker: Rechecker
    subscriptions: SubscriptionService
    broadcast: BroadcastManager


@asynccontextmanager
async def running_pool(config: BaseConfig, *, beside_server: bool) -> AsyncIterator[DatabasePool]:
    """The database alone, embedded where no other is named.

    `beside_server`: use the embedded database of a server that is running on the data folder, where one is.
    """
    async with AsyncExitStack() as stack:
        dsn = config.database_url or await _embedded(config, stack, beside_server=beside_server)
        pool = DatabasePool(
            dsn, min_size=config.db_pool_min, max_size=config.db_pool_max, timeout_s=config.db_timeout_s
        )
        stack.push_async_callback(pool.close)
        await pool.open()
        yield pool


@asynccontextmanager
async def running_services(
    config: BaseConfig, *, clock: Clock | None = None, as_server: bool = True
) -> AsyncIterator[Services]:
    """Everything, opened in order; closed in reverse at the end of the block, also when opening fails half-way.

    `as_server`: own the data folder and do the background work; a command works beside a server that does.
    """
    clock = clock or SystemClock()
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(running_pool(config, beside_server=not as_server))
        store = BarStore(pool, CoverageLedger(), await _rollups(config, pool, clock), clock)
        services = await _assemble(config, clock, pool, store, stack)
        if as_server:
            supervisor = Supervisor()
            stack.push_async_callback(supervisor.close)
            _start_chores(supervisor, services)
            if pool.is_shareable:
                watch = RevisionWatch(pool, store.revisions)
                supervisor.every(_LISTEN_AGAIN_S, "hear of changed series", watch.run)
            await stack.enter_async_context(services.backfill_workers.running())
            stack.push_async_callback(services.subscriptions.close)
            await services.subscriptions.open()
        yield services


async def _assemble(
    config: BaseConfig, clock: Clock, database: DatabasePool, store: BarStore, stack: AsyncExitStack
) -> Services:
    redis = await _redis(config, stack)
    cache = await _cache(config, clock, database, stack, redis=redis)
    loader = PluginLoader(_loader_options(config))
    loader.load()
    markets = MarketService(loader, store, _provider_settings(config), clock)
    stack.push_async_callback(markets.close)
    sessions = SessionService(StoredSessionRepository(database), clock=clock)
    local = (AggregateSource(store), DbSource(store))
    turns = Turns()
    orchestrator = DataOrchestrator(
        store,
        sessions,
        clock,
        cache=CacheSource(cache),
        local=local,
        plugin=PluginSource(store, local, clock, turns),
        last=ProvisionalSource(store),
    )
    summaries = SeriesSummaries(store, sessions, markets, clock)
    jobs = BackfillStore(database)
    planner = Planner(jobs, markets, orchestrator, clock, kept_days=config.retention_days)
    listings = ListingSearch(store, sessions, clock)
    workers = BackfillWorkers(
        store,
        clock,
        jobs=jobs,
        planner=planner,
        listings=listings,
        markets=markets,
        turns=turns,
        lanes=config.backfill_jobs,
        attempts=config.backfill_attempts,
    )
    ohlcv = OhlcvService(markets, orchestrator, clock)
    broadcast = await _broadcast(database, redis)
    subscriptions = _subscriptions(
        config, clock, store, markets=markets, ohlcv=ohlcv, sessions=sessions, cache=cache, broadcast=broadcast
    )
    return Services(
        config=config,
        clock=clock,
        database=database,
        store=store,
        cache=cache,
        loader=loader,
        markets=markets,
        ohlcv=ohlcv,
        revisions=store.revisions,
        summaries=summaries,
        totals=SeriesTotals(summaries),
        backfills=BackfillManager(jobs, planner, workers, clock),
        backfill_workers=workers,
        rechecker=Rechecker(store, markets, listings, clock, turns=turns, calls_per_run=config.recheck_calls),
        subscriptions=subscriptions,
        broadcast=broadcast,
    )


def _subscriptions(
    config: BaseConfig,
    clock: Clock,
    store: BarStore,
    *,
    markets: MarketService,
    ohlcv: OhlcvService,
    sessions: SessionService,
    cache: Cache,
    broadcast: BroadcastManager,
) -> SubscriptionService:
    live, pollers = LiveStore(store, str(uuid4()), lease_s=config.stream_lease_s), Pollers()

    def follower(claim: FeedClaim) -> SubscriptionWorker:
        return SubscriptionWorker(
            claim,
            markets=markets,
            ohlcv=ohlcv,
            store=live,
            cache=cache,
            publish=broadcast.publish,
            clock=clock,
            sessions=sessions,
            pollers=pollers,
        )

    return SubscriptionService(
        markets,
        ohlcv,
        live,
        clock,
        broadcast=broadcast,
        followers=Followers(follower),
        registry=SubscriptionRegistry(grace_s=config.stream_grace_s),
    )


def _start_chores(supervisor: Supervisor, services: Services) -> None:
    store = services.store
    retention = Retention(store.database, store.rollups, services.clock, days=services.config.retention_days)
    supervisor.every(_ROLLUP_CHECK_S, "refresh aggregates", store.settle)
    supervisor.every(_IDLE_CHECK_S, "close idle providers", services.markets.close_idle)
    supervisor.every(_RETENTION_CHECK_S, "drop old minutes", retention.run)
    supervisor.every(_RECHECK_S, "look again at empty minutes", services.rechecker.run)
    healer = Healer(services.backfills, services.config.watch)
    services.markets.on_recovery = healer.wake
    services.markets.on_change = spare_collections
    supervisor.every(services.config.heal_interval_s, "heal watched series", healer.run, woken=healer.woken)
    supervisor.every(_BACKFILL_CHECK_S, "count backfill chunks", services.backfills.refresh)
    supervisor.every(_TOTALS_S, "count stored minutes", services.totals.refresh)


def spare_collections() -> None:
    """Have Python's collector look once at all that is there now, and leave out what stays from then on.

    A look at a provider's client, and its thousands of symbols, takes long enough for everybody to notice.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


async def _embedded(config: BaseConfig, stack: AsyncExitStack, *, beside_server: bool) -> str:
    folder = config.data_dir / "postgres"
    running = running_dsn(folder) if beside_server else None
    if running is not None:
        return running
    server = EmbeddedPostgres(folder, stop_timeout_s=DATABASE_STOP_SHARE * config.shutdown_timeout_s)
    stack.push_async_callback(server.close)
    await server.open()
    return server.dsn


async def _rollups(config: BaseConfig, pool: DatabasePool, clock: Clock) -> Rollups:
    if await migrate(pool) is Flavour.POSTGRESQL:
        return PlainRollups()
    await set_compression(pool, after_days=config.compress_after_days)
    return TimescaleRollups(pool, clock)


async def _broadcast(database: DatabasePool, redis: RedisManager | None) -> BroadcastManager:
    if redis is None:
        return MemoryBroadcast()
    return RedisBroadcast(redis.client, namespace=await _namespace(database))


async def _redis(config: BaseConfig, stack: AsyncExitStack) -> RedisManager | None:
    if not config.redis_url:
        return None
    redis = RedisManager(config.redis_url, timeout_s=config.redis_timeout_s)
    await redis.open()
    stack.push_async_callback(redis.close)
    return redis


async def _namespace(database: DatabasePool) -> str:
    """What servers of several databases that share a Redis keep apart by."""
    return f"candlery:{await database_identity(database)}"


async def _cache(
    config: BaseConfig, clock: Clock, database: DatabasePool, stack: AsyncExitStack, *, redis: RedisManager | None
) -> Cache:
    cache: Cache
    if redis is not None:
        namespace, timeout_s = await _namespace(database), 2 * config.redis_timeout_s
        cache = RedisCache(redis.client, ttl_s=config.cache_ttl_s, namespace=namespace, timeout_s=timeout_s)
    elif not config.cache_bytes:
        cache = NoCache()
    else:
        cache = MemoryCache(max_bytes=config.cache_bytes, ttl_s=config.cache_ttl_s, clock=clock)
    await cache.open()
    stack.push_async_callback(cache.close)
    return cache


def _loader_options(config: BaseConfig) -> dict[str, Mapping[str, object]]:
    return {"crypto": {"exchanges": config.crypto_exchanges}, "demo": {"seed": config.demo_seed}, "alpaca": {}}


def _provider_settings(config: BaseConfig) -> ProviderSettings:
    alpaca = {
        "data_url": config.alpaca_data_url,
        "trading_url": config.alpaca_trading_url,
        "stream_url": config.alpaca_stream_url,
        "feed": config.alpaca_feed,
    }

    def options(plugin: str, market: str, provider: str) -> Mapping[str, object]:
        if plugin == "crypto":
            return config.ccxt_options.get(provider, {})
        if plugin == "alpaca":
            return {**alpaca, "market": market}
        return {"seed": config.demo_seed} if plugin == "demo" else {}

    return ProviderSettings(
        options=options,
        credentials={"alpaca": Credentials(key=config.alpaca_key_id, secret=config.alpaca_secret_key)},
        timeout_s=config.provider_timeout_s,
        idle_ms=int(config.plugin_idle_s * 1000),
    )
