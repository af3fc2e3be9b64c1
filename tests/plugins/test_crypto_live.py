"""Live minutes by the real CCXT Pro client, from a Binance of one's own."""

import asyncio
import gc
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest

from domain.bar import Bar
from domain.timeframe import MINUTE_MS
from plugins import ccxt_live, ccxt_stream
from plugins.base import (
    LiveBars,
    NetworkPluginError,
    PluginConfig,
    PluginError,
    PluginFeatureNotSupportedError,
    RateLimitPluginError,
    SymbolNotFoundPluginError,
)
from plugins.ccxt_live import Feed
from plugins.ccxt_stream import Word, word_of
from plugins.crypto import CryptoPlugin
from tests.loopback.binance import BinanceLoopback
from tests.loopback.binance_stream import kline, read_frames, stream_of
from tests.loopback.coinbase import CoinbaseLoopback
from tests.loopback.exchange import LoopbackExchange, forming, listed
from tests.loopback.kraken import KrakenLoopback
from tests.loopback.market import random_minutes
from tests.support.market import START_MS

BTC, ETH = "BTC/USDT", "ETH/USDT"
RECORDINGS = Path(os.environ.get("CANDLERY_RECORDINGS") or Path(__file__).resolve().parents[3] / "shared")
PATIENCE_S = 15.0
FORMING, CLOSED = Word(closed=False), Word(closed=True)


def minutes(count: int, seed: int = 1) -> list[Bar]:
    return random_minutes(seed, START_MS, count, 0.0)


def plugin_for(venue: LoopbackExchange, **options: object) -> CryptoPlugin:
    return CryptoPlugin(PluginConfig(provider=venue.provider, options={**venue.ccxt_options, **options}, timeout_s=5))


@pytest.fixture(autouse=True)
async def quiet() -> AsyncIterator[None]:
    """No test leaves a task behind, nor an exception that nobody fetched, nor an error in a callback."""
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    yield
    async with asyncio.timeout(PATIENCE_S):
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []


@pytest.fixture
async def venue() -> AsyncIterator[BinanceLoopback]:
    async with BinanceLoopback({}) as venue:
        yield venue


@pytest.fixture
async def plugin(venue: BinanceLoopback) -> AsyncIterator[CryptoPlugin]:
    plugin = plugin_for(venue)
    await plugin.open()
    yield plugin
    await plugin.close()


async def next_of(live: AsyncGenerator[LiveBars, None]) -> LiveBars:
    async with asyncio.timeout(PATIENCE_S):
        return await anext(live)


async def error_of(live: AsyncGenerator[LiveBars, None]) -> PluginError:
    with pytest.raises(PluginError) as caught:
        await next_of(live)
    assert caught.value.detail
    return caught.value


def begin(live: AsyncGenerator[LiveBars, None]) -> asyncio.Task[LiveBars]:
    """Listen in the background."""
    return asyncio.create_task(next_of(live))


async def begun(plugin: CryptoPlugin, venue: BinanceLoopback, symbol: str = BTC) -> AsyncGenerator[LiveBars, None]:
    """A stream that has told a first, forming minute, one before START_MS."""
    live, id_ = plugin.live_minutes(symbol), symbol.replace("/", "")
    before = venue.stream.subscriptions[stream_of(id_)]
    first = begin(live)
    await venue.stream.until(lambda: venue.stream.subscriptions[stream_of(id_)] > before)
    bar = Bar(START_MS - MINUTE_MS, 1, 1, 1, 1, 0)
    await venue.stream.say(id_, bar, at_ms=START_MS - 1)
    assert await first == LiveBars(symbol, (bar,), closed=False, venue_ms=START_MS - 1)
    return live


async def closed_bars(live: AsyncGenerator[LiveBars, None], count: int) -> list[Bar]:
    bars: list[Bar] = []
    while len(bars) < count:
        told = await next_of(live)
        bars += told.bars if told.closed else ()
    return bars


# What is told


async def test_a_minute_is_told_as_it_forms_and_when_the_venue_closes_it(plugin: CryptoPlugin, venue: BinanceLoopback):
    bar = minutes(1)[0]
    async with aclosing(await begun(plugin, venue)) as live:
        await venue.stream.say("BTCUSDT", forming(bar), at_ms=START_MS + 5_000)
        assert await next_of(live) == LiveBars(BTC, (forming(bar),), closed=False, venue_ms=START_MS + 5_000)
        await venue.stream.say("BTCUSDT", bar, closed=True, at_ms=START_MS + MINUTE_MS)
        assert await next_of(live) == LiveBars(BTC, (bar,), closed=True, venue_ms=START_MS + MINUTE_MS)


