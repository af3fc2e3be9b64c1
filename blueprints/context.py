"""What handlers use, and how they get it: nothing is looked up at import."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol, cast

from quart import current_app

from domain.clock import Clock
from domain.errors import IncompleteError
from services.cache_manager import Cache
from services.market_service import MarketService
from services.ohlcv import OhlcvService
from services.series_summary import SeriesSummaries

#: Under this name the application holds its services.
EXTENSION = "candlery"


class HttpSettings(Protocol):
    """The settings that handlers ask for; see docs/settings.md."""

    @property
    def max_limit(self) -> int:
        """Most bars in one answer."""
        ...

    @property
    def max_symbols(self) -> int:
        """Most symbols in one request."""
        ...

    @property
    def max_coverage_buckets(self) -> int:
        """Most buckets that one coverage request may span."""
        ...

    @property
    def request_timeout_s(self) -> float:
        """For one request of a client."""
        ...


class Pingable(Protocol):
    """Something that may be out of reach."""

    async def ping(self) -> None:
        """Raise a `CandleryError` where it is."""
        ...


class Loader(Protocol):
    """What is known of plugins without any I/O."""

    @property
    def problems(self) -> Iterable[object]:
        """Plugins that could not be loaded, and why."""
        ...

    def providers(self, market: str) -> Sequence[tuple[Any, Any]]:
        """The plugin and the `ProviderInfo` of each provider of a market."""
        ...


class HttpServices(Protocol):
    """The part of the services that handlers use."""

    @property
    def config(self) -> HttpSettings:
        """Limits."""
        ...

    @property
    def clock(self) -> Clock:
        """The present."""
        ...

    @property
    def database(self) -> Pingable:
        """The database."""
        ...

    @property
    def cache(self) -> Cache:
        """The cache."""
        ...

    @property
    def loader(self) -> Loader:
        """The plugins."""
        ...

    @property
    def markets(self) -> MarketService:
        """Markets, providers and symbols."""
        ...

    @property
    def ohlcv(self) -> OhlcvService:
        """Bars and coverage."""
        ...

    @property
    def summaries(self) -> SeriesSummaries:
        """Stored series in numbers."""
        ...


def services() -> HttpServices:
    """The services of the application that handles the current request."""
    return cast("HttpServices", current_app.extensions[EXTENSION])


@asynccontextmanager
async def in_time() -> AsyncIterator[None]:
    """Bound what a request may take.

    Raises:
        IncompleteError: it took longer. What was fetched meanwhile is kept, so asking again goes on from there.
    """
    limit_s = services().config.request_timeout_s
    try:
        async with asyncio.timeout(limit_s) as bound:
            yield
    except TimeoutError as exc:
        if not bound.expired():
            raise
        msg = f"The answer was not ready within {limit_s:g} s. What was fetched is kept: ask again, or for less."
        raise IncompleteError(msg) from exc
