"""The seam: whoever joins, leaves, comes back, or misses messages has every closed bar exactly once, in order.

The follower of the series is played by the test, with the real store, leases and log; messages to the process that
serves the clients are lost, doubled, delayed and overtaken at random.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest

from domain.bar import Bar, fold
from domain.series import Series
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import MINUTE_MS, Timeframe
from plugins.base import Capabilities
from services import live_timeframe, subscription_service
from services.bar_store import BarStore
from services.broadcast_manager import MemoryBroadcast
from services.followers import Followers
from services.live import FeedState, Forming, LiveQuery, Message, Revised, Settled, Status
from services.live_store import FeedClaim, LiveStore
from services.subscription import Subscription
from services.subscription_registry import SubscriptionRegistry
from services.subscription_service import SubscriptionService
from tests.support.clock import ManualClock
from tests.support.house import House, make_house
from tests.support.live_client import LiveClient
from tests.support.market import START_MS, random_bar, random_minutes
from tests.support.scripted import ScriptedPlugin

SERIES = Series("test", "scripted", "A/B")
HISTORY = 400
#: The live part begins here, in the middle of every bucket.
LIVE_MS = START_MS + (HISTORY - 2) * MINUTE_MS
TIMEFRAMES = [Timeframe.M1, Timeframe.M1, Timeframe.M5, Timeframe.M15, Timeframe.H1]


MINUTES_ONLY = Capabilities(timeframes=(Timeframe.M1,), bars_per_call=500, calls_per_second=10_000)


class LossyBroadcast(MemoryBroadcast):
    """What is published here reaches the listener late, twice, out of order, or not at all."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng
        self._late: list[Message] = []

    def publish(self, message: Message) -> None:
        fate = self._rng.random()
        if fate < 0.1:
            return
        if fate < 0.3:
            self._late.append(message)
            return
        super().publish(message)
        if fate < 0.4:
            super().publish(message)
        if fate < 0.6 and self._late:
            super().publish(self._late.pop(self._rng.randrange(len(self._late))))


class PlayedFollower:
    """A follower that does what the test says."""

    state = FeedState.UP
    detail = last_heard_ms = None
    reconnects = heals = 0

    @property
    def settled_ms(self) -> int:
        return self.at_ms

    def __init__(
        self, claim: FeedClaim, store: LiveStore, publish: Callable[[Message], None], *, late_s: float = 0
    ) -> None:
        self.claim = claim
        self.at_ms = LIVE_MS if claim.settled_ms is None else claim.settled_ms
        self._store = store
        self._publish = publish
        #: It takes its time, and begins afresh where another has ended.
        self._late_s = late_s
        self.begun = asyncio.Event()

    async def run(self) -> None:
        await asyncio.sleep(self._late_s)
        if self.claim.settled_ms is None or self._late_s:
            self.at_ms = LIVE_MS if self.claim.settled_ms is None else self.claim.settled_ms + 90 * MINUTE_MS
            await self._store.begin(self.claim, self.at_ms)
        await self._store.say(self.claim, FeedState.UP, None)
        self._publish(Status(self.claim.series_id, self.claim.fence, FeedState.UP))
        self.begun.set()
        await asyncio.Event().wait()

    async def settle(self, bars: list[Bar], end_ms: int) -> None:
        span = RangeSet.of(self.at_ms, end_ms)
        await self._store.settle(self.claim, start_ms=self.at_ms, end_ms=end_ms, bars=bars, answered=span)
        claim = self.claim
        self._publish(Settled(claim.series_id, claim.fence, self.at_ms, end_ms, tuple(bars)))
        self.at_ms = end_ms

    def form(self, bar: Bar) -> None:
        self._publish(Forming(self.claim.series_id, self.claim.fence, bar))

    async def correct(self, bar: Bar) -> None:
        if await self._store.correct(self.claim, [bar]):
            self._publish(Revised(self.claim.series_id))


