"""Live bars of exchanges without a stream, or without one that can be reached: they are asked for, again and again."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest

from domain.bar import Bar
from domain.clock import Clock, SystemClock
from domain.series import Series
from domain.time_range import TimeRange
from domain.timeframe import MINUTE_MS, Timeframe
from services.live import FeedState
from tests.loopback.coinbase import CoinbaseLoopback
from tests.loopback.exchange import LoopbackExchange, forming, listed
from tests.loopback.kraken import KrakenLoopback
from tests.support.clock import ManualClock
from tests.support.live_product import HASTY, LiveProduct, be_hasty, live_product, until, watching
from tests.support.market import START_MS, random_minutes

#: So many minutes before the first live one.
HISTORY = 58


class StreamlessKraken(KrakenLoopback):
    """As an exchange of which CCXT knows no stream."""

    @property
    def ccxt_urls(self) -> dict[str, object]:
        return {"urls": {"api": {"public": self.url, "ws": None}}}


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    be_hasty(monkeypatch)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START_MS + HISTORY * MINUTE_MS)


@asynccontextmanager
async def exchange_product(
    database_url: str, venue: LoopbackExchange, clock: Clock, **options: object
) -> AsyncIterator[LiveProduct]:
    ccxt = {venue.provider: {**venue.ccxt_options, **options}}
    settings = {"crypto_exchanges": venue.provider, "ccxt_options": json.dumps(ccxt)}
    async with live_product(database_url, clock, **settings) as product:
        yield product


def market_of(venue: LoopbackExchange, *, start_ms: int = START_MS, count: int = 75) -> tuple[str, Series, list[Bar]]:
    """Its first symbol, traded in every minute."""
    id_, one = next(iter(venue.listed.items()))
    bars = random_minutes(5, count, start_ms=start_ms, holes=0.0)
    venue.set_bars(id_, bars)
    return id_, Series("crypto", venue.provider, one.unified), bars


@pytest.mark.parametrize("kind", [CoinbaseLoopback, StreamlessKraken])
async def test_forming_and_closed_bars_of_a_polled_exchange_are_told_once_and_when_they_are_final(
    kind: type[LoopbackExchange], database_url: str, clock: ManualClock
) -> None:
    async with kind({}, clock=clock) as venue, exchange_product(database_url, venue, clock) as product:  # type: ignore[call-arg]
        _, series, market = market_of(venue)
        truth = {bar.ts: bar for bar in market}
        async with (
            watching(product, series, last=10) as minutes,
            watching(product, series, Timeframe.M5) as fives,
        ):
            for ts in range(clock.now_ms(), clock.now_ms() + 12 * MINUTE_MS, MINUTE_MS):
                clock.advance(minutes=0.5)
                shown = forming(truth[ts])
                await until(lambda b=shown: b in minutes.forming)  # type: ignore[misc]
                # It has ended, and may still change.
                clock.advance(minutes=0.5 + 1 / 60)
                await until(lambda b=truth[ts].ts + MINUTE_MS: minutes.forming[-1].ts == b)  # type: ignore[misc]
                assert minutes.closed[-1].ts == ts - MINUTE_MS
                clock.advance(minutes=1 / 60 + 0.001)
                await until(lambda ts=ts: minutes.closed[-1].ts == ts)  # type: ignore[misc]
                clock.advance(minutes=-2 / 60 - 0.001)
            end_ms = START_MS + 70 * MINUTE_MS
            await until(lambda: fives.has(market, end_ms), why=lambda: fives.difference(market, end_ms))
            assert minutes.has(market, end_ms), minutes.difference(market, end_ms)
            for one in (minutes, fives):
                assert (one.faults, one.gaps, one.corrected) == ([], [], [])
            assert {bar.ts for bar in fives.forming} >= {START_MS + n * MINUTE_MS for n in (60, 65)}
            assert product.state(series) is FeedState.UP
        live = TimeRange(START_MS + HISTORY * MINUTE_MS, START_MS + 70 * MINUTE_MS)
        assert await product.stored(series, live) == [bar for bar in market if live.start_ms <= bar.ts < live.end_ms]


async def test_many_polled_series_take_half_of_the_calls_that_the_exchange_allows(database_url: str) -> None:
    pairs = listed(*(f"C{n}/USD" for n in range(12)), separator="-")
    clock, rate, look_s = SystemClock(), 20, 4.0
    start_ms = Timeframe.M1.floor(clock.now_ms()) - 30 * MINUTE_MS
    async with (
        CoinbaseLoopback({}, symbols=pairs, clock=clock) as venue,
        exchange_product(database_url, venue, clock, enableRateLimit=True, rateLimit=1000 / rate) as product,
        AsyncExitStack() as stack,
    ):
        for n, one in enumerate(pairs):
            venue.set_bars(one.id, random_minutes(n, 40, start_ms=start_ms, holes=0.0))
        series = [Series("crypto", venue.provider, one.unified) for one in pairs]
        async with asyncio.TaskGroup() as tasks:
            joins = [tasks.create_task(stack.enter_async_context(watching(product, one))) for one in series]
        watchers = [join.result() for join in joins]
        await until(lambda: all(one.forming for one in watchers))
        calls, began_s = len(venue.calls), time.monotonic()
        await asyncio.sleep(look_s)
        made, took_s = len(venue.calls) - calls, time.monotonic() - began_s
        # Each of them is looked at, and all together take half at most; a few may have been due at once.
        assert len(pairs) <= made <= 0.5 * rate * took_s + len(pairs)
        assert all(one.faults == [] for one in watchers)


async def test_an_exchange_whose_stream_cannot_be_reached_is_told_as_down_and_its_minutes_are_asked_for(
    database_url: str, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_hasty(monkeypatch, replace(HASTY, presume_ms=600_000))
    async with KrakenLoopback({}, clock=clock) as venue, exchange_product(database_url, venue, clock) as product:
        _, series, market = market_of(venue)
        async with watching(product, series, last=10) as minutes, watching(product, series, Timeframe.M5) as fives:
            await until(lambda: product.state(series) is FeedState.DOWN)
            one = product.overview(series)
            assert one is not None
            assert one.detail
            end_ms = START_MS + 70 * MINUTE_MS

            async def pass_on() -> None:
                clock.advance(minutes=0.05)

            await until(lambda: product.settled_ms(series) >= end_ms, step=pass_on)
            await until(lambda: fives.has(market, end_ms), why=lambda: fives.difference(market, end_ms))
            kept = [bar for bar in minutes.closed if bar.ts < end_ms]
            assert kept == [bar for bar in market if kept[0].ts <= bar.ts < end_ms]
            assert (minutes.faults, minutes.gaps, minutes.corrected) == ([], [], [])
