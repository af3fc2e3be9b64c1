"""The follower of a series: nothing closed without evidence, nothing lost, nothing told before it is stored."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from domain.bar import Bar
from domain.errors import DatabaseUnavailableError
from domain.series import Verdict
from domain.time_range import RangeSet
from domain.timeframe import MINUTE_MS
from plugins.base import (
    AuthenticationPluginError,
    NetworkPluginError,
    RateLimitPluginError,
)
from services.bar_store import BarStore
from services.cache_manager import MemoryCache
from services.live import FeedState, LostRange, Settled
from services.live_store import LiveStore, Want
from tests.support.clock import ManualClock
from tests.support.live_plugin import flat, part_of
from tests.support.live_scene import (
    FAST,
    LIVE_MS,
    PATIENT,
    SERIES,
    Stage,
    a_stage,
    at,
    bars_of,
    is_crowded,
    is_down,
    until,
)


@pytest.fixture
async def stage(store: BarStore, clock: ManualClock) -> AsyncIterator[Stage]:
    async with a_stage(store, clock) as made:
        yield made


# Evidence


async def test_what_the_venue_calls_final_is_stored_and_then_told(stage: Stage) -> None:
    scene = stage()
    await scene.begin()
    for bar in bars_of(0, 3):
        scene.live_bar(part_of(bar, 0.5), closed=False)
        scene.live_bar(bar, closed=True, venue_ms=bar.ts + MINUTE_MS + 7)
    await scene.settled(3)
    assert scene.closed[-3:] == bars_of(0, 3) == await scene.stored()
    assert scene.formed[-3:] == [part_of(bar, 0.5) for bar in bars_of(0, 3)]
    assert [m.venue_ms for m in scene.messages if isinstance(m, Settled)][-1] == at(3) + 7
    assert await scene.verdicts(0, 3) == [(0, 3, Verdict.DATA)]
    asked = scene.questions()
    assert all(wanted.end_ms <= at(0) for wanted in asked)


async def test_a_successor_closes_a_minute_without_asking(stage: Stage) -> None:
    scene = stage()
    await scene.begin()
    for bar in bars_of(0, 3):
        scene.live_bar(part_of(bar, 0.1))
        scene.plugin.tell(bar)
    await scene.settled(2)
    assert scene.closed[-2:] == bars_of(0, 2)
    assert all(wanted.end_ms <= at(0) for wanted in scene.questions())


async def test_the_first_minute_is_asked_for_once_it_is_over(stage: Stage) -> None:
    scene = stage(bars_of(0, 5))
    scene.to(0.5)
    await scene.start()
    await scene.listened()
    scene.plugin.tell(part_of(flat(at(0), 100), 0.2))
    await scene.is_up()
    scene.live_bar(flat(at(1), 101))
    await until(lambda: scene.formed[-1:] == [flat(at(1), 101)])
    assert scene.worker.settled_ms == at(0)
    scene.to(1.1)
    await scene.settled(1)
    assert scene.closed == bars_of(0, 1)
    assert scene.states == [FeedState.UP]


async def test_time_alone_closes_nothing(stage: Stage) -> None:
    scene = stage(bars_of(0, 1))
    await scene.begin(timing=PATIENT)
    scene.live_bar(part_of(flat(at(0), 100), 0.3))
    await until(lambda: scene.formed[-1].ts == at(0))
    scene.plugin.fault = is_down
    scene.to(3)
    await until(lambda: scene.questions()[-1].start_ms == at(0))
    assert scene.worker.settled_ms == at(0)
    scene.plugin.fault = None
    scene.to(4)
    await until(lambda: scene.clock.advance(minutes=0.01) or (scene.worker.settled_ms or 0) >= at(3))
    assert scene.closed[-1] == flat(at(0), 100)


async def test_silent_minutes_are_answered_and_to_be_confirmed(stage: Stage) -> None:
    scene = stage()
    await scene.begin()
    scene.live_bar(flat(at(0)), closed=True)
    scene.live_bar(flat(at(2)), closed=True)
    await scene.settled(3)
    assert await scene.verdicts(0, 3) == [
        (0, 1, Verdict.DATA),
        (1, 2, Verdict.UNCONFIRMED_EMPTY),
        (2, 3, Verdict.DATA),
    ]


async def test_what_was_closed_is_in_the_cache(stage: Stage, clock: ManualClock) -> None:
    cache = MemoryCache(max_bytes=1 << 20, ttl_s=600, clock=clock)
    scene = stage(cache=cache)
    await scene.begin()
    for bar in bars_of(0, 3):
        scene.live_bar(bar, closed=True)
    await scene.settled(3)
    stored = await scene.house.store.find_series(SERIES)
    assert stored is not None
    wanted = RangeSet.of(at(0), at(3))

    async def cached() -> list[Bar]:
        return (await cache.get_1m_bars(stored.id, stored.revision, wanted)).bars

    async with asyncio.timeout(5):
        while await cached() != bars_of(0, 3):  # noqa: ASYNC110 - a cache says nothing by itself
            await asyncio.sleep(0.01)


# Drops and heals


async def test_a_dropped_stream_is_connected_again_and_the_hole_healed_before_it_is_up(stage: Stage) -> None:
    scene = stage(bars_of(0, 20))
    await scene.begin(timing=PATIENT)
    for bar in bars_of(0, 2):
        scene.live_bar(bar, closed=True)
    await scene.settled(2)
    scene.to(2.5)
    scene.plugin.refusals = [NetworkPluginError("no way in")]
    scene.plugin.fault = is_down
    scene.plugin.fail()
    await until(lambda: scene.worker.reconnects >= 2)
    await scene.listened()
    scene.to(6.3)
    scene.live_bar(part_of(flat(at(6), 106), 0.5), closed=False)
    scene.live_bar(flat(at(6), 106), closed=True)
    asked = len(scene.plugin.calls)
    await until(lambda: scene.clock.advance(minutes=0.001) or len(scene.plugin.calls) > asked + 2)
    assert scene.worker.settled_ms == at(2)
    assert scene.worker.state is FeedState.RECOVERING
    scene.plugin.fault = None
    await until(lambda: scene.clock.advance(minutes=0.01) or scene.worker.settled_ms == at(7))
    await scene.is_up()
    assert scene.closed[-7:] == bars_of(0, 7) == await scene.stored(0, 7)
    assert scene.lost == []
    assert scene.states == [FeedState.UP, FeedState.RECOVERING, FeedState.RECOVERING, FeedState.UP]
    assert scene.worker.heals >= 1


async def test_while_the_stream_is_down_clients_lose_nothing_but_time(stage: Stage) -> None:
    scene = stage(bars_of(0, 20))
    await scene.begin()
    scene.live_bar(flat(at(0), 100), closed=True)
    await scene.settled(1)
    scene.plugin.closed_door = NetworkPluginError("closed for today")
    scene.plugin.fail()
    for n in range(2, 6):
        scene.to(n + 0.1)
        await scene.settled(n)
    assert scene.closed[-5:] == bars_of(0, 5)
    await until(lambda: scene.worker.state is FeedState.DOWN)
    assert scene.worker.detail == "closed for today"
    scene.plugin.closed_door = None
    await scene.listened()
    scene.live_bar(flat(at(5), 105), closed=True)
    await scene.settled(6)
    await scene.is_up()
    assert scene.closed[-6:] == bars_of(0, 6)


async def test_a_follower_that_takes_over_goes_on_where_the_last_one_stopped(stage: Stage) -> None:
    scene = stage(bars_of(0, 90))
    await scene.begin()
    scene.live_bar(flat(at(0), 100), closed=True)
    await scene.settled(1)
    await scene.stop()
    scene.to(45.5)
    await scene.start()
    assert scene.claim.settled_ms == at(1)
    await scene.settled(45)
    assert scene.closed[-45:] == bars_of(0, 45) == await scene.stored()


async def test_a_frontier_left_behind_long_ago_is_not_caught_up_with(stage: Stage) -> None:
    scene = stage(bars_of(0, 90))
    await scene.begin()
    scene.live_bar(flat(at(0), 100), closed=True)
    await scene.settled(1)
    await scene.stop()
    scene.to(75.5)
    scene.messages.clear()
    await scene.start()
    await scene.settled(75)
    assert scene.closed == []


async def test_what_cannot_be_healed_is_said_to_be_lost_and_asked_for_in_the_background(stage: Stage) -> None:
    scene = stage(bars_of(0, 3))
    await scene.begin()
    scene.live_bar(flat(at(0), 100), closed=True)
    await scene.settled(1)
    scene.plugin.fault = is_down
    scene.plugin.fail()
    await until(lambda: scene.plugin.connections == 2)
    await scene.listened()
    scene.to(3.5)
    scene.live_bar(part_of(flat(at(3), 103), 0.5), closed=False)
    await until(lambda: FeedState.RECOVERING in scene.states)
    for n in range(4, 7):
        scene.live_bar(flat(at(n), 100 + n), closed=True)
        await asyncio.sleep(0.05)
    await scene.settled(7)
    assert scene.lost == [LostRange(at(1), at(4), Verdict.FETCH_FAILED)]
    assert scene.worker.lost == 3
    assert scene.closed[-4:] == [flat(at(0), 100), *bars_of(4, 7)]
    assert await scene.verdicts(0, 7) == [
        (0, 1, Verdict.DATA),
        (1, 4, Verdict.FETCH_FAILED),
        (4, 7, Verdict.DATA),
    ]
    await scene.is_up()
    scene.plugin.fault = None
    scene.clock.advance(hours=2)
    await scene.house.rechecker.run()
    assert await scene.stored(0, 7) == [*bars_of(0, 3), *bars_of(4, 7)]
    logged = await scene.live.revisions(scene.claim.series_id, 0)
    assert [revision.bar for revision in logged] == bars_of(1, 3)


async def test_where_both_are_down_no_gap_is_invented(stage: Stage) -> None:
    scene = stage(bars_of(0, 30))
    await scene.begin()
    scene.live_bar(flat(at(0), 100), closed=True)
    await scene.settled(1)
    scene.plugin.fault, scene.plugin.closed_door = is_down, NetworkPluginError("closed")
    scene.plugin.fail()
    scene.to(10)
    await until(lambda: scene.worker.state is FeedState.DOWN)
    await asyncio.sleep(2 * FAST.heal_patience_s)
    assert (scene.worker.settled_ms, scene.lost) == (at(1), [])
    scene.plugin.fault = scene.plugin.closed_door = None
    await until(lambda: scene.clock.advance(minutes=0.1) or (scene.worker.settled_ms or 0) >= at(10))
    assert scene.closed[-9:] == await scene.stored(len(await scene.stored()) - 9)
    assert scene.lost == []


async def test_what_is_left_alone_after_many_failures_is_not_lost_before_it_was_asked_for_again(stage: Stage) -> None:
    scene = stage(bars_of(0, 60))
    await scene.begin()
    scene.plugin.fault, scene.plugin.closed_door = is_down, NetworkPluginError("closed")
    scene.plugin.fail()
    before = len(scene.plugin.calls)
    await until(lambda: scene.clock.advance(minutes=0.02) or len(scene.plugin.calls) > before + 9)
    scene.plugin.fault = scene.plugin.closed_door = None
    await scene.listened()
    now = (scene.clock.now_ms() - LIVE_MS) // MINUTE_MS + 1
    for bar in bars_of(now, now + 2):
        scene.live_bar(bar, closed=True)
    asked = len(scene.plugin.calls)
    while len(scene.plugin.calls) == asked:
        # A second of the venue's time takes half of the patience of this test.
        scene.clock.advance(minutes=1 / 60)
        await asyncio.sleep(FAST.heal_patience_s / 2)
        assert scene.lost == []
    await until(lambda: scene.clock.advance(minutes=0.01) or (scene.worker.settled_ms or 0) >= at(now + 2))
    assert scene.lost == []
    assert scene.closed[-now - 2 :] == bars_of(0, now + 2)


async def test_a_provider_that_asks_for_fewer_calls_is_given_more_time(stage: Stage) -> None:
    scene = stage(bars_of(0, 30))
    await scene.begin()
    scene.plugin.fault = is_crowded
    scene.plugin.fail()
    await until(lambda: scene.plugin.connections == 2)
    await scene.listened()
    scene.to(3.5)
    for n in range(3, 6):
        scene.live_bar(flat(at(n), 100 + n), closed=True)
    for _ in range(20):
        scene.clock.advance(minutes=0.005)
        await asyncio.sleep(FAST.heal_patience_s / 10)
    assert (scene.worker.settled_ms, scene.lost) == (at(0), [])
    scene.plugin.fault = None
    await until(lambda: scene.clock.advance(minutes=0.02) or scene.worker.settled_ms == at(6))
    assert scene.closed[-6:] == bars_of(0, 6)


async def test_a_stream_refused_for_its_rate_waits_as_asked_and_leaves_the_budget_alone(stage: Stage) -> None:
    scene = stage()
    scene.plugin.refusals = [RateLimitPluginError("slow down", retry_after_s=0.3)]
    await scene.start()
    began = asyncio.get_running_loop().time()
    await scene.listened()
    assert asyncio.get_running_loop().time() - began >= 0.29
    (opened,) = scene.house.markets.open_providers()
    assert opened.feed.budget.paused_s == 0


async def test_bad_credentials_are_down_at_once(stage: Stage) -> None:
    scene = stage()
    scene.plugin.closed_door = AuthenticationPluginError("wrong key")
    await scene.start()
    await until(lambda: scene.states == [FeedState.DOWN])
    assert scene.worker.detail == "wrong key"


# Corrections


async def test_a_correction_is_logged_and_told(stage: Stage) -> None:
    scene = stage()
    await scene.begin()
    for bar in bars_of(0, 2):
        scene.live_bar(bar, closed=True)
    await scene.settled(2)
    scene.plugin.tell(flat(at(0), 7), closed=True)
    scene.plugin.tell(flat(at(1), 101), closed=True)
    await until(lambda: scene.revised)
    assert await scene.stored() == [flat(at(0), 7), flat(at(1), 101)]
    assert [r.bar for r in await scene.live.revisions(scene.claim.series_id, 0)] == [flat(at(0), 7)]
    scene.plugin.tell(flat(at(0), 7), closed=True)
    scene.live_bar(flat(at(2), 102), closed=True)
    await scene.settled(3)
    assert (scene.revised, scene.worker.corrections) == (1, 1)


async def test_a_correction_that_fails_holds_up_nothing_and_is_made_later(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scene = stage()
    await scene.begin()
    scene.live_bar(flat(at(0), 100), closed=True)
    await scene.settled(1)
    correct, faults = LiveStore.correct, [ValueError("no"), DatabaseUnavailableError()]

    async def perhaps(self: LiveStore, *args: object) -> bool:
        if faults:
            raise faults.pop()
        return await correct(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(LiveStore, "correct", perhaps)
    scene.plugin.tell(flat(at(0), 7), closed=True)
    scene.live_bar(flat(at(1), 101), closed=True)
    await scene.settled(2)
    await until(lambda: scene.revised)
    assert await scene.stored() == [flat(at(0), 7), flat(at(1), 101)]
    assert "could not be corrected" in caplog.text


async def test_a_bar_that_comes_late_is_stored_and_told(stage: Stage) -> None:
    scene = stage()
    await scene.begin()
    scene.live_bar(flat(at(0)), closed=True)
    scene.live_bar(flat(at(2)), closed=True)
    await scene.settled(3)
    scene.plugin.tell(flat(at(1), 5))
    await until(lambda: scene.revised)
    assert await scene.stored() == [flat(at(0)), flat(at(1), 5), flat(at(2))]
    assert [r.bar for r in await scene.live.revisions(scene.claim.series_id, 0)] == [flat(at(1), 5)]


# The database, and the lease


async def test_while_the_database_is_away_nothing_is_told_and_nothing_lost(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = stage()
    await scene.begin()
    away = True
    settle = LiveStore.settle

    async def perhaps(self: LiveStore, *args: object, **options: object) -> object:
        if away:
            raise DatabaseUnavailableError
        return await settle(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(LiveStore, "settle", perhaps)
    told = len([m for m in scene.messages if isinstance(m, Settled)])
    for bar in bars_of(0, 5):
        scene.live_bar(part_of(bar, 0.5), closed=False)
        scene.live_bar(bar, closed=True)
    await until(lambda: scene.formed[-1].ts == at(4))
    await asyncio.sleep(0.1)
    assert len([m for m in scene.messages if isinstance(m, Settled)]) == told
    assert scene.plugin.connections == 1
    away = False
    await scene.settled(5)
    assert scene.closed[-5:] == bars_of(0, 5) == await scene.stored()


async def test_a_follower_whose_lease_is_another_s_stops_at_once(stage: Stage) -> None:
    scene = stage()
    await scene.begin()
    heir = LiveStore(scene.house.store, "heir", lease_s=600)
    await scene.live.release([scene.claim.series_id])
    (claim,) = (await heir.tick([Want(scene.claim.series_id, None)], [])).claims
    scene.live_bar(flat(at(0)), closed=True)
    assert scene.task is not None
    await asyncio.wait({scene.task}, timeout=10)
    assert scene.task.done()
    assert scene.task.exception() is None
    assert scene.plugin.listened == set()
    assert await scene.stored() == []
    assert claim.fence == scene.claim.fence + 1


async def test_a_follower_that_is_cancelled_lets_go_of_everything(stage: Stage) -> None:
    scene = stage()
    await scene.begin()
    tasks = {task for task in asyncio.all_tasks() if "test/scripted/A/B" in task.get_name()}
    assert len(tasks) == 4
    await scene.stop()
    assert scene.task is not None
    assert scene.task.cancelled()
    assert scene.plugin.listened == set()
    assert all(task.done() for task in tasks)


async def test_a_rhythm_that_breaks_inside_does_not_end_the_follower(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scene = stage()
    await scene.begin()
    settle, failures = LiveStore.settle, [ValueError("a fault of our own")]

    async def perhaps(self: LiveStore, *args: object, **options: object) -> object:
        if failures:
            raise failures.pop()
        return await settle(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(LiveStore, "settle", perhaps)
    scene.live_bar(flat(at(0)), closed=True)
    await scene.settled(1)
    assert "a fault of our own" in caplog.text


async def test_an_idle_follower_keeps_its_provider_open(stage: Stage) -> None:
    scene = stage()
    await scene.begin()
    for _ in range(9):
        scene.clock.advance(minutes=0.5)
        await asyncio.sleep(0.08)
        await scene.house.markets.close_idle()
    assert scene.house.markets.open_providers()
    assert scene.plugin.connections == 1
