"""The plugin for crypto exchanges: what it offers, its life, its market map, and each exchange's own rules."""

import asyncio
import gc
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import ccxt
import pytest

from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from plugins import crypto
from plugins.base import (
    Credentials,
    NetworkPluginError,
    PluginConfig,
    PluginError,
    PluginFeatureNotSupportedError,
    RateLimitPluginError,
    SymbolNotFoundPluginError,
)
from plugins.ccxt_markets import RENEW_AFTER_S, RETRY_AFTER_S
from plugins.ccxt_rules import DEFAULT_EXCHANGES, display_name, exchange_ids
from plugins.crypto import CryptoPlugin
from tests.loopback import faults
from tests.loopback.binance import BinanceLoopback, read_csv
from tests.loopback.exchange import LoopbackExchange, listed
from tests.loopback.faults import Fault
from tests.loopback.kraken import KrakenLoopback
from tests.loopback.market import random_minutes
from tests.loopback.reader import collect
from tests.support.clock import ManualClock
from tests.support.market import START_MS

M1 = Timeframe.M1


def plugin_for(exchange: LoopbackExchange, **options: object) -> CryptoPlugin:
    return CryptoPlugin(PluginConfig(provider=exchange.provider, options={**exchange.ccxt_options, **options}))


@pytest.fixture
async def binance() -> AsyncIterator[BinanceLoopback]:
    minutes = random_minutes(3, START_MS, 2500, 0.02)
    async with BinanceLoopback({"BTCUSDT": minutes}, clock=ManualClock(START_MS + 3 * DAY_MS)) as exchange:
        yield exchange


@pytest.fixture
async def plugin(binance: BinanceLoopback) -> AsyncIterator[CryptoPlugin]:
    plugin = plugin_for(binance)
    await plugin.open()
    yield plugin
    await plugin.close()


# What it offers


def test_the_usual_exchanges_are_offered_by_name():
    offered = CryptoPlugin.list_configurable_providers({})
    assert [one.id for one in offered] == list(DEFAULT_EXCHANGES)
    assert {one.id: one.name for one in offered}["okx"] == "OKX"
    assert not any(one.needs_credentials for one in offered)


def test_settings_name_the_exchanges_that_are_offered():
    offered = CryptoPlugin.list_configurable_providers({"exchanges": ["kraken", "bitvavo", "kraken"]})
    assert [(one.id, one.name) for one in offered] == [("kraken", "Kraken"), ("bitvavo", "Bitvavo")]


@pytest.mark.parametrize("name", ["nosuch", "Binance", "../binance", "base", ""])
async def test_what_is_no_exchange_of_ccxt_is_refused(name: str):
    with pytest.raises(PluginFeatureNotSupportedError, match=r"ccxt\.exchanges"):
        CryptoPlugin.list_configurable_providers({"exchanges": [name]})
    with pytest.raises(PluginFeatureNotSupportedError, match=r"ccxt\.exchanges"):
        await CryptoPlugin(PluginConfig(provider=name)).open()


def test_a_list_that_is_none_is_refused():
    with pytest.raises(PluginError, match="not a list"):
        CryptoPlugin.list_configurable_providers({"exchanges": "binance"})


def test_the_ids_and_names_are_ccxts_own():
    assert exchange_ids() == set(ccxt.exchanges)
    assert {id_: display_name(id_) for id_ in DEFAULT_EXCHANGES} == {
        id_: getattr(ccxt, id_)().name for id_ in DEFAULT_EXCHANGES
    }


def test_listing_the_exchanges_does_not_import_ccxt():
    program = (
        "import sys; from plugins.crypto import CryptoPlugin; CryptoPlugin.list_configurable_providers({});"
        "sys.exit('ccxt' in sys.modules)"
    )
    root = Path(crypto.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False, timeout=60).returncode == 0


