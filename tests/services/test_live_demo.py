"""The simulated market, followed from end to end: what is mute, down or closed in it is told as it is."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from unittest.mock import ANY

import pytest

from domain.bar import Bar
from domain.series import Series, Verdict
from domain.time_range import TimeRange
from domain.timeframe import HOUR_MS, MINUTE_MS, Timeframe
from plugins.base import PluginConfig
from plugins.demo import DemoPlugin
from services.bar_store import BarStore
from services.live import FeedState, LostRange, Status
from tests.support.clock import ManualClock
from tests.support.house import make_house
from tests.support.live_scene import FAST, Follow, until


class Demo(Follow):
    """A follow of one simulated symbol. The real time of the test is the time in which the market may speak."""

    def __init__(self, store: BarStore, clock: ManualClock, symbol: str, begins: str) -> None:
        options = {"now_ms": clock.now_ms, "tick_s": 0.01}
        self.demo = DemoPlugin(PluginConfig(provider="sim", options=options))
        house = make_house(store, clock, self.demo)  # type: ignore[arg-type]
        super().__init__(house, clock, Series("test", "scripted", symbol))
        self.began_ms = ms(begins)
        self.to(self.began_ms)

    def to(self, instant_ms: int) -> None:
        self.clock.advance(minutes=(instant_ms - self.clock.now_ms()) / MINUTE_MS)

    async def remember(self) -> None:
        """Have the rhythm known."""
        start_ms = self.began_ms - 4 * HOUR_MS
        await self.house.bars(self.series.symbol, start_ms=start_ms, end_ms=self.began_ms)

    async def pass_to(self, end: str) -> None:
        """Let time pass, ten seconds at a step."""
        end_ms = ms(end)
        while self.clock.now_ms() < end_ms:
            self.clock.advance(minutes=1 / 6)
            await asyncio.sleep(0.015)

    async def truth(self, start_ms: int, end_ms: int) -> list[Bar]:
        page = await self.demo.fetch_page(self.series.symbol, Timeframe.M1, TimeRange(start_ms, end_ms))
        return list(page.bars)

    async def settled(self, end: str) -> None:
        await until(lambda: (self.worker.settled_ms or 0) >= ms(end))


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


Make = Callable[[str, str], Demo]


@pytest.fixture
async def demo(store: BarStore, clock: ManualClock) -> AsyncIterator[Make]:
    made: list[Demo] = []

    def make(symbol: str, begins: str) -> Demo:
        made.append(Demo(store, clock, symbol, begins))
        return made[-1]

    yield make
    for one in made:
        await one.stop()
        await one.house.markets.close()


async def test_a_busy_symbol_is_closed_as_its_minutes_end(demo: Make) -> None:
    follow = demo("DEMO/USD", "2023-03-01T10:00:30")
    await follow.start()
    await follow.pass_to("2023-03-01T10:08:20")
    await follow.settled("2023-03-01T10:08:00")
    assert follow.closed == await follow.truth(ms("2023-03-01T10:00"), ms("2023-03-01T10:08"))
    assert follow.states == [FeedState.UP]
    assert follow.worker.reconnects == 0
    assert {bar.ts for bar in follow.formed} >= {bar.ts for bar in follow.closed[1:]}


async def test_a_stream_that_is_mute_for_ten_minutes_costs_no_bar(demo: Make) -> None:
    follow = demo("FJORD/USD", "2023-03-01T10:14:30")
    await follow.remember()
    await follow.start()
    await follow.pass_to("2023-03-01T10:19:50")
    assert follow.states == [FeedState.UP]
    await follow.pass_to("2023-03-01T10:29:50")
    assert follow.worker.state is FeedState.RECOVERING
    assert follow.worker.reconnects >= 1
    await follow.settled("2023-03-01T10:29:00")
    await follow.pass_to("2023-03-01T10:38:30")
    await follow.is_up()
    end_ms = follow.worker.settled_ms or 0
    assert follow.closed == await follow.truth(ms("2023-03-01T10:14"), end_ms)
    assert follow.closed == await follow.read(ms("2023-03-01T10:14"), end_ms)
    assert follow.lost == []


async def test_a_feed_that_is_down_on_sundays_leaves_a_gap_that_is_told(demo: Make) -> None:
    saturday, sunday, monday = "2023-03-04T23:50:30", "2023-03-05", "2023-03-06"
    follow = demo("HEATH/USD", saturday)
    await follow.remember()
    await follow.start()
    await follow.pass_to(sunday + "T00:03:00")
    await follow.settled(sunday)
    await until(lambda: follow.worker.state is FeedState.DOWN)
    assert "down on this day of the week" in (follow.worker.detail or "")
    follow.to(ms(sunday + "T23:57:00"))
    await follow.pass_to(monday + "T00:05:00")
    async with asyncio.timeout(100):
        while follow.worker.state is not FeedState.UP or not follow.lost:
            follow.clock.advance(minutes=1 / 60)
            await asyncio.sleep(0.02)
    assert follow.lost == [LostRange(ms(sunday), ms(monday), Verdict.FETCH_FAILED)]
    end_ms = follow.worker.settled_ms or 0
    assert end_ms > ms(monday)
    assert follow.closed == await follow.truth(ms("2023-03-04T23:50"), end_ms)
    said = [message for message in follow.messages if isinstance(message, Status)]
    assert said[-1] == Status(follow.claim.series_id, follow.claim.fence, FeedState.UP, None)
    tiles = await follow.house.coverage(ms(sunday), ms(monday), symbol=follow.series.symbol)
    assert {tile.verdict for tile in tiles} == {Verdict.FETCH_FAILED}


async def test_a_stock_sleeps_over_the_weekend(demo: Make) -> None:
    # Friday; New York closes at 21:00 UTC.
    follow = demo("HARBOR", "2023-03-10T20:55:30")
    await follow.remember()
    await follow.start()
    await follow.pass_to("2023-03-10T21:01:00")
    await follow.settled("2023-03-10T21:00")
    asked = follow.house.markets.open_providers()[0].feed.calls
    for hour in range(1, 63):
        follow.to(ms("2023-03-10T21:00") + hour * HOUR_MS)
        await asyncio.sleep(2 * FAST.look_s)
    assert follow.house.markets.open_providers()[0].feed.calls == asked
    assert follow.states == [FeedState.UP]
    # Summer time has begun.
    follow.to(ms("2023-03-13T13:29:50"))
    await follow.pass_to("2023-03-13T13:33:10")
    await follow.settled("2023-03-13T13:33")
    assert follow.closed == await follow.truth(ms("2023-03-10T20:55"), ms("2023-03-13T13:33"))
    assert follow.worker.reconnects == 0
    tiles = await follow.house.coverage(ms("2023-03-10T21:00"), ms("2023-03-13T13:30"), symbol="HARBOR")
    assert [(tile.verdict, tile.range) for tile in tiles] == [(Verdict.CLOSED_SESSION, ANY)]
