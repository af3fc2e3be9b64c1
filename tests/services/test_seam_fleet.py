"""The seam between processes: whoever follows a series dies, freezes, or hands it on, and no client notices.

Two services on one database play two processes. Followers are played by the test, as in `test_seam`; what one process
tells the other is lost, doubled, delayed and overtaken at random.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import count

import pytest

from domain.time_range import TimeRange
from domain.timeframe import MINUTE_MS, Timeframe
from services import live_timeframe, subscription_service
from services.bar_store import BarStore
from services.broadcast_manager import MemoryBroadcast
from services.database import FencedError
from services.live import Message
from services.live_store import FeedClaim, LiveStore, Tick
from tests.services.test_seam import HISTORY, LIVE_MS, MINUTES_ONLY, PlayedFollower, Stage, Visit, a_visit, until
from tests.support.clock import ManualClock
from tests.support.house import make_house
from tests.support.market import random_bar, random_minutes
from tests.support.scripted import ScriptedPlugin

LEASE_S = 0.3


@pytest.fixture(autouse=True)
def _in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription_service, "LOOK_S", 0.05)
    monkeypatch.setattr(subscription_service, "HASTE_S", 0.02)
    monkeypatch.setattr(live_timeframe, "RETRY_S", 0.01)


class LossyWay(MemoryBroadcast):
    """What the other process tells comes late, twice, out of order, or not at all."""

    def __init__(self, hub: set[MemoryBroadcast], rng: random.Random) -> None:
        super().__init__(hub)
        self._rng = rng
        self._late: list[Message] = []

    def hear(self, message: Message) -> None:
        fate = self._rng.random()
        if fate < 0.1:
            return
        if fate < 0.3:
            self._late.append(message)
            return
        super().hear(message)
        if fate < 0.4:
            super().hear(message)
        if fate < 0.6 and self._late:
            super().hear(self._late.pop(self._rng.randrange(len(self._late))))


class FreezingStore(LiveStore):
    """Gives no sign of life while it is frozen."""

    def __init__(self, store: BarStore, owner: str) -> None:
        super().__init__(store, owner, lease_s=LEASE_S)
        self.thawed = asyncio.Event()
        self.thawed.set()

    async def tick(self, *args: object) -> Tick:
        await self.thawed.wait()
        return await super().tick(*args)  # type: ignore[arg-type]


class Fencible(PlayedFollower):
    """Ends when the series is another's."""

    ended = False

    async def run(self) -> None:
        with suppress(FencedError):
            try:
                await super().run()
            finally:
                self.ended = True


class Process(Stage):
    """A server without HTTP: caches of its own, and a way to the others; the database is shared."""

    def __init__(self, town: "Town", name: str) -> None:
        plugin = ScriptedPlugin({"A/B": town.market}, capabilities=MINUTES_ONLY)
        house = make_house(town.store, town.clock, plugin)
        self.frozen_store = FreezingStore(town.store, name)
        self.broadcast = LossyWay(town.hub, town.rng)
        super().__init__(house, self.broadcast, self.frozen_store)
        self.visits: list[Visit] = []

    def _play(self, claim: FeedClaim) -> PlayedFollower:
        self.played.append(Fencible(claim, self.store, self.publish))
        return self.played[-1]

    @property
    def is_frozen(self) -> bool:
        return not self.frozen_store.thawed.is_set()

    def freeze(self) -> None:
        """Give no sign of life."""
        self.frozen_store.thawed.clear()

    def thaw(self) -> None:
        """Go on as if nothing had been."""
        self.frozen_store.thawed.set()

    def receive(self, visit: Visit) -> None:
        """Let a client come, and stay."""
        self.visits.append(visit)
        visit.task = asyncio.create_task(visit.come(self))

    async def die(self) -> None:
        """End without a word to anybody: leases and wants stay behind."""
        await self.broadcast.close()
        beating = self.service._beating
        assert beating is not None
        beating.cancel()
        await asyncio.wait({beating})
        await self.followers.stop(self.followers.owned)
        await self._part()
        for channel in self.registry:
            channel.close()

    async def stop(self) -> None:
        """End in order: what it followed is free at once."""
        self.thaw()
        await self.service.close()
        await self._part()

    async def _part(self) -> None:
        for visit in self.visits:
            await visit.leave()
        await self.house.markets.close()