async def test_two_symbols_share_one_connection_and_are_not_mixed_up(plugin: CryptoPlugin, venue: BinanceLoopback):
    async with aclosing(await begun(plugin, venue)) as bitcoin, aclosing(await begun(plugin, venue, ETH)) as ether:
        await asyncio.gather(
            venue.stream.play("BTCUSDT", minutes(50), updates=2), venue.stream.play("ETHUSDT", minutes(50, seed=2))
        )
        assert await closed_bars(bitcoin, 50) == minutes(50)
        assert await closed_bars(ether, 50) == minutes(50, seed=2)
        assert venue.stream.opened == 1


async def test_a_burst_that_comes_while_nobody_listens_loses_no_bar(plugin: CryptoPlugin, venue: BinanceLoopback):
    async with aclosing(await begun(plugin, venue)) as live, aclosing(await begun(plugin, venue, ETH)) as marker:
        await venue.stream.play("BTCUSDT", minutes(500))
        # One connection keeps the order: when the marker is here, so is the burst.
        await venue.stream.say("ETHUSDT", minutes(1)[0], at_ms=START_MS + 1)
        await next_of(marker)
        assert await next_of(live) == LiveBars(BTC, tuple(minutes(500)), True, START_MS + 500 * MINUTE_MS)


async def test_a_burst_reaches_a_reader_who_takes_his_time(plugin: CryptoPlugin, venue: BinanceLoopback):
    async with aclosing(await begun(plugin, venue)) as live:
        playing = asyncio.create_task(venue.stream.play("BTCUSDT", minutes(500), updates=2))
        bars: list[Bar] = []
        while len(bars) < 500:
            told = await next_of(live)
            bars += told.bars if told.closed else ()
            await asyncio.sleep(0.01)
        await playing
        assert bars == minutes(500)


async def test_late_and_corrected_bars_are_told(plugin: CryptoPlugin, venue: BinanceLoopback):
    first, second, third = minutes(3)
    corrected = msgspec.structs.replace(first, volume=first.volume + 1)
    async with aclosing(await begun(plugin, venue)) as live:
        for bar in (first, third, second, corrected):
            await venue.stream.say("BTCUSDT", bar, closed=True, at_ms=START_MS + 4 * MINUTE_MS)
            told = await next_of(live)
            assert (told.bars, told.closed) == ((bar,), True)


async def test_what_was_told_never_changes_afterwards(plugin: CryptoPlugin, venue: BinanceLoopback):
    bar = minutes(1)[0]
    later = msgspec.structs.replace(bar, high=bar.high + 5, close=bar.high + 5, volume=bar.volume * 2)
    async with aclosing(await begun(plugin, venue)) as live:
        await venue.stream.say("BTCUSDT", bar, at_ms=START_MS + 1)
        told = await next_of(live)
        before = json.dumps(msgspec.to_builtins(told))
        await venue.stream.say("BTCUSDT", later, at_ms=START_MS + 2)
        assert (await next_of(live)).bars == (later,)
        assert json.dumps(msgspec.to_builtins(told)) == before


async def test_where_the_exchange_keeps_its_rows_elsewhere_they_are_told_without_a_word_on_closing(
    plugin: CryptoPlugin, venue: BinanceLoopback, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ccxt_stream, "_OWN_SHELVES", frozenset({"binance"}))
    bar = minutes(1)[0]
    async with aclosing(plugin.live_minutes(BTC)) as live:
        for close in (False, True):
            told = begin(live)
            await venue.stream.subscribed("BTCUSDT")
            await venue.stream.say("BTCUSDT", bar, closed=close, at_ms=START_MS + MINUTE_MS)
            assert await told == LiveBars(BTC, (bar,), closed=None, venue_ms=None)


@pytest.mark.skipif(not (RECORDINGS / "wire").is_dir(), reason="there are no recordings here")
async def test_recorded_frames_of_binance_are_told_in_full(monkeypatch: pytest.MonkeyPatch):
    frames = read_frames(RECORDINGS / "wire" / "BINANCE.ws.1.0")
    pairs = {"NKNUSDT": "NKN/USDT", "BLZETH": "BLZ/ETH", "LRCBTC": "LRC/BTC", "RUNEEUR": "RUNE/EUR"}
    recorded = [json.loads(frame.text) for frame in frames]
    klines = [one["data"] for one in recorded if one.get("stream", "").endswith("@kline_1m")]
    assert klines, "the recording holds minutes"
    async with BinanceLoopback({}, symbols=listed(*pairs.values())) as venue:
        plugin = plugin_for(venue)
        await plugin.open()
        for id_ in {one["s"] for one in klines}:
            expected = [_of_kline(one) for one in klines if one["s"] == id_]
            live = plugin.live_minutes(pairs[id_])
            first = begin(live)
            await venue.stream.subscribed(id_)
            await venue.stream.replay(frames)
            told = [*(await first).bars]
            while told[-1] != expected[-1]:
                told += (await next_of(live)).bars
            # Of several frames about one minute, those that nobody was there to read may be left out.
            assert [bar for bar in expected if bar in told] == told
            await live.aclose()
        await plugin.close()


