"""`GET /api/v1/markets`, `/providers` and `/symbols`."""

import json
from typing import Any

import pytest
from quart.typing import TestClientProtocol as Client

from domain.timeframe import Timeframe
from plugins.base import Capabilities, NetworkPluginError
from tests.fakes import FakeServices

SYMBOLS = {"market": "test", "provider": "fake"}


async def get(client: Client, path: str, **query: Any) -> dict[str, Any]:
    response = await client.get(f"/api/v1/{path}", query_string=query)
    assert response.status_code == 200
    answer: dict[str, Any] = json.loads(await response.get_data())
    return answer


async def test_markets_are_listed_with_their_providers(client: Client):
    assert await get(client, "markets") == {"markets": [{"id": "test", "providers": ["fake"]}]}


async def test_a_provider_says_what_it_can_do(client: Client):
    answer = await get(client, "providers", market="test")
    assert answer["market"] == "test"
    (provider,) = answer["providers"]
    assert provider.pop("timeframes") == [timeframe.value for timeframe in Timeframe]
    assert provider == {
        "id": "fake",
        "name": "Fake",
        "available": True,
        "native_timeframes": ["1m", "1h"],
        "live": "stream",
        "bars_per_call": 500,
        "needs_credentials": True,
    }


async def test_only_timeframes_that_can_be_had_are_offered(client: Client, services: FakeServices):
    services.markets.capabilities = Capabilities(timeframes=(Timeframe.D1,), bars_per_call=1, simulated=True)
    (provider,) = (await get(client, "providers", market="test"))["providers"]
    assert provider["timeframes"] == ["1d", "3d", "1w", "1M"]
    assert provider["simulated"] is True


async def test_a_provider_that_cannot_be_opened_is_listed_as_unavailable(client: Client, services: FakeServices):
    services.markets.capabilities = None
    (provider,) = (await get(client, "providers", market="test"))["providers"]
    assert (provider["available"], provider["timeframes"], provider["live"]) == (False, [], None)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("btc", ["BTC", "BTC/USDT", "WBTC/USDT"]),
        ("BTC/USDT", ["BTC/USDT", "WBTC/USDT"]),
        ("bitcoin", ["BTC/USDT", "WBTC/USDT"]),
        ("s&p", ["SPY"]),
        ("the", ["BTC", "ETH/USDT"]),
        ("nothing like it", []),
        (" eth ", ["ETH/USDT"]),
    ],
)
async def test_the_best_matches_come_first(client: Client, query: str, found: list[str]):
    answer = await get(client, "symbols", **SYMBOLS, query=query)
    assert [item["symbol"] for item in answer["symbols"]] == found
    assert answer["total"] == len(found)


async def test_without_a_query_all_symbols_come_in_order_up_to_the_limit(client: Client):
    answer = await get(client, "symbols", **SYMBOLS, limit=2)
    assert [item["symbol"] for item in answer["symbols"]] == ["BTC", "BTC/USDT"]
    assert answer["total"] == 5


async def test_a_symbol_is_told_as_its_provider_lists_it(client: Client):
    (symbol,) = (await get(client, "symbols", **SYMBOLS, query="SPY"))["symbols"]
    expected = {"symbol": "SPY", "name": "SPDR S&P 500", "type": "stock", "active": True}
    assert symbol == {**expected, "calendar": "XNYS", "listed": 0}


async def test_simulated_symbols_are_labelled(client: Client, services: FakeServices):
    assert "simulated" not in await get(client, "symbols", **SYMBOLS)
    services.markets.capabilities = Capabilities(timeframes=(Timeframe.M1,), bars_per_call=1, simulated=True)
    assert (await get(client, "symbols", **SYMBOLS))["simulated"] is True


async def test_a_provider_out_of_reach_is_an_error_of_its_own(client: Client, services: FakeServices):
    services.markets.error = NetworkPluginError("gone")
    response = await client.get("/api/v1/symbols", query_string=SYMBOLS)
    assert (response.status_code, json.loads(await response.get_data())["code"]) == (503, "provider_unavailable")
