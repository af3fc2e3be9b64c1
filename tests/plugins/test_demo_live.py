"""The stream of the simulated market, by a clock of our own."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from domain.bar import Bar, fault_of
from domain.time_range import TimeRange
from domain.timeframe import DAY_MS, MINUTE_MS, Timeframe
from plugins.base import LiveBars, NetworkPluginError, PluginConfig, PluginError, SymbolNotFoundPluginError
from plugins.demo import DemoPlugin
from tests.support.clock import ManualClock

#: Monday, 2024-01-08, 15:00 UTC: New York is open.
START_MS = 1_704_726_000_000
SUNDAY_MS = START_MS - START_MS % DAY_MS + 6 * DAY_MS
PATIENCE_S = 10.0


def make_plugin(clock: ManualClock) -> DemoPlugin:
    return DemoPlugin(PluginConfig(provider="sim", options={"now_ms": clock.now_ms, "tick_s": 0.01}))


@asynccontextmanager
async def stream(symbol: str, clock: ManualClock) -> AsyncIterator[AsyncGenerator[LiveBars, None]]:
    async with aclosing(make_plugin(clock).live_minutes(symbol)) as live:
        yield live


async def told(live: AsyncGenerator[LiveBars, None]) -> LiveBars:
    return await asyncio.wait_for(anext(live), PATIENCE_S)


async def minutes(symbol: str, start_ms: int, end_ms: int) -> list[Bar]:
    """As they can be asked for afterwards."""
    page = await make_plugin(ManualClock(end_ms)).fetch_page(symbol, Timeframe.M1, TimeRange(start_ms, end_ms))
    return list(page.bars)


async def closed(symbol: str, clock: ManualClock, *, seconds: int, steps: int) -> list[LiveBars]:
    """What is told as closed while the clock takes steps of so many seconds."""
    heard: list[LiveBars] = []
    asked = 0

    def now_ms() -> int:
        # Each look at the clock is a step.
        nonlocal asked
        asked += 1
        clock.advance(minutes=seconds / 60)
        return clock.now_ms()

    plugin = DemoPlugin(PluginConfig(provider="sim", options={"now_ms": now_ms, "tick_s": 0.01}))
    async with aclosing(plugin.live_minutes(symbol)) as live:
        async for live_bars in live:
            heard += [live_bars] if live_bars.closed else []
            if asked >= steps:
                break
    return heard


async def test_the_minute_of_the_present_is_told_as_it_grows_and_then_as_closed():
    clock = ManualClock(START_MS + 10_000)
    (final,) = await minutes("DEMO/USD", START_MS, START_MS + MINUTE_MS)
    async with stream("DEMO/USD", clock) as live:
        volumes = []
        for _ in range(4):
            said = await told(live)
            assert (said.symbol, said.closed, said.venue_ms) == ("DEMO/USD", False, clock.now_ms())
            assert [fault_of(bar, Timeframe.M1) for bar in said.bars] == [None]
            assert (said.bars[0].ts, said.bars[0].open) == (START_MS, final.open)
            assert final.low <= said.bars[0].low <= said.bars[0].high <= final.high
            volumes.append(said.bars[0].volume)
            clock.advance(minutes=0.2)
        assert volumes == sorted(set(volumes))
        clock.advance(minutes=0.1)
        said = await told(live)
        assert said == LiveBars("DEMO/USD", (final,), closed=True, venue_ms=clock.now_ms())
        said = await told(live)
        assert (said.closed, said.bars[0].ts) == (False, START_MS + MINUTE_MS)


async def test_a_clock_that_stands_still_or_goes_back_tells_nothing_new():
    clock = ManualClock(START_MS + 30_000)
    async with stream("DEMO/USD", clock) as live:
        await told(live)
        silent = asyncio.ensure_future(anext(live))
        assert not (await asyncio.wait({silent}, timeout=0.1))[0]
        clock.advance(minutes=-5)
        assert not (await asyncio.wait({silent}, timeout=0.1))[0]
        clock.advance(minutes=5.1)
        assert (await asyncio.wait_for(silent, PATIENCE_S)).bars[0].ts == START_MS


@pytest.mark.parametrize(
    ("symbol", "seconds"),
    [
        ("DEMO/USD", 20),
        ("EMBER/USD", 61),
        ("LICHEN/USD", 1_000),
        ("HARBOR", 1_000),
        ("TINDER", 61),
        ("KELP/USD", 3_600),
    ],
)
async def test_closed_minutes_are_those_that_can_be_asked_for_whatever_the_steps(symbol: str, seconds: int):
    clock = ManualClock(START_MS - seconds * 1000)
    heard = await closed(symbol, clock, seconds=seconds, steps=60)
    bars = [bar for live_bars in heard for bar in live_bars.bars]
    until_ms = clock.now_ms()
    asked = await minutes(symbol, START_MS, Timeframe.M1.floor(until_ms))
    assert bars
    assert bars == [bar for bar in asked if bar.ts <= bars[-1].ts]
    assert all(live_bars.venue_ms >= live_bars.bars[-1].ts + MINUTE_MS for live_bars in heard if live_bars.venue_ms)


async def test_a_leap_of_the_clock_tells_all_that_was_leapt_over():
    clock = ManualClock(START_MS)
    async with stream("DEMO/USD", clock) as live:
        clock.advance(days=2)
        # The generator takes its bearings when it is first asked.
        first = asyncio.ensure_future(anext(live))
        await asyncio.sleep(0)
        clock.advance(days=2)
        bars: list[Bar] = []
        while len(bars) < 2 * 1440:
            said = await asyncio.wait_for(first, PATIENCE_S) if not bars else await told(live)
            bars += said.bars if said.closed else ()
    assert bars == await minutes("DEMO/USD", START_MS + 2 * DAY_MS, START_MS + 4 * DAY_MS)


async def test_nothing_is_told_while_the_market_is_closed():
    evening_ms = START_MS + 8 * 60 * MINUTE_MS
    clock = ManualClock(evening_ms)
    async with stream("HARBOR", clock) as live:
        silent = asyncio.ensure_future(anext(live))
        for _ in range(3):
            assert not (await asyncio.wait({silent}, timeout=0.05))[0]
            clock.advance(minutes=1.5)
        clock.advance(minutes=16 * 60 - 4.5)
        said = await asyncio.wait_for(silent, PATIENCE_S)
        assert said.bars[0].ts >= START_MS + 23.5 * 60 * MINUTE_MS


async def test_one_stream_is_mute_for_ten_minutes_of_each_hour_and_loses_them():
    clock = ManualClock(START_MS + 10 * MINUTE_MS)
    heard = await closed("FJORD/USD", clock, seconds=30, steps=60)
    told_ms = {bar.ts for live_bars in heard for bar in live_bars.bars}
    asked_ms = {bar.ts for bar in await minutes("FJORD/USD", START_MS + 10 * MINUTE_MS, START_MS + 39 * MINUTE_MS)}
    lost = {(ts_ms - START_MS) // MINUTE_MS for ts_ms in asked_ms - told_ms}
    assert lost
    # The end of minute 19 would have been told in minute 20.
    assert lost == {(ts_ms - START_MS) // MINUTE_MS for ts_ms in asked_ms} & set(range(19, 30))
    assert told_ms <= asked_ms | {START_MS + 39 * MINUTE_MS}


async def test_a_feed_that_is_down_tells_the_last_minute_before_and_then_fails():
    clock = ManualClock(SUNDAY_MS - 3 * 60 * MINUTE_MS)
    async with stream("HEATH/USD", clock) as live:
        bars = list((await told_after(live, clock, SUNDAY_MS + 5 * MINUTE_MS)).bars)
        assert bars == await minutes("HEATH/USD", SUNDAY_MS - 3 * 60 * MINUTE_MS, SUNDAY_MS)
        with pytest.raises(NetworkPluginError, match="down"):
            await told(live)
        with pytest.raises(StopAsyncIteration):
            await anext(live)


async def told_after(live: AsyncGenerator[LiveBars, None], clock: ManualClock, at_ms: int) -> LiveBars:
    """The first closed minutes after the clock has leapt."""
    said = asyncio.ensure_future(anext(live))
    await asyncio.sleep(0)
    clock.advance(minutes=(at_ms - clock.now_ms()) / MINUTE_MS)
    while not (heard := await asyncio.wait_for(said, PATIENCE_S)).closed:
        said = asyncio.ensure_future(anext(live))
    return heard


async def test_an_unknown_symbol_has_no_stream():
    async with stream("NO/SUCH", ManualClock(START_MS)) as live:
        with pytest.raises(SymbolNotFoundPluginError):
            await told(live)


@pytest.mark.parametrize("tick_s", [0, -1, "soon", None, float("nan")])
def test_a_rhythm_that_is_none_is_refused(tick_s: object):
    with pytest.raises(PluginError, match="tick_s"):
        DemoPlugin(PluginConfig(provider="sim", options={"tick_s": tick_s}))


async def test_a_listener_that_is_cancelled_ends_at_once():
    live = make_plugin(ManualClock(START_MS)).live_minutes("DEMO/USD")
    task = asyncio.ensure_future(anext(live))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, PATIENCE_S)


async def test_by_the_clock_of_the_machine_it_speaks_about_once_a_second():
    plugin = DemoPlugin(PluginConfig(provider="sim"))
    loop = asyncio.get_running_loop()
    async with aclosing(plugin.live_minutes("DEMO/USD")) as live:
        await told(live)
        began_s = loop.time()
        for _ in range(2):
            assert (await told(live)).bars
        # A minute may end meanwhile, which is told at once.
        assert loop.time() - began_s < PATIENCE_S


def test_it_says_that_it_streams():
    assert make_plugin(ManualClock(START_MS)).capabilities.live == "stream"