class Stage:
    """The service with its clients, and the follower it is given."""

    def __init__(self, house: House, broadcast: MemoryBroadcast, store: LiveStore | None = None) -> None:
        self.house = house
        self.played: list[PlayedFollower] = []
        self.late_s = 0.0
        self.registry = SubscriptionRegistry(grace_s=60)
        self.store = store or LiveStore(house.store, "one")
        self.followers = Followers(self._play)
        self.service = SubscriptionService(
            house.markets,
            house.ohlcv,
            self.store,
            house.clock,
            broadcast=broadcast,
            followers=self.followers,
            registry=self.registry,
        )
        self.publish = broadcast.publish

    def _play(self, claim: FeedClaim) -> PlayedFollower:
        self.played.append(PlayedFollower(claim, self.store, self.publish, late_s=self.late_s))
        return self.played[-1]

    async def subscribe(self, client: LiveClient, timeframe: Timeframe, **options: object) -> Subscription:
        query = LiveQuery(series=SERIES, timeframe=timeframe, **options)  # type: ignore[arg-type]
        return await self.service.subscribe(query, client)

    async def join(self, client: LiveClient, timeframe: Timeframe, **options: object) -> Subscription:
        subscription = await self.subscribe(client, timeframe, **options)
        await subscription.run()
        return subscription


@asynccontextmanager
async def a_stage(
    store: BarStore, minutes: list[Bar], broadcast: MemoryBroadcast, *, capabilities: Capabilities = MINUTES_ONLY
) -> AsyncIterator[Stage]:
    clock = ManualClock(LIVE_MS + 5_000)
    house = make_house(store, clock, ScriptedPlugin({"A/B": minutes}, capabilities=capabilities))
    stage = Stage(house, broadcast)
    await stage.service.open()
    try:
        yield stage
    finally:
        await stage.service.close()
        await house.markets.close()


@pytest.fixture(autouse=True)
def _in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription_service, "LOOK_S", 0.02)
    monkeypatch.setattr(subscription_service, "HASTE_S", 0.01)
    monkeypatch.setattr(live_timeframe, "RETRY_S", 0.01)


async def until(truth: Callable[[], bool], *, or_say: Callable[[], str] = str, timeout_s: float = 20) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            while not truth():  # noqa: ASYNC110 - whatever it is that becomes true
                await asyncio.sleep(0.005)
    except TimeoutError:
        pytest.fail(or_say() or "it did not become true in time")


class Visit:
    """A client that stays for a while."""

    def __init__(self, timeframe: Timeframe, since_ms: int | None, last: int | None) -> None:
        self.client = LiveClient(pause_s=0.001, since_ms=since_ms)
        self.timeframe, self.since_ms, self.last = timeframe, since_ms, last
        self.subscription: Subscription | None = None
        self.task: asyncio.Task[None] | None = None

    async def come(self, stage: Stage) -> None:
        self.subscription = await stage.subscribe(self.client, self.timeframe, since_ms=self.since_ms, last=self.last)
        await self.subscription.run()

    async def leave(self) -> None:
        """Be gone, in the middle of coming where that is not over."""
        task, self.task = self.task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        if self.subscription is not None:
            self.subscription.close()

    def expected(self, stored: list[Bar], end_ms: int) -> list[Bar]:
        """What a client that is still here must have."""
        first_ms = self.since_ms if self.since_ms is not None else self.from_ms
        return [bar for bar in fold(stored, self.timeframe) if first_ms <= bar.ts < end_ms]

    def has(self, stored: list[Bar], end_ms: int) -> bool:
        return self.client.view == self.expected(stored, end_ms)

    def lacks(self, stored: list[Bar], end_ms: int) -> str:
        told, wanted = set(map(repr, self.client.view)), set(map(repr, self.expected(stored, end_ms)))
        return f"{self.timeframe} {self.since_ms} {self.last}: missing {wanted - told}, wrong {told - wanted}"

    def check_complete(self, punctual: list[Bar], stored: list[Bar]) -> None:
        """Up to its last bar nothing was left out, and nothing made up: also where the client has left."""
        if not self.client.closed:
            return
        end_ms = self.client.closed[-1].ts + 1
        told = {bar.ts for bar in self.client.closed}
        assert told >= {bar.ts for bar in self.expected(punctual, end_ms)}
        assert told <= {bar.ts for bar in self.expected(stored, end_ms)}

    @property
    def from_ms(self) -> int:
        """The first bar of one that did not say from when on: with `last`, it is where the snapshot begins."""
        return self.client.closed[0].ts if self.client.closed else 0


