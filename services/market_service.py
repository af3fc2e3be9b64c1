"""Providers at work: one plugin instance a provider, credential and sandbox flag, made once, closed when idle."""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from typing import NamedTuple, Protocol

from domain.clock import Clock
from domain.errors import UnknownNameError, UnknownSymbolError
from domain.series import Series
from plugins.base import Capabilities, Credentials, MarketPlugin, PluginConfig, PluginError, ProviderInfo, SymbolInfo
from services.bar_store import BarStore, StoredSeries
from services.feed import Feed, FeedLimits
from services.rate_budget import RateBudget

log = logging.getLogger(__name__)

#: A provider's list of symbols is asked for again after this long.
SYMBOLS_TTL_MS = 10 * 60_000
#: After a provider failed to list its symbols it is left alone for so long.
SYMBOLS_PAUSE_MS = 5_000


class Loader(Protocol):
    """Finds plugin classes; see `plugins.PluginLoader`."""

    def markets(self) -> Sequence[str]:
        """Every market that some plugin serves."""
        ...

    def providers(self, market: str) -> Sequence[tuple[type[MarketPlugin], ProviderInfo]]:
        """The providers of a market and the plugins that serve them."""
        ...

    def find(self, market: str, provider: str) -> type[MarketPlugin]:
        """The plugin of a provider; raises `UnknownMarketError` or `UnknownProviderError`."""
        ...


class InstanceKey(NamedTuple):
    """What makes two uses share an instance."""

    plugin: type[MarketPlugin]
    market: str
    provider: str
    credential_hash: str
    sandbox: bool


class Listing(NamedTuple):
    """A series that exists: its place in the store, and the way to its provider where there is one now."""

    series: Series
    stored: StoredSeries
    feed: Feed | None


class ProviderListing(NamedTuple):
    """A provider and what it can do; capabilities are None while it cannot be opened."""

    info: ProviderInfo
    capabilities: Capabilities | None


class OpenProvider(NamedTuple):
    """A provider that is open, and its last failure to list symbols where the list is not fresh for it."""

    market: str
    provider: str
    feed: Feed
    failure: PluginError | None


class UpstreamUse(NamedTuple):
    """What was asked of a provider since the process began: calls made, calls made again, and calls given up."""

    calls: int = 0
    retries: int = 0
    failures: int = 0

    def plus(self, feed: Feed) -> "UpstreamUse":
        """This, and what was asked by way of the feed."""
        return UpstreamUse(self.calls + feed.calls, self.retries + feed.retries, self.failures + feed.failures)


class UpstreamWaits(NamedTuple):
    """Calls that waited for a provider's rate budget since the process began, and how long all together."""

    waits: int = 0
    waited_s: float = 0.0


@dataclass
class _Instance:
    feed: Feed
    used_ms: int
    symbols: Mapping[str, SymbolInfo] = field(default_factory=dict)
    symbols_ms: int = 0
    failed_ms: int = 0
    failure: PluginError | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True)
class ProviderSettings:
    """What the configuration says of providers.

    Attributes:
        options: by plugin key and provider, what an instance is made with.
        credentials: by provider.
        timeout_s: for one call.
        idle_ms: an instance unused for so long is closed.
    """

    options: Callable[[str, str, str], Mapping[str, object]]
    credentials: Mapping[str, Credentials] = field(default_factory=dict)
    timeout_s: float = 10.0
    idle_ms: int = 15 * 60_000
    limits: FeedLimits = field(default_factory=FeedLimits)


