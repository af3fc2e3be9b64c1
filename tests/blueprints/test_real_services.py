"""The whole way: HTTP, the real services, a real database, and a scripted provider."""

import json
from itertools import pairwise
from typing import Any

import pytest
from quart.typing import TestClientProtocol as Client

from app import create_app
from domain.bar import fold
from domain.timeframe import HOUR_MS, Timeframe
from plugins.base import NetworkPluginError
from services.bar_store import BarStore
from tests.fakes import FakeServices
from tests.support.clock import ManualClock
from tests.support.house import House, make_house
from tests.support.market import START_MS, random_minutes
from tests.support.scripted import ScriptedPlugin

URL = "/api/v1/ohlcv"
ONE = {"market": "test", "provider": "scripted", "symbol": "A/B"}
MINUTES = random_minutes(7, 600, holes=0.3)
END_MS = START_MS + 10 * HOUR_MS


@pytest.fixture
def house(store: BarStore, clock: ManualClock) -> House:
    return make_house(store, clock, ScriptedPlugin({"A/B": MINUTES, "C/D": MINUTES[100:]}))


@pytest.fixture
def client(house: House) -> Client:
    services: Any = FakeServices()
    services.clock, services.markets, services.ohlcv = house.clock, house.markets, house.ohlcv
    return create_app(services.config, services).test_client()


async def ask(client: Client, **query: Any) -> dict[str, Any]:
    response = await client.get(URL, query_string={**ONE, **query})
    answer: dict[str, Any] = json.loads(await response.get_data())
    assert response.status_code == 200, answer
    return answer


async def pages(client: Client, **query: Any) -> list[dict[str, Any]]:
    """Every page of a question."""
    found = [await ask(client, **query)]
    while found[-1]["next_page_token"] is not None and len(found) < 500:
        found.append(await ask(client, **query, page_token=found[-1]["next_page_token"]))
    return found


async def test_a_bar_comes_out_as_its_provider_gave_it(client: Client):
    answer = await ask(client, start=START_MS, end=END_MS, limit=5)
    assert answer["bars"] == [[b.ts, b.open, b.high, b.low, b.close, b.volume] for b in MINUTES[:5]]
    assert answer["sources"] == ["provider"]


@pytest.mark.parametrize("limit", [7, 100])
async def test_the_pages_of_several_symbols_are_all_their_bars_once(client: Client, limit: int):
    found = await pages(client, symbol=["A/B", "C/D"], start=START_MS, end=END_MS, limit=limit)
    for symbol, bars in (("A/B", MINUTES), ("C/D", MINUTES[100:])):
        assert [row[0] for page in found for row in page["bars"][symbol]] == [b.ts for b in bars]


async def test_a_fill_is_the_same_in_pages_and_in_one_piece(client: Client, house: House):
    house.clock.advance(hours=2)
    query = {"start": MINUTES[0].ts, "end": END_MS, "fill": "previous"}
    await ask(client, **query)
    house.clock.advance(hours=2)
    whole = await ask(client, **query)
    found = await pages(client, **query, limit=9)
    assert [row for page in found for row in page["bars"]] == whole["bars"]
    assert [ts for page in found for ts in page["filled"]] == whole["filled"]
    assert whole["filled"]


async def test_folded_bars_are_the_minutes_folded(client: Client):
    answer = await ask(client, start=START_MS, end=END_MS, timeframe="5m")
    assert [row[0] for row in answer["bars"]] == [b.ts for b in fold(MINUTES, Timeframe.M5)]


async def test_the_tag_of_a_closed_range_holds_from_cold_to_warm(store: BarStore, clock: ManualClock):
    whole = random_minutes(9, 60, holes=0.0)
    house = make_house(store, clock, ScriptedPlugin({"A/B": whole}))
    services: Any = FakeServices()
    services.clock, services.markets, services.ohlcv = house.clock, house.markets, house.ohlcv
    client = create_app(services.config, services).test_client()
    query = {**ONE, "start": START_MS, "end": START_MS + HOUR_MS}
    cold = await client.get(URL, query_string=query)
    calls = len(house.plugin.calls)
    assert json.loads(await cold.get_data())["sources"] == ["provider"]
    warm = await client.get(URL, query_string=query, headers={"If-None-Match": cold.headers["ETag"]})
    assert warm.status_code == 304
    assert len(house.plugin.calls) == calls


async def test_what_is_stored_is_served_with_its_gaps_while_the_provider_is_gone(client: Client, house: House):
    await ask(client, start=START_MS, end=START_MS + HOUR_MS)

    def gone(call: int, wanted: object) -> None:
        raise NetworkPluginError("the venue is down")

    house.plugin.fault = gone  # type: ignore[assignment]
    query = {**ONE, "start": START_MS, "end": START_MS + 2 * HOUR_MS}
    answer = await ask(client, **query)
    assert [row[0] for row in answer["bars"]] == [b.ts for b in MINUTES if b.ts < START_MS + HOUR_MS]
    assert answer["coverage"]["complete"] is False
    assert answer["coverage"]["gaps"][-1] == {
        "start": START_MS + HOUR_MS,
        "end": START_MS + 2 * HOUR_MS,
        "verdict": "fetch_failed",
    }
    house.clock.advance(hours=1)
    refused = await client.get(URL, query_string={**query, "require": "complete"})
    assert (refused.status_code, json.loads(await refused.get_data())["code"]) == (503, "incomplete")
    assert "Retry-After" in refused.headers


async def test_coverage_tiles_the_range(client: Client):
    await ask(client, start=START_MS, end=START_MS + HOUR_MS)
    query = {**ONE, "start": START_MS, "end": START_MS + 2 * HOUR_MS}
    answer = json.loads(await (await client.get("/api/v1/coverage", query_string=query)).get_data())
    borders = [(tile["start"], tile["end"]) for tile in answer["ranges"]]
    assert (borders[0][0], borders[-1][1]) == (START_MS, START_MS + 2 * HOUR_MS)
    assert all(left[1] == right[0] for left, right in pairwise(borders))
    bars = sum(b.ts < START_MS + HOUR_MS for b in MINUTES)
    assert answer["summary"] == {"data": bars, "unconfirmed_empty": 60 - bars, "never_fetched": 60}
    assert sum(tile["bars"] for tile in answer["ranges"]) == bars


async def test_an_unknown_symbol_is_told_what_comes_close(client: Client):
    response = await client.get(URL, query_string={**ONE, "symbol": "A/C"})
    answer = json.loads(await response.get_data())
    assert (response.status_code, answer["code"]) == (404, "unknown_symbol")
    assert "A/B" in answer["detail"]