@pytest.mark.parametrize("seed", range(24))
async def test_every_client_has_every_closed_bar_once_and_in_order(
    seed: int, store: BarStore, clock: ManualClock
) -> None:
    rng = random.Random(seed)
    market = random_minutes(seed, HISTORY + 400, holes=rng.choice((0.0, 0.2)))
    truth = {bar.ts: bar for bar in market}
    async with a_stage(store, market, LossyBroadcast(rng)) as stage:
        visits: list[Visit] = []
        late: set[int] = set()
        first = LiveClient()
        await stage.join(first, Timeframe.M1)
        follower = stage.played[0]
        for _ in range(60):
            late |= await _one_step(rng, stage, follower, truth, visits)
        # To the end of every bucket.
        end_ms = Timeframe.H1.ceil(follower.at_ms + MINUTE_MS)
        stage.house.clock.advance(minutes=(end_ms - follower.at_ms) / MINUTE_MS)
        await follower.settle([bar for bar in market if follower.at_ms <= bar.ts < end_ms], end_ms)
        # Whoever has come has read what was before, and had it stored.
        await asyncio.wait_for(asyncio.gather(*(visit.task for visit in visits if visit.task is not None)), 20)
        stored = await store.read(1, Timeframe.M1, TimeRange(0, end_ms))
        for visit in visits:
            if visit.task is not None:
                await until(partial(visit.has, stored, end_ms), or_say=partial(visit.lacks, stored, end_ms))
            assert visit.client.faults == []
            visit.check_complete([bar for bar in stored if bar.ts not in late], stored)
        await until(lambda: first.view == [bar for bar in stored if bar.ts >= first.closed[0].ts])
        assert first.faults == []


async def _one_step(
    rng: random.Random, stage: Stage, follower: PlayedFollower, truth: dict[int, Bar], visits: list[Visit]
) -> set[int]:
    """Do something; the minutes that got a bar after they were closed."""
    late: set[int] = set()
    what = rng.random()
    here = [visit for visit in visits if visit.task is not None]
    if what < 0.5:
        end = follower.at_ms + rng.choice((1, 1, 1, 2, 6)) * MINUTE_MS
        stage.house.clock.advance(minutes=(end - follower.at_ms) / MINUTE_MS)
        bars = [truth[ts] for ts in range(follower.at_ms, end, MINUTE_MS) if ts in truth]
        await follower.settle(bars, end)
    elif what < 0.6:
        follower.form(random_bar(rng, follower.at_ms))
    elif what < 0.7 and follower.at_ms > LIVE_MS:
        changed = random_bar(rng, rng.randrange(LIVE_MS, follower.at_ms, MINUTE_MS))
        late = {changed.ts} - truth.keys()
        truth[changed.ts] = changed
        await follower.correct(changed)
    elif what < 0.9 or not here:
        visit = a_visit(rng, visits, follower.at_ms)
        visits.append(visit)
        visit.task = asyncio.create_task(visit.come(stage))
    else:
        await rng.choice(here).leave()
    await asyncio.sleep(rng.choice((0, 0, 0.002, 0.03)))
    return late


def a_visit(rng: random.Random, visits: list[Visit], now_ms: int) -> Visit:
    """Somebody new, or somebody who was here and goes on from the last bar."""
    gone = [visit for visit in visits if visit.task is None and visit.client.closed]
    if gone and rng.random() < 0.5:
        before = rng.choice(gone)
        return Visit(before.timeframe, before.client.closed[-1].ts, None)
    timeframe = rng.choice(TIMEFRAMES)
    how = rng.random()
    if how < 0.4:
        return Visit(timeframe, timeframe.floor(rng.randrange(START_MS, now_ms)), None)
    return Visit(timeframe, None, rng.choice((1, 5, 50)) if how < 0.7 else None)
