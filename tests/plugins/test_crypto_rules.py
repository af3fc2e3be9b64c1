"""How each usual exchange is asked: one bounded stretch at a time, and an empty list believed. Nothing is called."""

import json
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from domain.time_range import RangeSet, TimeRange
from domain.timeframe import MINUTE_MS, Timeframe
from plugins.base import NetworkPluginError, PluginConfig
from plugins.ccxt_rules import DEFAULT_EXCHANGES, Reach, rules_of
from plugins.crypto import CryptoPlugin
from tests.support.market import START_MS

WANTED = TimeRange(START_MS, START_MS + 20_000 * MINUTE_MS)
EMPTY: dict[str, object] = {
    "binance": [],
    "bybit": {"retCode": 0, "retMsg": "OK", "result": {"symbol": "BTCUSDT", "category": "spot", "list": []}},
    "coinbase": {"candles": []},
    "coinbaseexchange": [],
    "kraken": {"error": [], "result": {"BTCUSDT": [], "last": 0}},
    "okx": {"code": "0", "msg": "", "data": []},
    "bitstamp": {"data": {"pair": "BTC/USDT", "ohlc": []}},
    "kucoin": {"code": "200000", "data": []},
    "gate": [],
    "bitfinex": [],
}
#: The last instant that each is asked about, in seconds or milliseconds, where the question has an end.
ENDS = {"bybit": "end", "coinbase": "end", "bitstamp": "end", "kucoin": "endAt", "gate": "to", "okx": "after"}


async def opened(provider: str, body: object, asked: list[dict[str, str]]) -> CryptoPlugin:
    """A plugin whose exchange answers every request with the body."""
    plugin = CryptoPlugin(PluginConfig(provider=provider, options={"timeout_on_exit": 0, "enableRateLimit": False}))
    await plugin.open()
    exchange = plugin._exchange
    market = {"id": "BTCUSDT", "symbol": "BTC/USDT", "base": "BTC", "quote": "USDT", "type": "spot", "spot": True}

    async def fetch_markets() -> object:
        return [exchange.safe_market_structure(market)]

    async def fetch(url: str, method: str = "GET", headers: Any = None, body_sent: Any = None) -> object:
        asked.append(dict(parse_qsl(urlsplit(url).query)))
        text = exchange.on_rest_response(200, "OK", url, method, {}, json.dumps(body), None, None)
        return exchange.parse_json(text)

    exchange.fetch_markets, exchange.fetch = fetch_markets, fetch
    return plugin


@pytest.mark.parametrize("provider", DEFAULT_EXCHANGES)
async def test_an_empty_list_covers_the_stretch_that_was_asked_about(provider: str):
    asked: list[dict[str, str]] = []
    plugin = await opened(provider, EMPTY[provider], asked)
    cap = plugin.capabilities.bars_per_call
    page = await plugin.fetch_page("BTC/USDT", Timeframe.M1, WANTED)
    await plugin.close()
    bounded = rules_of(provider).reach is Reach.WINDOW
    end_ms = START_MS + cap * MINUTE_MS if bounded else WANTED.end_ms
    assert page.covered == RangeSet.of(START_MS, end_ms)
    assert len(asked) == 1
    if provider in ENDS:
        end = int(asked[0][ENDS[provider]])
        assert end * (1 if end > 10**11 else 1000) >= end_ms - MINUTE_MS


@pytest.mark.parametrize("provider", DEFAULT_EXCHANGES)
async def test_an_object_without_the_list_is_no_empty_page(provider: str):
    healthy = EMPTY[provider]
    body = (
        {key: value for key, value in healthy.items() if key in {"code", "retCode", "error"}}
        if isinstance(healthy, dict)
        else {}
    )
    plugin = await opened(provider, body, [])
    with pytest.raises(NetworkPluginError):
        await plugin.fetch_page("BTC/USDT", Timeframe.M1, WANTED)
    await plugin.close()


async def test_an_exchange_nothing_is_known_of_is_believed_in_what_it_shows_alone():
    """Gemini gives its newest bars, whatever is asked."""
    rows = [[START_MS + (50_000 + minute) * MINUTE_MS, 2, 3, 1, 2, 1] for minute in range(600)]
    plugin = await opened("gemini", rows, [])
    page = await plugin.fetch_page("BTC/USDT", Timeframe.M1, WANTED)
    await plugin.close()
    assert not page.bars
    assert not page.covered