def _of_kline(told: dict[str, dict[str, object]]) -> Bar:
    k = told["k"]
    return Bar(int(str(k["t"])), *(float(str(k[name])) for name in "ohlcv"))


# How it ends


@pytest.mark.parametrize("code", [1000, 1001, 1012])
async def test_an_exchange_that_hangs_up_ends_all_streams_with_an_error_worth_another_try(
    plugin: CryptoPlugin, venue: BinanceLoopback, code: int
):
    streams = [await begun(plugin, venue), await begun(plugin, venue, ETH)]
    waiting = [begin(live) for live in streams]
    await venue.stream.close_all(code)
    for task in waiting:
        with pytest.raises(NetworkPluginError):
            await task
    await venue.stream.deserted()


async def test_a_dropped_connection_is_an_error_and_the_next_call_connects_anew(
    plugin: CryptoPlugin, venue: BinanceLoopback
):
    for n in range(3):
        live = await begun(plugin, venue)
        assert venue.stream.opened == n + 1
        venue.stream.cut()
        assert isinstance(await error_of(live), NetworkPluginError)
        await venue.stream.deserted()


async def test_a_drop_while_nobody_listens_is_told_after_what_came_before_it(
    plugin: CryptoPlugin, venue: BinanceLoopback
):
    live = await begun(plugin, venue)
    waiting = begin(await begun(plugin, venue, ETH))
    await venue.stream.play("BTCUSDT", minutes(5))
    await venue.stream.close_all()
    with pytest.raises(NetworkPluginError):
        await waiting
    assert await closed_bars(live, 5) == minutes(5)
    assert isinstance(await error_of(live), NetworkPluginError)
    assert venue.stream.opened == 1, "it must not connect anew behind our back"


async def test_a_connection_that_leads_nowhere_is_noticed_by_its_pings(venue: BinanceLoopback):
    plugin = plugin_for(venue, streaming={"keepAlive": 100})
    await plugin.open()
    live = await begun(plugin, venue)
    venue.stream.fall_silent()
    error = await error_of(live)
    assert isinstance(error, NetworkPluginError)
    assert "ping" in str(error)
    await plugin.close()