async def test_every_usual_exchange_opens_without_a_call_and_says_what_it_can_do():
    for provider in DEFAULT_EXCHANGES:
        plugin = CryptoPlugin(PluginConfig(provider=provider, options={"timeout_on_exit": 0}))
        await plugin.open()
        able = plugin.capabilities
        await plugin.close()
        assert {M1, Timeframe.H1, Timeframe.D1} <= set(able.timeframes)
        assert all(able.can_serve(timeframe) for timeframe in Timeframe)
        assert able.bars_per_call >= 300
        assert 0 < able.calls_per_second < 1_000
        assert able.history_bars == {"kraken": 720, "gate": 10_000}.get(provider)


# Its life


async def test_it_must_be_opened_first():
    plugin = CryptoPlugin(PluginConfig(provider="binance"))
    with pytest.raises(PluginError, match="not open"):
        _ = plugin.capabilities
    with pytest.raises(PluginError, match="not open"):
        await plugin.fetch_symbols()
    await plugin.close()


async def test_opening_twice_at_once_makes_one_exchange(binance: BinanceLoopback, monkeypatch: pytest.MonkeyPatch):
    made = []
    real = crypto.make_exchange
    monkeypatch.setattr(crypto, "make_exchange", lambda config: made.append(1) or real(config))
    plugin = plugin_for(binance)
    await asyncio.gather(*(plugin.open() for _ in range(5)))
    assert made == [1]
    await plugin.close()
    await plugin.close()


async def test_nothing_stays_open_after_close_or_after_errors(
    binance: BinanceLoopback, caplog: pytest.LogCaptureFixture
):
    plugin = plugin_for(binance)
    await plugin.open()
    binance.listing_faults.next(faults.ERROR_500)
    with pytest.raises(NetworkPluginError):
        await plugin.fetch_symbols()
    await plugin.close()
    with caplog.at_level(logging.WARNING):
        del plugin
        gc.collect()
    assert not caplog.records


async def test_a_sandbox_that_the_exchange_does_not_have_is_refused():
    plugin = CryptoPlugin(PluginConfig(provider="bitstamp", sandbox=True))
    with pytest.raises(PluginFeatureNotSupportedError, match="sandbox"):
        await plugin.open()
    await plugin.close()


async def test_a_sandbox_is_used_where_there_is_one():
    plugin = CryptoPlugin(PluginConfig(provider="binance", sandbox=True, options={"timeout_on_exit": 0}))
    await plugin.open()
    assert "testnet" in plugin._exchange.urls["api"]["public"]
    await plugin.close()


async def test_options_that_make_no_sense_are_an_error_of_the_plugin():
    plugin = CryptoPlugin(PluginConfig(provider="binance", options={"options": 5}))
    with pytest.raises(PluginError, match="binance"):
        await plugin.open()
    await plugin.close()


async def test_credentials_options_and_time_out_reach_the_exchange():
    options = {"options": {"recvWindow": 1234}, "timeout_on_exit": 0}
    config = PluginConfig(
        provider="okx", credentials=Credentials("key", "secret", "word"), options=options, timeout_s=3.5
    )
    plugin = CryptoPlugin(config)
    await plugin.open()
    exchange = plugin._exchange
    assert (exchange.apiKey, exchange.secret, exchange.password) == ("key", "secret", "word")
    assert exchange.timeout == 3500
    assert exchange.options["recvWindow"] == 1234
    assert len(exchange.options) > 1
    assert exchange.enableRateLimit
    await plugin.close()
    assert options == {"options": {"recvWindow": 1234}, "timeout_on_exit": 0}


async def test_the_operator_can_switch_rate_limiting_off(plugin: CryptoPlugin):
    assert not plugin._exchange.enableRateLimit
    assert plugin.capabilities.calls_per_second == 1_000


# Its market map


async def test_symbols_are_ccxts_unified_ones(plugin: CryptoPlugin):
    symbols = await plugin.fetch_symbols()
    assert set(symbols) == {"BTC/USDT", "ETH/USDT", "BTC/BUSD", "ETH/BTC", "LTC/USDT"}
    assert symbols["BTC/USDT"].type == "spot"
    assert symbols["BTC/USDT"].active


