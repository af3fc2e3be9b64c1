"""Market plugins: one module a kind of provider, and the loader that finds them here and among installed packages."""

import importlib
import inspect
import logging
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from types import ModuleType
from typing import NamedTuple, Protocol, TypeVar

from domain.errors import UnknownMarketError, UnknownProviderError
from plugins.base import MarketPlugin, ProviderInfo

log = logging.getLogger(__name__)

_T = TypeVar("_T")

#: Packages name their plugin classes in this group of entry points.
ENTRY_POINT_GROUP = "candlery.plugins"


class PluginProblem(NamedTuple):
    """A plugin, or a part of one, that is left out, and why."""

    name: str
    detail: str


class EntryPoint(Protocol):
    """What an installed package announces; see `importlib.metadata.EntryPoint`."""

    @property
    def name(self) -> str:
        """Its name within the group."""
        ...

    @property
    def value(self) -> str:
        """Where the class is: `package.module:Class`."""
        ...

    def load(self) -> object:
        """Import it."""
        ...


class _BadPluginError(Exception):
    """The class is no plugin that can be served."""


class PluginLoader:
    """Finds plugin classes and knows which one serves a market and provider together.

    The modules of this package come first, then entry points by name. What is broken is logged, listed in
    `problems` and left out; the rest is served.
    """

    def __init__(
        self,
        options: Mapping[str, Mapping[str, object]],
        *,
        modules: Iterable[str] | None = None,
        entry_points: Callable[[], Iterable[EntryPoint]] | None = None,
    ) -> None:
        """Take the settings by plugin key, and where to look when it is not here and in the installed packages."""
        self._options = options
        self._modules = modules
        self._entry_points = entry_points or _installed_entry_points
        self._by_key: dict[str, type[MarketPlugin]] = {}
        self._by_market: dict[str, dict[str, tuple[type[MarketPlugin], ProviderInfo]]] = {}
        #: What was left out by the last `load()`.
        self.problems: list[PluginProblem] = []

    def load(self) -> Sequence[PluginProblem]:
        """Look for plugins anew; return what had to be left out. Imports them, and makes no instance."""
        self._by_key, self._by_market, self.problems = {}, {}, []
        for name, found in self._found():
            try:
                self._add(name, found)
            except _BadPluginError as exc:
                self._leave_out(name, str(exc))
        return self.problems

    def markets(self) -> tuple[str, ...]:
        """Every market that some plugin serves, by name."""
        return tuple(sorted(self._by_market))

    def providers(self, market: str) -> list[tuple[type[MarketPlugin], ProviderInfo]]:
        """The providers of a market and the plugins that serve them.

        Raises:
            UnknownMarketError: no plugin serves the market.
        """
        if market not in self._by_market:
            detail = _unknown("There is no market", market, self.markets(), "Markets")
            raise UnknownMarketError(detail)
        return list(self._by_market[market].values())

    def find(self, market: str, provider: str) -> type[MarketPlugin]:
        """The plugin that serves a provider of a market.

        Raises:
            UnknownMarketError, UnknownProviderError: there is none; says what there is.
        """
        served = self._by_market.get(market)
        if served is None or provider not in served:
            served = {info.id: (plugin, info) for plugin, info in self.providers(market)}
            detail = _unknown(f"The market {market!r} has no provider", provider, sorted(served), "Providers")
            raise UnknownProviderError(detail)
        return served[provider][0]

    def _found(self) -> Iterator[tuple[str, object]]:
        """Candidates with the names that problems are reported under."""
        names = _own_modules() if self._modules is None else self._modules
        for name in names:
            module = self._guarded(name, partial(importlib.import_module, name))
            if module is not None:
                yield from ((_path(found), found) for found in _classes_of(module))
        entry_points = self._guarded(ENTRY_POINT_GROUP, lambda: sorted(self._entry_points(), key=lambda one: one.name))
        for entry_point in entry_points or ():
            found = self._guarded(entry_point.name, entry_point.load)
            if found is not None:
                yield entry_point.name, found

    def _guarded(self, name: str, action: Callable[[], _T]) -> _T | None:
        """Run code that others wrote, which may do anything, leaving the process included."""
        try:
            return action()
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - the edge to others' code; it is logged
            self._leave_out(name, f"it cannot be loaded: {_told(exc)}")
            return None

    def _add(self, name: str, found: object) -> None:
        plugin = _checked_class(found)
        key = _key_of(plugin)
        other = self._by_key.get(key)
        if other is plugin:
            return
        if other is not None:
            raise _BadPluginError(f"its key {key!r} is taken by {_path(other)}")
        markets = _names(_asked(plugin.get_supported_markets, "get_supported_markets()"))
        listing = partial(plugin.list_configurable_providers, self._options.get(key, {}))
        providers = _provider_infos(_asked(listing, "list_configurable_providers()"))
        self._by_key[key] = plugin
        for market in markets:
            self._serve(name, market, plugin, providers)

    def _serve(self, name: str, market: str, plugin: type[MarketPlugin], infos: Sequence[ProviderInfo]) -> None:
        served = self._by_market.setdefault(market, {})
        for info in infos:
            if info.id in served:
                owner = _path(served[info.id][0])
                self._leave_out(name, f"its provider {info.id!r} of the market {market!r} is served by {owner}")
            else:
                served[info.id] = (plugin, info)

    def _leave_out(self, name: str, detail: str) -> None:
        log.error("plugin %s is left out: %s", name, detail)
        self.problems.append(PluginProblem(name, detail))