GARBAGE = {
    "half a frame": kline("BTCUSDT", minutes(1)[0], closed=False, at_ms=START_MS)[:40],
    "a page": "<html>502 Bad Gateway</html>",
    "words": "hello",
    "an empty list": "[]",
    "a minute without a symbol": '{"e":"kline","E":1}',
    "a minute without numbers": '{"e":"kline","E":1,"s":"BTCUSDT","k":{"s":"BTCUSDT","i":"1m"}}',
    "a minute at no minute": kline("BTCUSDT", Bar(START_MS + 1, 1, 1, 1, 1, 1), closed=False, at_ms=START_MS + 2),
    "high below low": kline("BTCUSDT", Bar(START_MS, 5, 4, 6, 5, 1), closed=False, at_ms=START_MS + 1),
    "infinite": kline("BTCUSDT", Bar(START_MS, 5, 5, 5, 5, float("inf")), closed=True, at_ms=START_MS + 1),
    "a minute to come": kline("BTCUSDT", minutes(1)[0], closed=False, at_ms=START_MS - 2_000),
    "trouble": '{"error":{"code":5001,"msg":"Internal error"},"id":1}',
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
async def test_garbage_is_an_error_worth_another_try(plugin: CryptoPlugin, venue: BinanceLoopback, garbage: str):
    live = await begun(plugin, venue)
    waiting = begin(live)
    await venue.stream.play("BTCUSDT", minutes(1))
    await waiting
    await venue.stream.shout(garbage)
    with pytest.raises(NetworkPluginError):
        await closed_bars(live, 2)
    again = await begun(plugin, venue)
    await again.aclose()


@pytest.mark.parametrize("body", [{"code": 2, "msg": "Invalid request: invalid stream"}, {"msg": "no such stream"}])
async def test_a_subscription_that_is_refused_is_an_error_and_harms_no_other(
    plugin: CryptoPlugin, venue: BinanceLoopback, body: dict[str, object]
):
    async with aclosing(await begun(plugin, venue)) as bitcoin:
        venue.stream.errors.append(body)
        error = await error_of(plugin.live_minutes(ETH))
        assert not error.retryable
        await venue.stream.play("BTCUSDT", minutes(2))
        assert await closed_bars(bitcoin, 2) == minutes(2)
        async with aclosing(await begun(plugin, venue, ETH)) as ether:
            await venue.stream.play("ETHUSDT", minutes(2))
            assert await closed_bars(ether, 2) == minutes(2)


async def test_a_handshake_that_is_refused_says_when_to_come_back(plugin: CryptoPlugin, venue: BinanceLoopback):
    venue.stream.refusals = [(429, {"Retry-After": "7"}), (503, {})]
    error = await error_of(plugin.live_minutes(BTC))
    assert isinstance(error, RateLimitPluginError)
    assert error.retry_after_s == 7
    assert isinstance(await error_of(plugin.live_minutes(BTC)), NetworkPluginError)
    await (await begun(plugin, venue)).aclose()


async def test_an_exchange_that_cannot_be_reached_is_worth_another_try(venue: BinanceLoopback):
    plugin = plugin_for(venue)
    await plugin.open()
    await plugin.fetch_symbols()
    await venue.stop()
    assert isinstance(await error_of(plugin.live_minutes(BTC)), NetworkPluginError)
    await plugin.close()


async def test_a_reader_who_never_comes_back_costs_a_bounded_number_of_minutes(
    plugin: CryptoPlugin, venue: BinanceLoopback, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ccxt_live, "MOST_WAITING", 20)
    async with aclosing(await begun(plugin, venue)) as live, aclosing(await begun(plugin, venue, ETH)) as marker:
        await venue.stream.play("BTCUSDT", minutes(100))
        await venue.stream.say("ETHUSDT", minutes(1)[0], at_ms=START_MS + 1)
        await next_of(marker)
        with pytest.raises(NetworkPluginError, match="wait to be read"):
            await closed_bars(live, 100)


# Coming and going


async def test_closing_a_stream_unsubscribes_it_and_the_last_one_takes_the_connection_along(
    plugin: CryptoPlugin, venue: BinanceLoopback
):
    bitcoin, ether = await begun(plugin, venue), await begun(plugin, venue, ETH)
    await bitcoin.aclose()
    await venue.stream.until(lambda: venue.stream.streams == {stream_of("ETHUSDT")})
    await venue.stream.play("ETHUSDT", minutes(3))
    assert await closed_bars(ether, 3) == minutes(3)
    await ether.aclose()
    await venue.stream.deserted()
    assert venue.stream.opened == 1


async def test_a_symbol_that_comes_back_at_once_is_subscribed_again(plugin: CryptoPlugin, venue: BinanceLoopback):
    async with aclosing(await begun(plugin, venue, ETH)):
        for _ in range(5):
            live = await begun(plugin, venue)
            await venue.stream.play("BTCUSDT", minutes(2))
            assert await closed_bars(live, 2) == minutes(2)
            await live.aclose()
        assert venue.stream.opened == 1
        await venue.stream.until(lambda: stream_of("BTCUSDT") not in venue.stream.streams)


async def test_a_symbol_that_the_exchange_did_not_let_go_comes_back_on_another_connection(
    plugin: CryptoPlugin, venue: BinanceLoopback, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ccxt_live, "LEAVE_S", 0.1)
    ether = await begun(plugin, venue, ETH)
    live = await begun(plugin, venue)
    venue.stream.unanswered = {"UNSUBSCRIBE"}
    await live.aclose()
    async with aclosing(await begun(plugin, venue)) as again:
        assert venue.stream.opened == 2
        await venue.stream.play("BTCUSDT", minutes(2))
        await venue.stream.play("ETHUSDT", minutes(2))
        assert await closed_bars(again, 2) == await closed_bars(ether, 2) == minutes(2)
    await ether.aclose()
    await venue.stream.deserted()


async def test_one_symbol_has_one_stream_at_a_time(plugin: CryptoPlugin, venue: BinanceLoopback):
    async with aclosing(await begun(plugin, venue)) as live:
        assert not (await error_of(plugin.live_minutes(BTC))).retryable
        await venue.stream.play("BTCUSDT", minutes(1))
        assert await closed_bars(live, 1) == minutes(1)


async def test_closing_the_plugin_ends_its_streams_with_an_error(plugin: CryptoPlugin, venue: BinanceLoopback):
    idle = await begun(plugin, venue)
    waiting = begin(await begun(plugin, venue, ETH))
    await plugin.close()
    with pytest.raises(PluginError):
        await waiting
    await error_of(idle)
    await venue.stream.deserted()
    await error_of(plugin.live_minutes(BTC))


async def test_closing_the_plugin_waits_for_no_exchange_that_is_gone(plugin: CryptoPlugin, venue: BinanceLoopback):
    live = await begun(plugin, venue)
    venue.stream.fall_silent()
    async with asyncio.timeout(4):
        await plugin.close()
    await error_of(live)


async def test_a_cancelled_listener_leaves_nothing_behind(plugin: CryptoPlugin, venue: BinanceLoopback):
    waiting = begin(await begun(plugin, venue))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await venue.stream.deserted()
    await (await begun(plugin, venue)).aclose()


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8, 13, 21, 34, 55])
async def test_a_listener_may_be_cancelled_while_it_connects(plugin: CryptoPlugin, venue: BinanceLoopback, steps: int):
    await plugin.fetch_symbols()
    waiting = begin(plugin.live_minutes(BTC))
    for _ in range(steps):
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await (await begun(plugin, venue)).aclose()
    await venue.stream.deserted()


