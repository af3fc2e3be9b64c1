"""What handlers use, and how they get it: nothing is looked up at import."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from types import TracebackType
from typing import Any, Protocol, cast

from quart import current_app

from blueprints.stream_hub import StreamHub
from domain.clock import Clock
from domain.errors import IncompleteError
from services.backfills import BackfillRequest, Job, Plan
from services.cache_manager import Cache
from services.live import LiveQuery, Sink
from services.market_service import MarketService
from services.ohlcv import OhlcvService
from services.revisions import Revisions
from services.series_summary import SeriesSummaries
from services.subscription import Subscription
from services.subscription_service import SeriesOverview

#: Under this name the application holds its services.
EXTENSION = "candlery"
#: Under this name it holds the event that is set when the server begins to end.
STOPPING = "candlery.stopping"
#: Under this name it holds the `StreamHub`, which knows the clients of the stream.
STREAM = "candlery.stream"


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

    @property
    def cors_origins(self) -> Sequence[str]:
        """Origins whose pages may call."""
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


class Backfills(Protocol):
    """Backfill jobs; see `services.backfill_manager.BackfillManager`, which says what each raises."""

    async def plan(self, request: BackfillRequest) -> Plan:
        """What a job would do."""
        ...

    async def create(self, request: BackfillRequest) -> Job:
        """Make a job."""
        ...

    async def jobs(self, *, limit: int) -> list[Job]:
        """The newest jobs, newest first."""
        ...

    async def job(self, job_id: str) -> Job:
        """One job as it stands."""
        ...

    async def pause(self, job_id: str) -> Job:
        """Begin no more chunks."""
        ...

    async def resume(self, job_id: str) -> Job:
        """Go on with a paused job."""
        ...

    async def cancel(self, job_id: str) -> Job:
        """End a job."""
        ...

    async def retry(self, job_id: str) -> Job:
        """Try again what failed."""
        ...

    def watch(self, job_id: str) -> AsyncGenerator[Job, None]:
        """The job now, and again whenever it changed, until it is over."""
        ...


class Subscriptions(Protocol):
    """Live bars; see `services.subscription_service.SubscriptionService`, which says what each raises."""

    async def subscribe(self, query: LiveQuery, sink: Sink) -> Subscription:
        """A subscription that tells the sink when it is run."""
        ...

    def overview(self) -> list[SeriesOverview]:
        """Every live series of this process."""
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
    def revisions(self) -> Revisions:
        """Whether what was read still holds."""
        ...

    @property
    def ohlcv(self) -> OhlcvService:
        """Bars and coverage."""
        ...

    @property
    def summaries(self) -> SeriesSummaries:
        """Stored series in numbers."""
        ...

    @property
    def backfills(self) -> Backfills:
        """Backfill jobs."""
        ...

    @property
    def subscriptions(self) -> Subscriptions:
        """Live bars."""
        ...


def services() -> HttpServices:
    """The services of the application that handles the current request."""
    return cast("HttpServices", current_app.extensions[EXTENSION])


def stopping() -> asyncio.Event:
    """Set when the server begins to end: answers that would go on for ever must end now."""
    return cast("asyncio.Event", current_app.extensions[STOPPING])


def stream_hub() -> StreamHub:
    """All clients of the stream."""
    return cast("StreamHub", current_app.extensions[STREAM])


class in_time:  # noqa: N801 - reads as the function that it could be, at a fifth of the time
    """Bounds what a request may take, as a context.

    Raises:
        IncompleteError: it took longer. What was fetched meanwhile is kept, so asking again goes on from there.
    """

    def __init__(self, use: HttpServices | None = None) -> None:
        """Take whose settings say how long; those of the application that handles the current request, by default."""
        self._limit_s = (use or services()).config.request_timeout_s

    async def __aenter__(self) -> None:
        """Begin."""
        self._bound = asyncio.timeout(self._limit_s)
        await self._bound.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End, and say so where that was because the time was up."""
        try:
            await self._bound.__aexit__(kind, error, trace)
        except TimeoutError as exc:
            limit = f"The answer was not ready within {self._limit_s:g} s."
            raise IncompleteError(f"{limit} What was fetched is kept: ask again, or for less.") from exc
