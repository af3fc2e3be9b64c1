"""A follower at work: on a real database, with a scripted provider, and with all that it publishes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise

from domain.bar import Bar
from domain.series import Series, Verdict
from domain.time_range import TimeRange
from domain.timeframe import HOUR_MS, MINUTE_MS, Timeframe
from plugins.base import Capabilities, NetworkPluginError, Page, RateLimitPluginError
from services.bar_store import BarStore
from services.cache_manager import Cache
from services.live import FeedState, Forming, LostRange, Message, Revised, Settled, Status
from services.live_store import FeedClaim, LiveStore, Want
from services.sessions import InMemorySessionRepository, SessionService
from services.subscription_worker import SubscriptionWorker
from services.upstream import WorkerTiming
from tests.support.clock import ManualClock
from tests.support.house import House, make_house
from tests.support.live_plugin import STREAMED, LivePlugin, flat
from tests.support.market import START_MS

SERIES = Series("test", "scripted", "A/B")
#: A Tuesday, 03:00 UTC.
LIVE_MS = START_MS + 3 * HOUR_MS
FAST = WorkerTiming(
    spread_ms=0,
    backoff_s=0.01,
    backoff_limit_s=0.05,
    ask_backoff_s=0.01,
    ask_backoff_limit_s=0.03,
    heal_patience_s=0.3,
    crowded_patience_s=30,
    poll_s=0.01,
    stream_again_s=0.3,
    database_backoff_s=0.01,
    database_backoff_limit_s=0.03,
    look_s=0.02,
)
PATIENT = replace(FAST, heal_patience_s=600)


def at(n: float) -> int:
    """An instant, in minutes since the live part begins."""
    return LIVE_MS + int(n * MINUTE_MS)


def bars_of(first: int, last: int) -> list[Bar]:
    """A bar each minute, from one to another."""
    return [flat(at(n), 100 + n) for n in range(first, last)]


async def until(truth: Callable[[], object], *, timeout_s: float = 20) -> None:
    async with asyncio.timeout(timeout_s):
        while not truth():  # noqa: ASYNC110 - whatever it is that becomes true
            await asyncio.sleep(0.005)


class Follow:
    """A worker on a real database, and all that it published."""

    def __init__(self, house: House, clock: ManualClock, series: Series = SERIES) -> None:
        self.house, self.clock, self.series = house, clock, series
        self.live = LiveStore(house.store, "me", lease_s=600)
        self.messages: list[Message] = []
        self.sessions = SessionService(InMemorySessionRepository(), clock=clock)
        self.worker: SubscriptionWorker
        self.task: asyncio.Task[None] | None = None
        self.claim: FeedClaim

    async def start(self, *, timing: WorkerTiming = FAST) -> None:
        """Claim the series, and follow it."""
        series_id = (await self.house.markets.find(self.series)).stored.id
        await self.live.release([series_id])
        (self.claim,) = (await self.live.tick([Want(series_id, None)], [])).claims
        self.worker = SubscriptionWorker(
            self.claim,
            markets=self.house.markets,
            ohlcv=self.house.ohlcv,
            store=self.live,
            cache=self.house.cache,
            publish=self.messages.append,
            clock=self.clock,
            sessions=self.sessions,
            timing=timing,
        )
        self.task = asyncio.create_task(self.worker.run())

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait({self.task}, timeout=10)
            assert self.task.done()

    async def is_up(self) -> None:
        await until(lambda: self.worker.state is FeedState.UP)

    @property
    def closed(self) -> list[Bar]:
        """All bars told as closed; what tells of them must join without a seam."""
        told = [message for message in self.messages if isinstance(message, Settled)]
        assert all(one.end_ms == two.start_ms for one, two in pairwise(told))
        return [bar for message in told for bar in message.bars]

    @property
    def lost(self) -> list[LostRange]:
        return [part for message in self.messages if isinstance(message, Settled) for part in message.lost]

    @property
    def states(self) -> list[FeedState]:
        return [message.state for message in self.messages if isinstance(message, Status)]

    @property
    def formed(self) -> list[Bar]:
        return [message.bar for message in self.messages if isinstance(message, Forming)]

    @property
    def revised(self) -> int:
        return sum(isinstance(message, Revised) for message in self.messages)

    async def read(self, start_ms: int, end_ms: int) -> list[Bar]:
        return await self.house.store.read(self.claim.series_id, Timeframe.M1, TimeRange(start_ms, end_ms))


class Scene(Follow):
    """A follow of a scripted provider, in minutes from the beginning of the live part on."""

    def __init__(self, house: House, plugin: LivePlugin, clock: ManualClock) -> None:
        super().__init__(house, clock)
        self.plugin = plugin

    async def start(self, *, timing: WorkerTiming = FAST) -> None:
        if self.clock.now_ms() < at(30):
            # So that the rhythm of the series is known.
            await self.house.bars(start_ms=at(-180), end_ms=at(-2))
        await super().start(timing=timing)

    async def listened(self) -> None:
        await until(lambda: "A/B" in self.plugin.listened)

    async def begin(self, **options: WorkerTiming) -> None:
        """Start, and speak half a minute before the first one of interest."""
        self.to(-0.5)
        await self.start(**options)
        await self.listened()
        self.plugin.tell(flat(at(-1), 99), venue_ms=at(-0.5))
        await self.is_up()
        self.to(0.1)
        await self.settled(0)

    def to(self, n: float) -> None:
        """Let it be that time."""
        self.clock.advance(minutes=(at(n) - self.clock.now_ms()) / MINUTE_MS)

    def live_bar(self, bar: Bar, **options: object) -> None:
        """The stream tells of a bar, a second after the minute began, or ended if it is final."""
        final = options.get("closed") is True
        self.clock.advance(minutes=max(0, (bar.ts + (MINUTE_MS if final else 1_000) - self.clock.now_ms())) / MINUTE_MS)
        self.plugin.tell(bar, **options)  # type: ignore[arg-type]

    async def settled(self, n: int) -> None:
        await until(lambda: self.worker.settled_ms == at(n))

    async def stored(self, first: int = 0, last: int = 1_000) -> list[Bar]:
        return await self.read(at(first), at(last))

    async def verdicts(self, first: int, last: int) -> list[tuple[int, int, Verdict]]:
        out: list[tuple[int, int, Verdict]] = []
        for part, verdict, *_ in await self.house.coverage(at(first), at(last)):
            start, end = ((ms - LIVE_MS) // MINUTE_MS for ms in part)
            joins = out and out[-1][2] is verdict
            out.append((out.pop()[0] if joins else start, end, verdict))
        return out

    def questions(self) -> list[TimeRange]:
        return [wanted for _, _, wanted in self.plugin.calls]


Stage = Callable[..., Scene]


@asynccontextmanager
async def a_stage(store: BarStore, clock: ManualClock) -> AsyncIterator[Stage]:
    """Makes scenes and clears them away."""
    scenes: list[Scene] = []

    def make(
        minutes: list[Bar] | None = None,
        *,
        capabilities: Capabilities = STREAMED,
        calendar: str | None = None,
        cache: Cache | None = None,
    ) -> Scene:
        clock.advance(minutes=(at(0) - clock.now_ms()) / MINUTE_MS)
        before = [flat(at(n), 50) for n in range(-180, 0)]
        plugin = LivePlugin({"A/B": [*before, *(minutes or [])]}, clock, capabilities=capabilities, calendar=calendar)
        scene = Scene(make_house(store, clock, plugin, cache=cache), plugin, clock)
        scenes.append(scene)
        return scene

    yield make
    for scene in scenes:
        await scene.stop()
        assert scene.plugin.listened == set()
        await scene.house.markets.close()


def is_down(_: int, __: TimeRange) -> Page | None:
    raise NetworkPluginError("the provider is down")


def is_crowded(_: int, __: TimeRange) -> Page | None:
    raise RateLimitPluginError("too many calls", retry_after_s=0.01)