class MarketService:
    """Finds markets, providers and symbols, and hands out feeds."""

    def __init__(self, loader: Loader, store: BarStore, settings: ProviderSettings, clock: Clock) -> None:
        """Take what it finds things with; instances are made on first use."""
        self._loader = loader
        self._store = store
        self._settings = settings
        self._clock = clock
        self._instances: dict[InstanceKey, _Instance] = {}
        self._budgets: dict[tuple[str, str, str], RateBudget] = {}
        self._making: dict[InstanceKey, asyncio.Task[_Instance]] = {}
        #: Told when a provider answers again after it failed.
        self.on_recovery: Callable[[], None] | None = None
        #: Told when providers were opened or closed: much memory was taken that stays, or given up.
        self.on_change: Callable[[], None] | None = None
        #: By market and provider, what instances used that are closed.
        self._used: dict[tuple[str, str], UpstreamUse] = {}

    async def close(self) -> None:
        """Close every instance."""
        for task in self._making.values():
            task.cancel()
        instances, self._instances = self._instances, {}
        self._note_use(instances)
        await asyncio.gather(*(self._close(key, instance) for key, instance in instances.items()))

    async def close_idle(self) -> None:
        """Close what was not used for a while."""
        latest = self._clock.now_ms() - self._settings.idle_ms
        idle = {key: one for key, one in self._instances.items() if one.used_ms < latest and not one.turn.locked()}
        self._note_use(idle)
        for key in idle:
            del self._instances[key]
        await asyncio.gather(*(self._close(key, instance) for key, instance in idle.items()))
        if idle and self.on_change is not None:
            self.on_change()

    def markets(self) -> Sequence[str]:
        """Every market that some plugin serves."""
        return self._loader.markets()

    def open_providers(self) -> list[OpenProvider]:
        """Every provider that is open now. Opens nothing."""
        return [OpenProvider(key.market, key.provider, one.feed, one.failure) for key, one in self._instances.items()]

    def upstream_use(self) -> dict[tuple[str, str], UpstreamUse]:
        """By market and provider, what was asked of it. Grows only: what closed instances used counts too."""
        return _with_use(self._used, self._instances)

    def upstream_waits(self) -> dict[str, UpstreamWaits]:
        """By provider, what waited for its budgets, which its markets share. Grows only: budgets outlive instances."""
        total: dict[str, UpstreamWaits] = {}
        for (_, provider, _), budget in self._budgets.items():
            waits, waited_s = total.get(provider, UpstreamWaits())
            total[provider] = UpstreamWaits(waits + budget.waits, waited_s + budget.waited_s)
        return total

    async def providers(self, market: str) -> list[ProviderListing]:
        """The providers of a market and what they can do."""
        return [await self._listed(market, info) for _, info in self._loader.providers(market)]

    async def symbols(self, market: str, provider: str) -> Mapping[str, SymbolInfo]:
        """Every symbol of a provider, by name."""
        return await self._symbols(await self._instance(market, provider))

    def serves(self, market: str, provider: str) -> bool:
        """Whether this process knows the provider."""
        try:
            self._loader.find(market, provider)
        except UnknownNameError:
            return False
        return True

    async def feed(self, market: str, provider: str) -> Feed:
        """The way to a provider."""
        return (await self._instance(market, provider)).feed

    async def find(self, series: Series, *, from_memory: bool = False) -> Listing:
        """The series, where something of it is stored or the provider lists it.

        A stored series needs no word of its provider: what is stored is served though the provider be gone.
        `from_memory`: see `BarStore.find_series`.

        Raises:
            UnknownMarketError, UnknownProviderError, UnknownSymbolError: there is no such thing.
            PluginError: nothing is stored, and the provider cannot be asked.
        """
        self._loader.find(series.market, series.provider)
        stored = await self._store.find_series(series, from_memory=from_memory)
        if stored is not None:
            return Listing(series, stored, await self._feed_or_none(series))
        instance = await self._instance(series.market, series.provider)
        info = (await self._symbols(instance)).get(series.symbol)
        if info is None:
            raise UnknownSymbolError(await self._unknown(instance, series))
        stored = await self._store.ensure_series(series, calendar=info.calendar, listed_ms=info.listed_ms)
        return Listing(series, stored, instance.feed)

    async def adopt(self, series: Series) -> StoredSeries:
        """The stored series for bars that come from elsewhere: its provider need not list it, or be in reach."""
        plugin = self._loader.find(series.market, series.provider)
        calendar = plugin.default_calendar(series.market)
        return await self._store.ensure_series(series, calendar=calendar)

    def _note_use(self, closing: Mapping[InstanceKey, _Instance]) -> None:
        self._used = _with_use(self._used, closing)

    async def _feed_or_none(self, series: Series) -> Feed | None:
        try:
            return await self.feed(series.market, series.provider)
        except PluginError as exc:
            log.warning("%s is served from the store alone: %s", series, exc)
            return None

    async def _unknown(self, instance: _Instance, series: Series) -> str:
        names = await self._symbols(instance)
        close = get_close_matches(series.symbol.upper(), names, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        return f"{series.provider} lists no symbol {series.symbol!r}.{hint}"

    async def _listed(self, market: str, info: ProviderInfo) -> ProviderListing:
        try:
            feed = await self.feed(market, info.id)
        except PluginError as exc:
            log.info("provider %s cannot be opened: %s", info.id, exc)
            return ProviderListing(info, None)
        return ProviderListing(info, feed.capabilities)

    async def _symbols(self, instance: _Instance) -> Mapping[str, SymbolInfo]:
        async with instance.turn:
            now_ms = self._clock.now_ms()
            if instance.symbols and now_ms - instance.symbols_ms < SYMBOLS_TTL_MS:
                return instance.symbols
            if instance.failure is not None and now_ms - instance.failed_ms < SYMBOLS_PAUSE_MS:
                return self._symbols_or_raise(instance, instance.failure)
            try:
                instance.symbols = await instance.feed.symbols()
            except PluginError as exc:
                instance.failure, instance.failed_ms = exc, self._clock.now_ms()
                return self._symbols_or_raise(instance, exc)
            instance.symbols_ms, instance.failure = now_ms, None
            return instance.symbols

    @staticmethod
    def _symbols_or_raise(instance: _Instance, failure: PluginError) -> Mapping[str, SymbolInfo]:
        """An old list is better than none."""
        if not instance.symbols:
            raise failure
        return instance.symbols

    async def _instance(self, market: str, provider: str, *, sandbox: bool = False) -> _Instance:
        plugin = self._loader.find(market, provider)
        credentials = self._settings.credentials.get(provider, Credentials())
        key = InstanceKey(plugin, market, provider, _hash(credentials), sandbox)
        if key not in self._instances:
            await asyncio.shield(self._make_once(key, credentials))
        instance = self._instances[key]
        instance.used_ms = self._clock.now_ms()
        return instance

    def _make_once(self, key: InstanceKey, credentials: Credentials) -> asyncio.Task[_Instance]:
        """Concurrent first uses wait for one and the same opening."""
        task = self._making.get(key)
        if task is None:
            task = asyncio.create_task(self._make(key, credentials), name=f"open {key.market}/{key.provider}")
            self._making[key] = task
            task.add_done_callback(lambda _: self._making.pop(key, None))
        return task

    async def _make(self, key: InstanceKey, credentials: Credentials) -> _Instance:
        options = self._settings.options(key.plugin.get_plugin_key(), key.market, key.provider)
        plugin = key.plugin(
            PluginConfig(
                provider=key.provider,
                credentials=credentials,
                sandbox=key.sandbox,
                options=options,
                timeout_s=self._settings.timeout_s,
            )
        )
        try:
            await plugin.open()
        except BaseException:
            await plugin.close()
            raise
        budget = self._budget(key, plugin.capabilities.calls_per_second)
        feed = Feed(plugin, budget, self._settings.limits)
        feed.recovered = self._recovered
        instance = _Instance(feed, self._clock.now_ms())
        self._instances[key] = instance
        if self.on_change is not None:
            self.on_change()
        return instance

    def _recovered(self) -> None:
        if self.on_recovery is not None:
            self.on_recovery()

    def _budget(self, key: InstanceKey, calls_per_second: float) -> RateBudget:
        """One for a provider and credential, whatever the market; it outlives the instances, and so does a pause."""
        owner = (key.plugin.get_plugin_key(), key.provider, key.credential_hash)
        return self._budgets.setdefault(owner, RateBudget(calls_per_second))

    async def _close(self, key: InstanceKey, instance: _Instance) -> None:
        try:
            await instance.feed.plugin.close()
        except Exception:
            log.exception("provider %s did not close cleanly", key.provider)


def _with_use(
    used: Mapping[tuple[str, str], UpstreamUse], instances: Mapping[InstanceKey, _Instance]
) -> dict[tuple[str, str], UpstreamUse]:
    total = dict(used)
    for key, instance in instances.items():
        owner = (key.market, key.provider)
        total[owner] = total.get(owner, UpstreamUse()).plus(instance.feed)
    return total


@lru_cache(maxsize=256)
def _hash(credentials: Credentials) -> str:
    text = f"{credentials.key}\0{credentials.secret}\0{credentials.password}"
    return hashlib.sha256(text.encode()).hexdigest()
