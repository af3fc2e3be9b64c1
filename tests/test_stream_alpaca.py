"""Live bars of the whole product from a loopback Alpaca: one connection for all symbols, and all that it may say."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace

import msgspec
import pytest

from domain.bar import Bar
from domain.series import Series, Verdict
from domain.time_range import TimeRange
from domain.timeframe import HOUR_MS, MINUTE_MS, Timeframe
from plugins import alpaca_line, alpaca_live
from services.live import FeedState
from tests.loopback.alpaca import KEY, SECRET, AlpacaLoopback
from tests.loopback.alpaca_stream import AlpacaStreamLoopback, error
from tests.support.clock import ManualClock
from tests.support.live_product import HASTY, LiveProduct, Watcher, be_hasty, live_product, until, watching
from tests.support.market import START_MS

#: Tuesday 2022-12-13, half past nine in New York, and an hour later, when the tests begin.
OPENS_MS = START_MS + 14 * HOUR_MS + 30 * MINUTE_MS
NOW_MS = OPENS_MS + HOUR_MS
SYMBOLS = ("SPY", "QQQ", "IWM")


def stock(symbol: str) -> Series:
    return Series("stocks", "alpaca", symbol)


def minute_at(ts: int, volume: float = 5.0) -> Bar:
    return Bar(ts, 10.0, 12.0, 9.0, 11.0, volume)


class Street:
    """Alpaca with its stream and a clock: what trades is in both, unless it is said otherwise."""

    def __init__(self, rest: AlpacaLoopback, stream: AlpacaStreamLoopback, clock: ManualClock) -> None:
        self.rest, self.stream, self.clock = rest, stream, clock
        rest.stocks.update({symbol: [] for symbol in SYMBOLS})
        for minute in range(60):
            for symbol in SYMBOLS:
                self.trade(symbol, OPENS_MS + minute * MINUTE_MS)

    def trade(self, symbol: str, ts: int, volume: float = 5.0) -> Bar:
        """Only REST has it."""
        bar = minute_at(ts, volume)
        bars = {old.ts: old for old in self.rest.stocks[symbol]} | {ts: bar}
        self.rest.stocks[symbol] = [bars[ts] for ts in sorted(bars)]
        return bar

    async def pass_minutes(self, count: int, *symbols: str, told: bool = True) -> list[Bar]:
        """These trade in the next minutes, and the stream tells of it."""
        bars = []
        for _ in range(count):
            ts = self.clock.now_ms() // MINUTE_MS * MINUTE_MS
            self.set_clock(self.clock.now_ms() + MINUTE_MS)
            for symbol in symbols:
                bar = self.trade(symbol, ts)
                if told:
                    await self.stream.say(symbol, bar)
            bars.append(minute_at(ts))
            # One minute after the other, as it is in life.
            await asyncio.sleep(0.02)
        return bars

    async def wait(self) -> None:
        """Time passes, and nothing trades."""
        self.set_clock(self.clock.now_ms() + 3_000)

    def set_clock(self, now_ms: int) -> None:
        """Theirs and ours."""
        self.clock.advance(minutes=(now_ms - self.clock.now_ms()) / MINUTE_MS)
        self.rest.now_ms = now_ms

    def calls_for(self, symbol: str) -> int:
        return sum(call["symbols"] == symbol for path, call in self.rest.calls if path.endswith("bars"))


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alpaca_live, "PACE_S", 0.01)
    monkeypatch.setattr(alpaca_line, "TAKEN_S", 0.1)
    be_hasty(monkeypatch)


@pytest.fixture
async def street() -> AsyncIterator[Street]:
    async with AlpacaLoopback() as rest, AlpacaStreamLoopback() as stream:
        yield Street(rest, stream, ManualClock(NOW_MS))


@pytest.fixture
async def product(street: Street, database_url: str) -> AsyncIterator[LiveProduct]:
    settings = {
        "alpaca_key_id": KEY,
        "alpaca_secret_key": SECRET,
        "alpaca_data_url": street.rest.url,
        "alpaca_trading_url": street.rest.url,
        "alpaca_stream_url": street.stream.url,
    }
    async with live_product(database_url, street.clock, **settings) as product:
        yield product


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def watch(stack: AsyncExitStack, product: LiveProduct, symbol: str = "SPY", **wish: int) -> Watcher:
    return await stack.enter_async_context(watching(product, stock(symbol), **wish))


async def closed(watcher: Watcher, street: Street, *bars: Bar, from_ms: int = NOW_MS) -> None:
    """Wait until the client has exactly these closed bars from an instant on."""
    await until(
        lambda: [bar for bar in watcher.view if bar.ts >= from_ms] == list(bars),
        step=street.wait,
        why=lambda: f"it has {watcher.view}",
    )
    assert watcher.faults == []


async def test_all_symbols_are_on_one_connection_and_their_minutes_close_when_they_are_told(
    street: Street, product: LiveProduct, stack: AsyncExitStack
):
    watchers = [await watch(stack, product, symbol) for symbol in SYMBOLS]
    more = [await watch(stack, product, symbol, last=5) for symbol in SYMBOLS]
    await street.stream.subscribed(*SYMBOLS)
    calls = len(street.rest.calls)
    bars = await street.pass_minutes(10, *SYMBOLS)
    for watcher in (*watchers, *more):
        await until(lambda w=watcher: w.closed[-10:] == bars)  # type: ignore[misc]
        assert watcher.faults == []
    assert street.stream.opened == 1
    # Nothing had to be asked for but, once, the minute in which they were subscribed to.
    assert len(street.rest.calls) - calls <= 2 * len(SYMBOLS)


async def test_a_minute_that_alpaca_updates_is_corrected_and_logged(
    street: Street, product: LiveProduct, stack: AsyncExitStack
):
    minutes = await watch(stack, product)
    fives = await stack.enter_async_context(watching(product, stock("SPY"), Timeframe.M5))
    await street.stream.subscribed("SPY")
    bars = await street.pass_minutes(6, "SPY")
    await until(lambda: minutes.closed[-6:] == bars)
    updated = street.trade("SPY", bars[2].ts, volume=7.5)
    await street.stream.say("SPY", updated, kind="u")
    await until(lambda: bool(minutes.corrected and fives.corrected))
    assert minutes.corrected == [updated]
    assert fives.corrected == [minute_at(NOW_MS, volume=27.5)]
    async with product.services.database.connection() as db:
        rows = await db.fetch("SELECT ts, new_bar FROM bar_revisions WHERE timeframe = '1m'")
    assert [list(row["new_bar"]) for row in rows] == [[10.0, 12.0, 9.0, 11.0, 7.5]]
    assert await product.stored(stock("SPY"), TimeRange(updated.ts, updated.ts + 1)) == [updated]


async def test_a_quiet_symbol_is_not_blamed_and_its_minutes_close_without_a_bar(
    street: Street, product: LiveProduct, stack: AsyncExitStack
):
    spy, quiet = await watch(stack, product), await watch(stack, product, "IWM")
    await street.stream.subscribed("SPY", "IWM")
    bars = await street.pass_minutes(90, "SPY")
    end_ms = street.clock.now_ms() - 30 * MINUTE_MS
    await until(lambda: product.settled_ms(stock("IWM")) >= end_ms, step=street.wait)
    assert spy.closed[-90:] == bars
    assert [bar for bar in quiet.closed if bar.ts >= NOW_MS] == []
    assert street.stream.opened == 1
    asked = [symbol for told in street.stream.told for symbol in told["bars"]]  # type: ignore[attr-defined]
    assert sorted(asked) == ["IWM", "SPY"], "it was subscribed to again"
    assert street.calls_for("IWM") < 30
    found = await product.minutes_by_verdict(stock("IWM"), TimeRange(NOW_MS, end_ms))
    assert found.keys() <= {Verdict.UNCONFIRMED_EMPTY, Verdict.NO_TRADES}
    await street.pass_minutes(1, "IWM")
    await until(lambda: quiet.closed[-1].ts >= end_ms)


@pytest.mark.parametrize("symbols", [("SPY",), ("SPY", "QQQ", "IWM")])
async def test_a_stream_that_tells_nothing_is_found_out_by_rest_and_connected_again(
    symbols: tuple[str, ...], street: Street, product: LiveProduct, stack: AsyncExitStack
):
    watchers = [await watch(stack, product, symbol) for symbol in symbols]
    await street.stream.subscribed(*symbols)
    bars = await street.pass_minutes(3, *symbols)
    connection = street.stream.connections[0]
    connection.channels = {"bars": {}, "updatedBars": {}}

    async def trade() -> None:
        bars.extend(await street.pass_minutes(1, *symbols))

    await until(
        lambda: street.stream.opened > 1 and street.stream.subscriptions == set(symbols),
        step=trade,
        why=lambda: f"{street.stream.opened} connections, {street.stream.subscriptions}",
    )
    bars += await street.pass_minutes(3, *symbols)
    for watcher in watchers:
        await closed(watcher, street, *bars)
        assert watcher.gaps == []


@pytest.mark.parametrize("code", [402, 409])
async def test_a_refused_account_is_told_as_down_with_words_and_tried_again_slowly_while_rest_goes_on(
    code: int, street: Street, product: LiveProduct, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
):
    be_hasty(monkeypatch, replace(HASTY, backoff_limit_s=2.0))
    street.stream.auth_errors.append(code)
    spy = await watch(stack, product)
    await until(lambda: product.state(stock("SPY")) is FeedState.DOWN)
    began_s = time.monotonic()
    one = product.overview(stock("SPY"))
    assert one is not None
    assert one.detail is not None
    assert str(code) in one.detail
    assert SECRET not in one.detail
    bars = await street.pass_minutes(2, "SPY", told=False)
    await closed(spy, street, *bars)
    assert street.stream.opened == 1
    await street.stream.subscribed("SPY")
    assert time.monotonic() - began_s > 0.5
    bars = await street.pass_minutes(2, "SPY")
    await closed(spy, street, *bars, from_ms=bars[0].ts)
    await until(lambda: product.state(stock("SPY")) is FeedState.UP)
    assert street.stream.opened == 2
    assert spy.states[-1].state is FeedState.UP


async def test_a_symbol_beyond_the_limit_is_polled_and_the_others_are_streamed(
    street: Street, product: LiveProduct, stack: AsyncExitStack
):
    street.stream.limit = 2
    watchers = {symbol: await watch(stack, product, symbol) for symbol in ("SPY", "QQQ")}
    await street.stream.subscribed("SPY", "QQQ")
    watchers["IWM"] = await watch(stack, product, "IWM")
    await until(lambda: street.stream.subscriptions == {"SPY", "QQQ"})
    asked = street.calls_for("SPY") + street.calls_for("QQQ")
    bars = await street.pass_minutes(4, *SYMBOLS)
    for symbol in ("SPY", "QQQ"):
        await until(lambda w=watchers[symbol]: w.closed[-4:] == bars)  # type: ignore[misc]
    assert street.calls_for("SPY") + street.calls_for("QQQ") - asked <= 4
    await closed(watchers["IWM"], street, *bars)
    await until(lambda: product.state(stock("IWM")) is FeedState.UP)
    assert street.stream.opened == 1


async def test_an_account_whose_connection_is_taken_waits_for_it_and_rest_goes_on(
    street: Street, product: LiveProduct, stack: AsyncExitStack
):
    street.stream.connections_allowed = 0
    spy = await watch(stack, product)
    await street.stream.until(lambda: street.stream.opened >= 2)
    began_s = time.monotonic()
    answer = await product.get("ohlcv", **stock("SPY")._asdict(), start=OPENS_MS, end=NOW_MS - 2 * MINUTE_MS)
    assert len(answer["bars"]) == 58
    assert time.monotonic() - began_s < 2
    bars = await street.pass_minutes(2, "SPY", told=False)
    await closed(spy, street, *bars)
    street.stream.connections_allowed = 1
    await street.stream.subscribed("SPY")
    more = await street.pass_minutes(2, "SPY")
    await closed(spy, street, *more, from_ms=more[0].ts)
    await until(lambda: product.state(stock("SPY")) is FeedState.UP)


async def test_a_slow_client_is_connected_again_and_what_it_missed_is_fetched(
    street: Street, product: LiveProduct, stack: AsyncExitStack
):
    spy = await watch(stack, product)
    await street.stream.subscribed("SPY")
    bars = await street.pass_minutes(3, "SPY")
    await until(lambda: product.state(stock("SPY")) is FeedState.UP)
    spy.states.clear()
    street.stream.refusals.append((503, {}))
    await street.stream.shout(json.dumps([error(407)]))
    bars += await street.pass_minutes(3, "SPY", told=False)
    await street.stream.until(lambda: street.stream.opened == 3)
    await street.stream.subscribed("SPY")
    bars += await street.pass_minutes(3, "SPY")
    await closed(spy, street, *bars)
    await until(lambda: product.state(stock("SPY")) is FeedState.UP)
    assert spy.gaps == []
    assert (spy.states[0].state, spy.states[-1].state) == (FeedState.RECOVERING, FeedState.UP)


async def test_nobody_is_asked_at_night_and_the_morning_comes_in(
    street: Street, product: LiveProduct, stack: AsyncExitStack
):
    spy = await watch(stack, product)
    await street.stream.subscribed("SPY")
    await street.pass_minutes(2, "SPY")
    # Eight in the evening in New York, and a while for what was left open.
    street.set_clock(START_MS + 25 * HOUR_MS + 5 * MINUTE_MS)
    await until(lambda: product.settled_ms(stock("SPY")) >= START_MS + 25 * HOUR_MS, step=street.wait)
    calls, told = len(street.rest.calls), len(street.stream.told)
    for _ in range(60):
        street.set_clock(street.clock.now_ms() + 7 * MINUTE_MS)
        await asyncio.sleep(0.01)
    assert street.clock.now_ms() < START_MS + 33 * HOUR_MS
    assert (len(street.rest.calls), len(street.stream.told), street.stream.opened) == (calls, told, 1)
    street.set_clock(START_MS + 38 * HOUR_MS + 30 * MINUTE_MS)
    bars = await street.pass_minutes(3, "SPY")
    await closed(spy, street, *bars, from_ms=bars[0].ts)
    updated = msgspec.structs.replace(bars[0], volume=9.0)
    await street.stream.say("SPY", updated, kind="u")
    await until(lambda: spy.corrected == [updated])
