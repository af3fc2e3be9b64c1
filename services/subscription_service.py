"""Live bars for any number of clients: one upstream a series, in whichever process, and channels that share it."""

import asyncio
import logging

import msgspec

from domain.clock import Clock
from domain.errors import CandleryError, DatabaseUnavailableError
from domain.series import Series
from domain.timeframe import Timeframe
from services.broadcast_manager import BroadcastManager
from services.followers import Follower, Followers
from services.live import FeedState, LiveQuery, Message, Sink
from services.live_channel import LiveChannel
from services.live_reader import LiveReader
from services.live_store import LiveStore, Want
from services.market_service import Listing, MarketService
from services.ohlcv import OhlcvService, check_timeframe
from services.subscription import Subscription
from services.subscription_registry import SubscriptionRegistry

log = logging.getLogger(__name__)

#: Between two looks into the database, and while somebody waits for a first one, in seconds.
LOOK_S = 1.0
HASTE_S = 0.1
#: Answers in the making at once, so that connections to the database are left for others.
READS = 4
#: How long a client waits for a series to be followed.
READY_S = 10.0


class SeriesOverview(msgspec.Struct, frozen=True):
    """A series that is live in this process: it has clients here, or its upstream.

    Attributes:
        owner_here: this process has the upstream.
        clients: subscriptions by timeframe.
        settled_ms: every minute before is closed; None: not known yet.
        last_event_ms: when anything was heard last, by this process's clock.
    """

    series: Series
    state: FeedState
    detail: str | None
    owner_here: bool
    clients: dict[Timeframe, int]
    settled_ms: int | None
    last_event_ms: int | None


