"""Random lives of a follower: drops, failures of provider and database, restarts, corrections. The store is the market.

What is told is a part of it, each minute once and in order; a message is missing only where a follower ended between
storing and telling.
"""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from domain.bar import Bar
from domain.errors import DatabaseUnavailableError
from domain.time_range import TimeRange
from domain.timeframe import MINUTE_MS
from plugins.base import NetworkPluginError, Page
from services.bar_store import BarStore
from services.live import Settled
from services.live_store import FeedClaim, LiveStore, Settlement
from tests.support.clock import ManualClock
from tests.support.live_plugin import part_of
from tests.support.live_scene import PATIENT, Scene, Stage, a_stage, at, until
from tests.support.market import random_bar

MINUTES = 45


@pytest.fixture
async def stage(store: BarStore, clock: ManualClock) -> AsyncIterator[Stage]:
    async with a_stage(store, clock) as made:
        yield made


class Life:
    """One follower, and what befalls it."""

    def __init__(self, seed: int, style: str, stage: Stage) -> None:
        self.rng, self.style = random.Random(seed), style
        holes = self.rng.choice((0.0, 0.1, 0.5))
        minutes = [random_bar(self.rng, at(n)) for n in range(MINUTES) if self.rng.random() >= holes]
        self.scene: Scene = stage(minutes)
        self.truth = {bar.ts: bar for bar in minutes}
        self.trouble = 0.0
        #: Followers that ended, of whatever; what they were told of last is lost with them.
        self.deaths = 0
        self.corrections: dict[int, Bar] = {}
        self.scene.plugin.fault = self.fail_sometimes

    def fail_sometimes(self, _: int, __: TimeRange) -> Page | None:
        if self.rng.random() < self.trouble:
            raise NetworkPluginError("the provider stumbles")
        return None

    async def live(self) -> None:
        await self.scene.start(timing=PATIENT)
        await self.scene.settled(-1)
        for n in range(MINUTES):
            self.trouble = self.rng.choice((0.0, 0.0, 0.3, 1.0))
            await self.restart_perhaps()
            await self.minute(at(n))
            self.correct_perhaps(n)
        self.trouble = 0.0
        self.scene.plugin.closed_door = None
        async with asyncio.timeout(30):
            while (self.scene.worker.settled_ms or 0) < at(MINUTES):
                self.scene.clock.advance(minutes=0.02)
                await asyncio.sleep(0.01)
                await self.restart_perhaps()
        await self.scene.listened()
        if self.deaths:
            for bar in self.corrections.values():
                self.scene.plugin.tell(bar, closed=True)
        await until(lambda: self.scene.plugin.is_heard() and not self.scene.worker._late)

    async def minute(self, ts: int) -> None:
        bar = self.truth.get(ts)
        for share in sorted(self.rng.random() for _ in range(3)):
            await self.to(ts + int(share * MINUTE_MS))
            if self.rng.random() < 0.06:
                self.scene.plugin.closed_door = NetworkPluginError("closed for a while")
            elif self.rng.random() < 0.3:
                self.scene.plugin.closed_door = None
            if self.rng.random() < 0.06 and self.listens:
                self.scene.plugin.fail()
            elif bar is not None and self.style != "final":
                self.tell(part_of(bar, share), False if self.style == "flags" else None)
        if bar is not None and self.style == "silent":
            self.tell(bar, None)
        await self.to(ts + MINUTE_MS)
        if bar is not None and self.style != "silent":
            self.tell(bar, True)
        await self.to(ts + MINUTE_MS + 100)

    async def to(self, instant_ms: int) -> None:
        self.scene.clock.advance(minutes=max(0, instant_ms - self.scene.clock.now_ms()) / MINUTE_MS)
        await asyncio.sleep(0.004)

    @property
    def listens(self) -> bool:
        return "A/B" in self.scene.plugin.listened

    def tell(self, bar: Bar, closed: bool | None) -> None:  # noqa: FBT001
        if self.listens:
            self.scene.plugin.tell(bar, closed=closed)

    def correct_perhaps(self, n: int) -> None:
        """The venue changes a minute of a while ago, and says so."""
        changed = at(n - self.rng.randrange(3, 10))
        if self.rng.random() < 0.15 and changed in self.truth and self.listens:
            bar = random_bar(self.rng, changed)
            self.truth[changed] = self.corrections[changed] = bar
            self.scene.plugin.market["A/B"] = sorted(
                [b for b in self.scene.plugin.market["A/B"] if b.ts != changed] + [bar], key=lambda b: b.ts
            )
            self.scene.plugin.tell(bar, closed=True)

    async def restart_perhaps(self) -> None:
        assert self.scene.task is not None
        if self.rng.random() < 0.03 or self.scene.task.done():
            self.deaths += 1
            await self.scene.stop()
            await self.scene.start(timing=PATIENT)


@pytest.mark.parametrize("style", ["flags", "silent", "final"])
@pytest.mark.parametrize("seed", range(6))
async def test_whatever_befalls_the_follower_the_store_is_the_market(
    seed: int, style: str, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = Life(seed, style, stage)
    settle = LiveStore.settle

    async def stumble(self: LiveStore, claim: FeedClaim, **options: object) -> Settlement:
        fate = life.rng.random()
        if fate < 0.15:
            raise DatabaseUnavailableError
        done = await settle(self, claim, **options)  # type: ignore[arg-type]
        if fate > 0.95:
            raise DatabaseUnavailableError
        return done

    monkeypatch.setattr(LiveStore, "settle", stumble)
    await life.live()
    scene = life.scene
    market = [life.truth[ts] for ts in sorted(life.truth)]
    assert await scene.stored(0, MINUTES) == market
    told = [message for message in scene.messages if isinstance(message, Settled)]
    ends = [at(-1), *(message.end_ms for message in told)]
    assert all(end <= message.start_ms < message.end_ms for end, message in zip(ends, told, strict=False))
    missed = sum(end != message.start_ms for end, message in zip(ends, told, strict=False))
    assert missed <= life.deaths
    assert not any(message.lost for message in told)
    spoken = {bar.ts for message in told for bar in message.bars}
    if not life.deaths:
        assert spoken >= set(life.truth)