@pytest.mark.parametrize("symbol", ["NO/SUCH", "BTCUSDT", "btc/usdt", ""])
async def test_unknown_symbols_are_not_asked_for(plugin: CryptoPlugin, binance: BinanceLoopback, symbol: str):
    with pytest.raises(SymbolNotFoundPluginError):
        await plugin.fetch_page(symbol, M1, TimeRange(START_MS, START_MS + HOUR_MS))
    assert not binance.calls_to("klines")


async def test_concurrent_first_calls_load_the_markets_once(plugin: CryptoPlugin, binance: BinanceLoopback):
    wanted = TimeRange(START_MS, START_MS + HOUR_MS)
    pages = await asyncio.gather(*(plugin.fetch_page("BTC/USDT", M1, wanted) for _ in range(8)))
    assert all(page.bars == pages[0].bars for page in pages)
    assert len(binance.calls_to("exchangeInfo")) == 1


_LISTING_FAULTS = (*faults.LOUD,)


@pytest.mark.parametrize("fault", _LISTING_FAULTS, ids=lambda fault: fault.name)
async def test_a_first_load_that_fails_can_be_tried_again(plugin: CryptoPlugin, binance: BinanceLoopback, fault: Fault):
    binance.listing_faults.next(fault)
    with pytest.raises((NetworkPluginError, RateLimitPluginError)):
        await plugin.fetch_symbols()
    assert len(await plugin.fetch_symbols()) == 5


@pytest.mark.parametrize("fault", _LISTING_FAULTS, ids=lambda fault: fault.name)
async def test_a_good_map_outlives_a_bad_answer(plugin: CryptoPlugin, binance: BinanceLoopback, fault: Fault):
    now_s = [0.0]
    await plugin.fetch_symbols()
    assert plugin._markets is not None
    plugin._markets._monotonic = lambda: now_s[0]
    plugin._markets._due = RENEW_AFTER_S
    now_s[0] = RENEW_AFTER_S
    binance.listing_faults.next(fault)
    assert len(await plugin.fetch_symbols()) == 5
    assert len(plugin._exchange.markets) == 5
    assert (await plugin.fetch_page("BTC/USDT", M1, TimeRange(START_MS, START_MS + HOUR_MS))).bars
    assert len(binance.calls_to("exchangeInfo")) == 2
    now_s[0] += RETRY_AFTER_S
    binance.listed |= {one.id: one for one in listed("DOGE/USDT")}
    assert "DOGE/USDT" in await plugin.fetch_symbols()
    assert len(binance.calls_to("exchangeInfo")) == 3


async def test_a_map_that_lost_most_of_its_symbols_is_not_believed(plugin: CryptoPlugin, binance: BinanceLoopback):
    await plugin.fetch_symbols()
    assert plugin._markets is not None
    plugin._markets._due = 0.0
    binance.listed = {one.id: one for one in listed("BTC/USDT", "ETH/USDT")}
    assert len(await plugin.fetch_symbols()) == 5


# Each exchange's own rules


async def test_binance_is_asked_for_a_thousand_at_a_time(plugin: CryptoPlugin, binance: BinanceLoopback):
    wanted = TimeRange(START_MS, START_MS + 2500 * MINUTE_MS)
    found = await collect(plugin, "BTC/USDT", M1, wanted)
    assert found.bars == binance.bars("BTCUSDT", M1)
    assert found.covered == RangeSet((wanted,))
    # The third page asks for no more than what is left, since holes made the first two reach further.
    limits = [int(call.query["limit"]) for call in binance.calls_to("klines")]
    assert limits[:2] == [1000, 1000]
    assert limits[2] < 500
    assert len(limits) == 3


async def test_years_before_the_first_bar_cost_one_call(plugin: CryptoPlugin, binance: BinanceLoopback):
    page = await plugin.fetch_page("BTC/USDT", M1, TimeRange(START_MS - 900 * DAY_MS, START_MS))
    assert page.covered == RangeSet.of(START_MS - 900 * DAY_MS, START_MS)
    assert not page.bars
    assert len(binance.calls_to("klines")) == 1