class SubscriptionService:
    """Hands out subscriptions, and keeps what they need: leases, workers, channels."""

    def __init__(
        self,
        markets: MarketService,
        ohlcv: OhlcvService,
        store: LiveStore,
        clock: Clock,
        *,
        broadcast: BroadcastManager,
        followers: Followers,
        registry: SubscriptionRegistry,
    ) -> None:
        """Take the parts; nothing runs before `open()`."""
        self._markets = markets
        self._ohlcv = ohlcv
        self._store = store
        self._clock = clock
        self._broadcast = broadcast
        self.followers = followers
        self._registry = registry
        self._woken = asyncio.Event()
        #: Of clients, who may ask for years, and of live series, which must not wait for them.
        self._client_reads, self._live_reads = asyncio.Semaphore(READS), asyncio.Semaphore(READS)
        self._beating: asyncio.Task[None] | None = None
        self._away = False
        self._signed_on = False

    async def open(self) -> None:
        """Begin to look after what clients want."""
        self._broadcast.listen(self._hear)
        self._broadcast.on_trouble = self._woken.set
        await self._broadcast.open()
        self._beating = asyncio.create_task(self._beat(), name="look after live series")

    async def close(self) -> None:
        """Let every upstream go, so that other processes can take over at once."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait({self._beating})
            self._beating = None
        await self.followers.stop(self.followers.owned)
        try:
            async with asyncio.timeout(1):
                await self._store.sign_off()
        except (CandleryError, TimeoutError) as exc:
            log.warning("live series were not handed on, and wait for their leases to end: %s", exc)
        for channel in self._registry:
            channel.close()
        await self._broadcast.close()

    async def subscribe(self, query: LiveQuery, sink: Sink) -> Subscription:
        """A subscription that tells the sink when it is run.

        Raises:
            UnknownNameError, UnsupportedTimeframeError: the query is wrong.
            PluginError: nothing is stored of the series and its provider cannot be asked.
            DatabaseUnavailableError: nothing can be told now.
        """
        listing = await self._markets.find(query.series)
        check_timeframe(listing, query.timeframe)
        channel = await self._channel(listing)
        try:
            await self._until_ready(channel)
            return _Held(
                query, sink, channel, LiveReader(self._ohlcv, query.series, self._client_reads), self._registry
            )
        except BaseException:
            self._registry.release(channel)
            raise

    def overview(self) -> list[SeriesOverview]:
        """Every live series of this process, also those that it follows for the clients of others."""
        followed = {worker.claim.series_id: worker for worker in self.followers.working}
        here = [_overview(channel, owner_here=channel.series_id in followed) for channel in self._registry]
        known = {channel.series_id for channel in self._registry}
        return here + [_followed(worker) for series_id, worker in followed.items() if series_id not in known]

    async def _channel(self, listing: Listing) -> LiveChannel:
        """The channel of a series, held."""
        series_id = listing.stored.id
        channel = self._registry.get(series_id)
        if channel is None:
            channel = LiveChannel(
                series_id,
                listing.series,
                listing.feed.capabilities if listing.feed else None,
                reader=LiveReader(self._ohlcv, listing.series, self._live_reads),
                revisions=self._store.revisions,
                clock=self._clock,
            )
            self._registry.hold(channel)
            await self._broadcast.follow(series_id)
            self._woken.set()
        else:
            self._registry.hold(channel)
            if channel.capabilities is None and listing.feed is not None:
                channel.capabilities = listing.feed.capabilities
        return channel

    async def _until_ready(self, channel: LiveChannel) -> None:
        try:
            async with asyncio.timeout(READY_S):
                await channel.ready.wait()
        except TimeoutError:
            words = f"{channel.series} was not taken up within {READY_S:g} s; the database may be out of reach."
            raise DatabaseUnavailableError(words) from None

    def _hear(self, message: Message) -> None:
        channel = self._registry.get(message.series_id)
        if channel is None:
            return
        if not channel.ready.is_set():
            # Somebody follows it: the database knows how far.
            self._woken.set()
        channel.hear(message)

    async def _beat(self) -> None:
        """Look after everything, again and again."""
        while True:
            self._woken.clear()
            try:
                await self._look()
                if self._away:
                    log.info("live series: the database answers again")
                self._away = False
            except DatabaseUnavailableError as exc:
                log.log(logging.DEBUG if self._away else logging.WARNING, "live series wait for the database: %s", exc)
                self._away = True
            except Exception:
                log.exception("live series could not be looked after; it is tried again")
            await self._pause()

    async def _pause(self) -> None:
        hasty = any(not channel.ready.is_set() for channel in self._registry)
        try:
            async with asyncio.timeout(HASTE_S if hasty else LOOK_S):
                # Not at once, so that many who come together are looked after together.
                await asyncio.sleep(HASTE_S / 10)
                await self._woken.wait()
        except TimeoutError:
            return

    async def _look(self) -> None:
        """Say what is wanted, keep what is owned, take what is free, and learn how far everything is."""
        for channel in self._registry.expire():
            channel.close()
            await self._broadcast.unfollow(channel.series_id)
        owned = self.followers.owned
        if not (owned or len(self._registry) or self._signed_on):
            return
        wants = [Want(channel.series_id, _line(channel)) for channel in self._registry]
        tick = await self._store.tick(wants, owned)
        self._signed_on = bool(wants)
        unwanted = [series_id for series_id in owned if series_id in tick.kept - tick.wanted]
        # First: a series that was lost may be among the claims again.
        await self.followers.stop([series_id for series_id in owned if series_id not in tick.kept] + unwanted)
        for claim in tick.claims:
            self.followers.start(claim)
        if unwanted:
            await self._store.release(unwanted)
        for channel in self._registry:
            row = tick.feeds.get(channel.series_id)
            if row is not None:
                channel.learn(row)


class _Held(Subscription):
    """A subscription that keeps its channel in use."""

    def __init__(
        self, query: LiveQuery, sink: Sink, channel: LiveChannel, reader: LiveReader, registry: SubscriptionRegistry
    ) -> None:
        super().__init__(query, sink, channel, reader)
        self._registry: SubscriptionRegistry | None = registry

    def close(self) -> None:
        """Tell nothing more, and let the channel go."""
        registry, self._registry = self._registry, None
        super().close()
        if registry is not None:
            registry.release(self.channel)


def _line(channel: LiveChannel) -> str | None:
    """What processes may have one of at a time: the connection of an account."""
    able = channel.capabilities
    return f"{channel.series.market}/{channel.series.provider}" if able is not None and able.one_stream else None


def _followed(worker: Follower) -> SeriesOverview:
    return SeriesOverview(
        series=worker.claim.series,
        state=worker.state,
        detail=worker.detail,
        owner_here=True,
        clients={},
        settled_ms=worker.settled_ms,
        last_event_ms=worker.last_heard_ms,
    )


def _overview(channel: LiveChannel, *, owner_here: bool) -> SeriesOverview:
    return SeriesOverview(
        series=channel.series,
        state=channel.state,
        detail=channel.detail,
        owner_here=owner_here,
        clients={timeframe: feed.listeners for timeframe, feed in channel.feeds.items()},
        settled_ms=channel.frontier_ms if channel.ready.is_set() else None,
        last_event_ms=channel.last_event_ms,
    )
