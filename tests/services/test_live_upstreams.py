"""Upstreams that fall mute, are quiet, sleep at night, or have no stream at all."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from domain.series import Verdict
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from plugins.base import (
    Capabilities,
    PluginFeatureNotSupportedError,
)
from services.bar_store import BarStore
from services.live import FeedState
from services.upstream import Pollers
from tests.support.clock import ManualClock
from tests.support.live_plugin import flat, part_of
from tests.support.live_scene import LIVE_MS, Stage, a_stage, at, bars_of, is_down, until
from tests.support.market import START_MS


@pytest.fixture
async def stage(store: BarStore, clock: ManualClock) -> AsyncIterator[Stage]:
    async with a_stage(store, clock) as made:
        yield made


# Mute and quiet


async def test_a_mute_stream_is_found_out_and_connected_again(stage: Stage) -> None:
    scene = stage(bars_of(0, 30))
    await scene.begin()
    scene.live_bar(flat(at(0), 100), closed=True)
    await scene.settled(1)
    scene.to(2.5)
    await asyncio.sleep(0.1)
    assert scene.plugin.connections == 1
    scene.to(3.2)
    await until(lambda: scene.plugin.connections == 2)
    await scene.settled(3)
    assert scene.worker.state is FeedState.RECOVERING
    assert "told nothing of" in (scene.worker.detail or "")
    for n in (4, 5):
        scene.to(n + 0.1)
        await scene.settled(n)
    await scene.listened()
    scene.live_bar(flat(at(5), 105), closed=True)
    await scene.settled(6)
    await scene.is_up()
    assert scene.closed[-6:] == bars_of(0, 6)


async def test_a_quiet_market_is_not_blamed_and_asked_less_and_less(stage: Stage) -> None:
    scene = stage()
    await scene.begin()
    scene.live_bar(flat(at(0), 100), closed=True)
    await scene.settled(1)
    before = len(scene.plugin.calls)
    for n in range(1, 60):
        scene.to(n + 0.1)
        await asyncio.sleep(0.05)
    assert scene.plugin.connections == 1
    assert scene.states == [FeedState.UP]
    # One each for the silence that grew suspicious, its pauses, and the ends of 5, 15 and 30 minutes.
    assert 3 <= len(scene.plugin.calls) - before <= 14
    assert (await scene.verdicts(1, 30))[0][2] is Verdict.UNCONFIRMED_EMPTY


async def test_a_stream_that_never_spoke_is_presumed_up_and_found_mute(stage: Stage) -> None:
    scene = stage(bars_of(0, 10))
    scene.to(0.05)
    await scene.start()
    await scene.listened()
    scene.to(0.5)
    await scene.is_up()
    assert scene.plugin.connections == 1
    scene.to(3.3)
    await until(lambda: scene.plugin.connections == 2)
    await until(lambda: (scene.worker.settled_ms or 0) >= at(3))
    assert scene.closed == bars_of(0, 3)


async def test_flat_bars_without_volume_are_no_sign_of_a_mute_stream(stage: Stage) -> None:
    scene = stage([flat(at(n), 100, volume=0) for n in range(1, 30)])
    await scene.begin()
    scene.live_bar(flat(at(0), 100), closed=True)
    await scene.settled(1)
    scene.to(10.5)
    await until(lambda: (scene.worker.settled_ms or 0) >= at(10))
    assert scene.plugin.connections == 1


async def test_at_night_nothing_is_asked_and_nobody_blamed(stage: Stage) -> None:
    scene = stage(calendar="NY_WEEKDAYS")
    # The close of 2022-12-13, 21:00 UTC.
    close = (START_MS + 21 * HOUR_MS - LIVE_MS) // MINUTE_MS
    scene.to(close - 1.5)
    scene.plugin.market["A/B"] = bars_of(close - 400, close)
    await scene.start()
    await scene.listened()
    scene.plugin.tell(flat(at(close - 2), 100 + close - 2), closed=True)
    scene.live_bar(flat(at(close - 1), 100 + close - 1), closed=True)
    await scene.settled(close)
    before = len(scene.plugin.calls)
    for hour in range(1, 17):
        scene.to(close + hour * 60)
        await asyncio.sleep(0.04)
    assert len(scene.plugin.calls) == before
    assert scene.plugin.connections == 1
    # The bars of four hours and of the day are closed, for the calendar says that no more belongs to them.
    assert scene.worker.settled_ms is not None
    assert scene.worker.settled_ms >= START_MS + DAY_MS
    opens = close + 17 * 60 + 30
    scene.live_bar(flat(at(opens)), closed=True)
    await scene.settled(opens + 1)
    assert scene.closed[-1] == flat(at(opens))
    assert await scene.verdicts(close, opens) == [(close, opens, Verdict.CLOSED_SESSION)]


# Polling


POLLED = Capabilities(timeframes=(Timeframe.M1,), bars_per_call=500, calls_per_second=10_000, settle_ms=2_000)


async def test_a_provider_without_a_stream_is_polled(stage: Stage) -> None:
    scene = stage(bars_of(0, 10), capabilities=POLLED)
    scene.to(0.5)
    await scene.start()
    await scene.is_up()
    await until(lambda: scene.formed == [flat(at(0), 100)])
    scene.to(2.5)
    await scene.settled(2)
    await until(lambda: scene.formed[-1] == flat(at(2), 102))
    assert scene.closed == bars_of(0, 2)
    assert scene.plugin.connections == 0
    scene.plugin.fault = is_down
    scene.to(3.5)
    await until(lambda: scene.worker.state is FeedState.DOWN)
    scene.plugin.fault = None
    await until(lambda: scene.clock.advance(minutes=0.01) or scene.worker.state is FeedState.UP)
    await until(lambda: scene.closed == bars_of(0, 3))


async def test_a_polled_stock_is_left_alone_at_night(stage: Stage) -> None:
    scene = stage(capabilities=POLLED, calendar="NY_WEEKDAYS")
    close = (START_MS + 21 * HOUR_MS - LIVE_MS) // MINUTE_MS
    scene.plugin.market["A/B"] = bars_of(close - 400, close)
    scene.to(close - 0.5)
    await scene.start()
    await until(lambda: scene.formed)
    scene.to(close + 0.1)
    await scene.settled(close)
    assert scene.closed == bars_of(close - 1, close)
    before = len(scene.plugin.calls)
    for hour in range(1, 17):
        scene.to(close + hour * 60)
        await asyncio.sleep(0.05)
    assert len(scene.plugin.calls) == before
    await until(lambda: (scene.worker.settled_ms or 0) >= START_MS + DAY_MS)
    opens = close + 17 * 60 + 30
    scene.plugin.market["A/B"] += bars_of(opens, opens + 2)
    scene.to(opens + 1.1)
    await scene.settled(opens + 1)
    assert scene.closed[-1:] == bars_of(opens, opens + 1)


async def test_a_stream_that_is_refused_is_polled_and_tried_again_later(stage: Stage) -> None:
    scene = stage(bars_of(0, 30))
    scene.plugin.closed_door = PluginFeatureNotSupportedError("symbol limit exceeded")
    await scene.start()
    await until(lambda: scene.worker.polling)
    scene.to(1.5)
    await scene.settled(1)
    assert scene.states == [FeedState.UP]
    scene.plugin.closed_door = None
    await scene.listened()
    scene.to(2.1)
    scene.plugin.tell(part_of(flat(at(2), 102), 0.3))
    await until(lambda: not scene.worker.polling)
    scene.live_bar(flat(at(3), 103))
    scene.live_bar(flat(at(4), 104))
    scene.to(4.2)
    await scene.settled(4)
    assert scene.closed[1:] == bars_of(0, 4)


def test_polling_leaves_half_of_the_budget() -> None:
    class Budget:
        pass

    class SlowFeed:
        capabilities = Capabilities(timeframes=(), bars_per_call=1, calls_per_second=4)
        budget = Budget()

    pollers, feed = Pollers(), SlowFeed()
    with pollers.one_more(feed.budget):  # type: ignore[arg-type]
        assert pollers.interval_s(feed, 2) == 2  # type: ignore[arg-type]
        with pollers.one_more(feed.budget), pollers.one_more(feed.budget), pollers.one_more(feed.budget):  # type: ignore[arg-type]
            assert pollers.interval_s(feed, 2) == pytest.approx(4 * 1.2 / 2)  # type: ignore[arg-type]
    assert pollers.interval_s(feed, 0) == pytest.approx(0)  # type: ignore[arg-type]