def _own_modules() -> list[str]:
    return [f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__) if module.name != "base"]


def _installed_entry_points() -> Iterable[EntryPoint]:
    metadata = importlib.import_module("importlib.metadata")
    found: Iterable[EntryPoint] = metadata.entry_points(group=ENTRY_POINT_GROUP)
    return found


def _classes_of(module: ModuleType) -> list[type[MarketPlugin]]:
    """Plugin classes that the module itself defines; a leading underscore marks a base for others."""
    return [
        member
        for name, member in vars(module).items()
        if isinstance(member, type)
        and issubclass(member, MarketPlugin)
        and member.__module__ == module.__name__
        and not name.startswith("_")
    ]


def _checked_class(found: object) -> type[MarketPlugin]:
    if not isinstance(found, type) or not issubclass(found, MarketPlugin):
        raise _BadPluginError(f"{found!r} is not a subclass of plugins.base.MarketPlugin")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise _BadPluginError(f"{_path(found)} does not define {missing}")
    return found


def _key_of(plugin: type[MarketPlugin]) -> str:
    key: object = _asked(plugin.get_plugin_key, "get_plugin_key()")
    if not isinstance(key, str) or not key:
        raise _BadPluginError(f"get_plugin_key() gave {key!r}, not a name")
    return key


def _asked(question: Callable[[], _T], name: str) -> _T:
    """What the plugin answers; it may do anything."""
    try:
        return question()
    except (Exception, SystemExit) as exc:
        raise _BadPluginError(f"{name} failed: {_told(exc)}") from exc


def _names(markets: object) -> Sequence[str]:
    if isinstance(markets, list | tuple) and markets and all(isinstance(one, str) and one for one in markets):
        return markets
    raise _BadPluginError(f"get_supported_markets() gave {markets!r}, not a list of names")


def _provider_infos(listed: object) -> Sequence[ProviderInfo]:
    if isinstance(listed, list | tuple) and all(isinstance(one, ProviderInfo) and one.id for one in listed):
        return listed
    raise _BadPluginError(f"list_configurable_providers() gave {listed!r}, not a list of ProviderInfo")


def _path(plugin: type[MarketPlugin]) -> str:
    return f"{plugin.__module__}.{plugin.__qualname__}"


def _told(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}"


def _unknown(claim: str, name: str, names: Sequence[str], kind: str) -> str:
    close = get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return f"{claim} {name!r}.{hint} {kind}: {', '.join(names) or 'none'}."