async def test_timeframes_that_the_exchange_lacks_are_refused(plugin: CryptoPlugin):
    for timeframe in (Timeframe.D3, Timeframe.MN1):
        assert timeframe not in plugin.capabilities.timeframes
        with pytest.raises(PluginFeatureNotSupportedError):
            await plugin.fetch_page("BTC/USDT", timeframe, TimeRange(START_MS, START_MS + 90 * DAY_MS))


async def test_kraken_forgets_all_but_the_newest_720():
    minutes = random_minutes(5, START_MS, 3000, 0.0)
    now_ms = START_MS + 3000 * MINUTE_MS - 1
    async with KrakenLoopback({"BTCUSD": minutes}, clock=ManualClock(now_ms)) as kraken:
        plugin = plugin_for(kraken)
        await plugin.open()
        everything = await plugin.fetch_page("BTC/USD", M1, TimeRange(START_MS, START_MS + 3000 * MINUTE_MS))
        old = await plugin.fetch_page("BTC/USD", M1, TimeRange(START_MS, START_MS + 600 * MINUTE_MS))
        await plugin.close()
    reach_ms = START_MS + 2280 * MINUTE_MS
    assert list(everything.bars[:-1]) == minutes[2280:-1]
    assert everything.covered == RangeSet.of(reach_ms, START_MS + 3000 * MINUTE_MS)
    assert not old.bars
    assert not old.covered


async def test_errors_that_kraken_sends_with_status_200_are_told_apart():
    async with KrakenLoopback({"BTCUSD": random_minutes(5, START_MS, 10, 0.0)}) as kraken:
        plugin = plugin_for(kraken)
        await plugin.open()
        wanted = TimeRange(START_MS, START_MS + HOUR_MS)
        for text, kind in [
            ("EGeneral:Too many requests", RateLimitPluginError),
            ("EAPI:Rate limit exceeded", RateLimitPluginError),
            ("EService:Unavailable", NetworkPluginError),
            ("EQuery:Unknown asset pair", SymbolNotFoundPluginError),
        ]:
            kraken.faults.next(faults.kraken_error(text))
            with pytest.raises(kind):
                await plugin.fetch_page("BTC/USD", M1, wanted)
        await plugin.close()


async def test_minus_1003_without_status_429_is_a_rate_limit_too(plugin: CryptoPlugin, binance: BinanceLoopback):
    binance.faults.next(faults.WEIGHT_1003)
    with pytest.raises(RateLimitPluginError):
        await plugin.fetch_page("BTC/USDT", M1, TimeRange(START_MS, START_MS + HOUR_MS))


async def test_a_cancelled_call_stays_cancelled(plugin: CryptoPlugin, binance: BinanceLoopback):
    await plugin.fetch_symbols()
    binance.faults.next(faults.HANG)
    call = asyncio.create_task(plugin.fetch_page("BTC/USDT", M1, TimeRange(START_MS, START_MS + HOUR_MS)))
    async with asyncio.timeout(10):
        await binance.faults.hanging.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


# Recordings


async def test_the_recorded_exchange_info_is_understood(recordings: Path):
    text = (recordings / "wire" / "BINANCE.0").read_text().splitlines()[0]
    info = json.loads(text[text.index(": {") + 2 :])
    async with BinanceLoopback({}, exchange_info=info) as exchange:
        plugin = plugin_for(exchange)
        await plugin.open()
        symbols = await plugin.fetch_symbols()
        await plugin.close()
    assert len(symbols) > 1_000
    assert symbols["BTC/USDT"].active


async def test_a_recorded_day_is_read_whole(recordings: Path):
    minutes = read_csv(recordings / "data" / "crypto_1m" / "binance_btcbusd_1m.csv")
    async with BinanceLoopback({"BTCBUSD": minutes}) as exchange:
        plugin = plugin_for(exchange)
        await plugin.open()
        found = await collect(plugin, "BTC/BUSD", M1, TimeRange(minutes[0].ts, minutes[-1].ts + MINUTE_MS))
        await plugin.close()
    assert found.bars == minutes