async def test_it_streams_within_the_rate_limit_of_the_exchange(venue: BinanceLoopback):
    plugin = plugin_for(venue, enableRateLimit=True)
    await plugin.open()
    async with aclosing(await begun(plugin, venue)) as live, aclosing(await begun(plugin, venue, ETH)):
        await venue.stream.play("BTCUSDT", minutes(2))
        assert await closed_bars(live, 2) == minutes(2)
    await plugin.close()


# Where it streams


@pytest.mark.parametrize(
    ("make", "live"), [(BinanceLoopback, "stream"), (KrakenLoopback, "stream"), (CoinbaseLoopback, "poll")]
)
async def test_it_says_stream_where_ccxt_pro_streams_minutes(make: Callable[..., LoopbackExchange], live: str):
    async with make({}) as venue:
        plugin = plugin_for(venue)
        await plugin.open()
        assert plugin.capabilities.live == live
        symbol = next(iter(await plugin.fetch_symbols()))
        if live == "poll":
            assert isinstance(await error_of(plugin.live_minutes(symbol)), PluginFeatureNotSupportedError)
        await plugin.close()


async def test_an_exchange_without_a_stream_where_one_was_expected_is_an_error():
    async with KrakenLoopback({}) as venue:
        plugin = plugin_for(venue)
        await plugin.open()
        assert isinstance(await error_of(plugin.live_minutes("BTC/USD")), NetworkPluginError)
        await plugin.close()


async def test_a_symbol_that_is_not_listed_has_no_stream(plugin: CryptoPlugin, venue: BinanceLoopback):
    assert isinstance(await error_of(plugin.live_minutes("NO/SUCH")), SymbolNotFoundPluginError)
    assert venue.stream.opened == 0


# The feed


def test_the_newest_row_of_a_minute_wins_but_a_closed_minute_does_not_form_again():
    feed = Feed(BTC)
    first, second = minutes(2)
    rows = [[*msgspec.structs.astuple(bar)] for bar in (forming(first), first, second)]
    feed.take(rows[0], FORMING)
    feed.take(rows[1], CLOSED)
    feed.take(rows[0], FORMING)
    feed.take(rows[2], FORMING)
    assert feed.drain() == [LiveBars(BTC, (first,), closed=True), LiveBars(BTC, (second,), closed=False)]
    feed.take(rows[0], FORMING)
    assert feed.drain() == []


def test_a_bad_row_is_a_fault_and_nothing_after_it_is_told():
    feed = Feed(BTC)
    first, second = minutes(2)
    feed.take([*msgspec.structs.astuple(first)], Word())
    feed.take([START_MS, "x", 1, 1, 1, 1], Word())
    feed.take([*msgspec.structs.astuple(second)], Word())
    assert feed.drain() == [LiveBars(BTC, (first,))]
    assert feed.fault is not None


@pytest.mark.parametrize(
    ("message", "word"),
    [
        ({"E": 7, "k": {"x": True}}, Word(closed=True, venue_ms=7)),
        ({"E": 7, "k": {"x": False}}, Word(closed=False, venue_ms=7)),
        ({"E": "7", "k": {"x": 1}}, Word()),
        ({"E": True, "k": []}, Word()),
        ({"k": None}, Word()),
        ([], Word()),
        ("text", Word()),
    ],
)
def test_only_a_clear_word_counts(message: object, word: Word):
    assert word_of(message) == word
