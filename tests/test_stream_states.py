"""What clients are told of an upstream in trouble: its states, what is lost, and that it was found after all."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

import pytest

from domain.bar import Bar
from domain.series import Series, Verdict
from domain.time_range import TimeRange
from domain.timeframe import HOUR_MS, MINUTE_MS, Timeframe
from services.live import FeedState
from tests.loopback import faults
from tests.loopback.binance import BinanceLoopback
from tests.support.clock import ManualClock
from tests.support.live_product import HASTY, LiveProduct, Watcher, be_hasty, live_product, until, watching
from tests.support.market import START_MS, random_minutes

BTC = Series("crypto", "binance", "BTC/USDT")
FIRST_MS = START_MS + 40 * MINUTE_MS
MARKET = random_minutes(11, 300, start_ms=START_MS, holes=0.0)


class Scene(NamedTuple):
    """An exchange and the product on it."""

    venue: BinanceLoopback
    clock: ManualClock
    product: LiveProduct

    async def pass_minutes(self, count: int, *, told: bool = True) -> list[Bar]:
        """Minutes go by; the stream tells of them where it is connected."""
        first = self.clock.now_ms()
        bars = [bar for bar in MARKET if first <= bar.ts < first + count * MINUTE_MS]
        for bar in bars:
            self.clock.advance(minutes=1)
            if told:
                await self.venue.stream.say("BTCUSDT", bar, closed=True)
            await asyncio.sleep(0.01)
        return bars

    async def pass_on(self) -> None:
        await self.pass_minutes(1)

    def refuse_streams(self) -> None:
        """The stream is gone, and comes back when it is let."""
        self.venue.stream.refusals += [(503, {})] * 1_000
        self.venue.stream.cut()

    async def let_stream(self) -> None:
        self.venue.stream.refusals.clear()
        await self.venue.stream.subscribed("BTCUSDT")


@pytest.fixture
async def scene(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    be_hasty(monkeypatch, replace(HASTY, heal_patience_s=0.3, crowded_patience_s=0.3))
    clock = ManualClock(FIRST_MS)
    async with BinanceLoopback({"BTCUSDT": MARKET}, clock=clock) as venue:
        ccxt = json.dumps({"binance": venue.ccxt_options})
        async with live_product(database_url, clock, crypto_exchanges="binance", ccxt_options=ccxt) as product:
            yield Scene(venue, clock, product)


def states(watcher: Watcher) -> list[FeedState]:
    """What it was told, each once in a row."""
    return [state for state, _ in groupby(one.state for one in watcher.states)]


async def is_up(scene: Scene) -> None:
    await scene.venue.stream.subscribed("BTCUSDT")
    await scene.pass_minutes(2)
    await until(lambda: scene.product.state(BTC) is FeedState.UP)


async def test_an_upstream_that_drops_is_recovering_then_down_then_up_again(scene: Scene) -> None:
    async with watching(scene.product, BTC, since_ms=FIRST_MS) as one:
        await is_up(scene)
        # The word that it is up comes before the bars.
        up_ms = scene.clock.now_ms()
        await until(lambda: one.has(MARKET, up_ms), why=lambda: one.difference(MARKET, up_ms))
        one.states.clear()
        scene.refuse_streams()
        await until(lambda: states(one)[-1:] == [FeedState.DOWN])
        assert all(told.detail for told in one.states)
        async with watching(scene.product, BTC) as late:
            # Who comes now is told at once how things stand.
            assert states(late) == [FeedState.DOWN]
        await scene.pass_minutes(3)
        await scene.let_stream()
        await until(lambda: states(one)[-1:] == [FeedState.UP], step=scene.pass_on)
        assert states(one) == [FeedState.RECOVERING, FeedState.DOWN, FeedState.UP]
        assert one.states[-1].detail is None
        end_ms = scene.clock.now_ms()
        await until(lambda: one.has(MARKET, end_ms), why=lambda: one.difference(MARKET, end_ms))
        assert (one.gaps, one.faults, one.corrected) == ([], [], [])


@pytest.mark.parametrize("fault", [faults.ERROR_500, faults.too_many(), faults.TRUNCATED], ids=lambda fault: fault.name)
async def test_what_cannot_be_healed_is_told_as_a_gap_and_corrected_when_it_is_found(
    fault: faults.Fault, scene: Scene
) -> None:
    venue, clock, product = scene.venue, scene.clock, scene.product
    async with (
        watching(product, BTC, since_ms=START_MS) as ones,
        watching(product, BTC, Timeframe.M5, since_ms=START_MS) as fives,
    ):
        await is_up(scene)
        await scene.pass_minutes(8)
        await until(lambda: product.settled_ms(BTC) == clock.now_ms())
        missed_ms = clock.now_ms()
        venue.faults.randomly([fault], probability=1.0, seed=1)
        scene.refuse_streams()
        await scene.venue.stream.deserted()
        await scene.pass_minutes(7)
        back_ms = clock.now_ms()
        await scene.let_stream()
        # The minute in which it came back was not heard in full.
        await until(lambda: bool(ones.gaps), step=scene.pass_on)
        await until(lambda: bool(fives.gaps), step=scene.pass_on)
        await until(lambda: ones.closed[-1].ts > back_ms + MINUTE_MS, step=scene.pass_on)
        lost = [gap.range for gap in ones.gaps]
        assert {gap.verdict for gap in (*ones.gaps, *fives.gaps)} == {Verdict.FETCH_FAILED}
        assert (lost[0].start_ms, [part.end_ms for part in lost[:-1]]) == (missed_ms, [p.start_ms for p in lost[1:]])
        assert back_ms <= lost[-1].end_ms
        end_ms = Timeframe.M5.floor(clock.now_ms())
        _assert_told_but_for(ones, lost, end_ms)
        found = await product.minutes_by_verdict(BTC, TimeRange(missed_ms, lost[-1].end_ms))
        assert found.keys() == {Verdict.FETCH_FAILED}
        venue.faults.clear()
        clock.advance(minutes=HOUR_MS / MINUTE_MS)
        venue.set_bars("BTCUSDT", [bar for bar in MARKET if bar.ts < clock.now_ms() - HOUR_MS])
        assert await product.services.rechecker.run() > 0
        minutes = [bar for bar in MARKET if lost[0].start_ms <= bar.ts < lost[-1].end_ms]
        await until(lambda: ones.corrected == minutes, why=lambda: str(ones.corrected))
        expected = fives.expected(MARKET, end_ms)
        await until(lambda: [bar for bar in fives.view if bar.ts < end_ms] == expected)
        assert (ones.faults, fives.faults) == ([], [])


def _assert_told_but_for(watcher: Watcher, lost: list[TimeRange], end_ms: int) -> None:
    """Everything else was told, in order."""
    expected = [
        bar
        for bar in watcher.expected(MARKET, end_ms)
        if not any(part.start_ms <= bar.ts < part.end_ms for part in lost)
    ]
    assert [bar for bar in watcher.closed if bar.ts < end_ms] == expected
