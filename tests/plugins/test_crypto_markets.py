"""An exchange's market map: what CCXT made of the exchange's answer, without what only fills memory."""

from typing import Any

import pytest

from plugins.base import NetworkPluginError
from plugins.ccxt_markets import MarketMap


class Exchange:
    """Takes markets as CCXT's exchanges do."""

    id = "scripted"

    def __init__(self) -> None:
        self.markets: dict[str, dict[str, Any]] = {}

    def set_markets(self, markets: list[dict[str, Any]]) -> None:
        self.markets = {market["symbol"]: market for market in markets}


def market(symbol: str, **info: object) -> dict[str, Any]:
    return {
        "id": symbol.replace("/", ""),
        "symbol": symbol,
        "type": "spot",
        "active": True,
        "limits": {"amount": {"min": 0.1, "max": None}},
        "marginModes": ["cross"],
        "info": info,
    }


async def test_a_market_keeps_everything_but_the_lists_that_the_exchange_told():
    exchange = Exchange()
    told = market("BTC/USDT", status="TRADING", filters=[{"a": 1}], orderTypes=["LIMIT"], pair={"id": "BTC"}, none=None)

    async def fetch() -> object:
        return [told]

    symbols = await MarketMap(exchange, fetch).symbols()
    assert list(symbols) == ["BTC/USDT"]
    assert exchange.markets["BTC/USDT"] == told | {"info": {"status": "TRADING", "pair": {"id": "BTC"}, "none": None}}
    assert told["info"]["orderTypes"] == ["LIMIT"], "what was given is left alone"


@pytest.mark.parametrize("answer", [None, {}, [], ["BTC/USDT"], [{"symbol": "BTC/USDT"}], [None]])
async def test_an_answer_without_a_market_is_no_map(answer: object):
    async def fetch() -> object:
        return answer

    with pytest.raises(NetworkPluginError):
        await MarketMap(Exchange(), fetch).symbols()


async def test_a_market_without_the_words_of_its_exchange_is_taken():
    exchange = Exchange()
    bare = {"id": "BTCUSDT", "symbol": "BTC/USDT"}

    async def fetch() -> object:
        return [bare, market("ETH/USDT") | {"info": ["no", "object"]}]

    assert set(await MarketMap(exchange, fetch).symbols()) == {"BTC/USDT", "ETH/USDT"}
    assert exchange.markets["ETH/USDT"]["info"] == ["no", "object"]