class Town:
    """Two processes, the market, and everybody who ever was a client."""

    def __init__(self, store: BarStore, clock: ManualClock, seed: int) -> None:
        self.store, self.clock = store, clock
        self.rng = random.Random(seed)
        self.market = random_minutes(seed, HISTORY + 600, holes=self.rng.choice((0.0, 0.2)))
        self.truth = {bar.ts: bar for bar in self.market}
        #: Minutes that the venue changed, or gave late; its REST does not know of that.
        self.changed: set[int] = set()
        self.hub: set[MemoryBroadcast] = set()
        self.processes: list[Process] = []
        self.visits: list[Visit] = []
        self._names = count()

    async def begin(self) -> None:
        """A process more, with a client that stays; it goes on where one that has left ended."""
        process = Process(self, f"process {next(self._names)}")
        await process.service.open()
        self.processes.append(process)
        gone = [visit for visit in self.visits if visit.task is None and visit.client.closed]
        since_ms = gone[-1].client.closed[-1].ts if gone else LIVE_MS
        self.come(Visit(Timeframe.M1, since_ms, None), process)

    def come(self, visit: Visit, process: Process) -> None:
        self.visits.append(visit)
        process.receive(visit)

    async def replace(self, *, kill: bool) -> None:
        """One of the two ends, and another one comes in its place."""
        process = self.rng.choice(self.processes)
        self.processes.remove(process)
        await (process.die() if kill else process.stop())
        await self.begin()

    @property
    def followers(self) -> list[Fencible]:
        """All that believe to follow the series; the last one does, if any."""
        played = [one for process in self.processes for one in process.played]
        begun = [one for one in played if isinstance(one, Fencible) and one.begun.is_set() and not one.ended]
        return sorted(begun, key=lambda one: one.claim.fence)

    async def settle(self, minutes: int) -> None:
        """The follower closes minutes; whoever was it before tries to close them falsely."""
        *former, present = self.followers or [None]
        if present is None:
            return
        end_ms = present.at_ms + minutes * MINUTE_MS
        bars = [self.truth[ts] for ts in range(present.at_ms, end_ms, MINUTE_MS) if ts in self.truth]
        self.clock._now_ms = max(self.clock.now_ms(), end_ms + 5_000)
        for follower in former:
            follower.at_ms = present.at_ms
            with pytest.raises(FencedError):
                await follower.settle([random_bar(self.rng, present.at_ms)], end_ms)
        # Another one may have claimed it a moment ago.
        with suppress(FencedError):
            await present.settle(bars, end_ms)

    async def correct(self) -> None:
        """The venue changes a minute, or gives it late."""
        for follower in self.followers[-1:]:
            if follower.at_ms > LIVE_MS:
                changed = random_bar(self.rng, self.rng.randrange(LIVE_MS, follower.at_ms, MINUTE_MS))
                try:
                    await follower.correct(changed)
                except FencedError:
                    continue
                self.changed.add(changed.ts)

    async def step(self) -> None:
        """Something happens."""
        rng, what = self.rng, self.rng.random()
        if what < 0.5:
            await self.settle(rng.choice((1, 1, 1, 2, 6)))
        elif what < 0.58:
            for follower in self.followers:
                follower.form(random_bar(rng, follower.at_ms))
        elif what < 0.65:
            await self.correct()
        elif what < 0.8:
            now_ms = max((one.at_ms for one in self.followers), default=LIVE_MS)
            self.come(a_visit(rng, self.visits, now_ms), rng.choice(self.processes))
        elif what < 0.86:
            for visit in rng.sample(self.visits, 1):
                await visit.leave()
        elif what < 0.9:
            await self.replace(kill=rng.random() < 0.6)
        else:
            process = rng.choice(self.processes)
            process.thaw() if process.is_frozen else process.freeze()
        await asyncio.sleep(rng.choice((0, 0.002, 0.03, 0.1)))

    async def end(self) -> int:
        """Close minutes to the end of every bucket; where that is."""
        for process in self.processes:
            process.thaw()
        while True:
            await until(lambda: bool(self.followers))
            at_ms = self.followers[-1].at_ms
            end_ms = Timeframe.H1.ceil(at_ms + 1)
            fence = self.followers[-1].claim.fence
            await self.settle((end_ms - at_ms) // MINUTE_MS)
            if self.followers and (self.followers[-1].claim.fence, self.followers[-1].at_ms) == (fence, end_ms):
                return end_ms


@asynccontextmanager
async def a_town(store: BarStore, clock: ManualClock, seed: int) -> AsyncIterator[Town]:
    clock._now_ms = LIVE_MS + 5_000
    town = Town(store, clock, seed)
    await town.begin()
    await town.begin()
    try:
        yield town
    finally:
        for process in town.processes:
            await process.stop()


@pytest.mark.parametrize("seed", range(12))
async def test_whoever_follows_dies_or_freezes_every_client_has_every_closed_bar_once_and_in_order(
    seed: int, store: BarStore, clock: ManualClock
) -> None:
    async with a_town(store, clock, seed) as town:
        for _ in range(45):
            await town.step()
        end_ms = await town.end()
        # Whoever has come has read what was before, and had it stored.
        await asyncio.wait_for(asyncio.gather(*(visit.task for visit in town.visits if visit.task is not None)), 20)
        stored = await store.read(1, Timeframe.M1, TimeRange(0, end_ms))
        assert [bar for bar in stored if bar.ts >= LIVE_MS and bar.ts not in town.changed] == [
            bar for ts, bar in sorted(town.truth.items()) if LIVE_MS <= ts < end_ms and ts not in town.changed
        ]
        punctual = [bar for bar in stored if bar.ts not in town.changed]
        for visit in town.visits:
            if visit.task is not None:
                await until(partial(visit.has, stored, end_ms), or_say=partial(visit.lacks, stored, end_ms))
            assert visit.client.faults == []
            visit.check_complete(punctual, stored)


async def test_a_process_that_overslept_and_finds_its_series_free_again_follows_it_once(
    store: BarStore, clock: ManualClock
) -> None:
    async with a_town(store, clock, 0) as town:
        await until(lambda: len(town.followers) == 1)
        one, other = sorted(town.processes, key=lambda process: len(process.played), reverse=True)
        one.freeze()
        await until(lambda: [follower.begun.is_set() for follower in other.played] == [True])
        town.processes.remove(other)
        await other.stop()
        one.thaw()
        await until(lambda: len(one.played) > 1 and one.played[-1].begun.is_set())
        before, now = one.played
        assert one.followers.owned == [1]
        assert isinstance(before, Fencible)
        assert before.ended
        assert (before.claim.fence, now.claim.fence) == (1, 3)
