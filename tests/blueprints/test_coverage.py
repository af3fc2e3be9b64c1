"""`GET /api/v1/coverage`."""

import json

import pytest
from quart.typing import TestClientProtocol as Client

from domain.series import Series, Verdict
from domain.time_range import TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from plugins.base import Capabilities, NetworkPluginError
from services.coverage import Tile
from tests.fakes import FakeServices
from tests.support.market import START_MS

URL = "/api/v1/coverage"
ONE = {"market": "test", "provider": "fake", "symbol": "BTC/USDT", "start": START_MS}


@pytest.fixture(autouse=True)
def tiles(services: FakeServices) -> list[Tile]:
    services.ohlcv.tiles = [
        Tile(TimeRange(START_MS, START_MS + 3 * HOUR_MS), Verdict.DATA, 1, START_MS + DAY_MS),
        Tile(
            TimeRange(START_MS + 3 * HOUR_MS, START_MS + 4 * HOUR_MS), Verdict.UNCONFIRMED_EMPTY, 2, START_MS + DAY_MS
        ),
        Tile(TimeRange(START_MS + 4 * HOUR_MS, START_MS + 6 * HOUR_MS), Verdict.DATA),
    ]
    return services.ohlcv.tiles


async def test_the_report_has_the_shape_of_the_contract(client: Client):
    answer = json.loads(await (await client.get(URL, query_string=ONE)).get_data())
    assert answer["ranges"][1] == {
        "start": START_MS + 3 * HOUR_MS,
        "end": START_MS + 4 * HOUR_MS,
        "verdict": "unconfirmed_empty",
        "bars": 0,
        "attempts": 2,
        "checked_at": START_MS + DAY_MS,
    }
    assert [(r["bars"], r["checked_at"]) for r in answer["ranges"]][::2] == [(180, START_MS + DAY_MS), (120, None)]
    assert answer["summary"] == {"data": 300, "unconfirmed_empty": 60}
    assert "simulated" not in answer


async def test_a_failed_range_tells_its_attempts_and_its_last_error(client: Client, tiles: list[Tile]):
    failed = TimeRange(START_MS + 6 * HOUR_MS, START_MS + 7 * HOUR_MS)
    tiles.append(Tile(failed, Verdict.FETCH_FAILED, 3, START_MS + DAY_MS, "the venue is down"))
    answer = json.loads(await (await client.get(URL, query_string=ONE)).get_data())
    assert ["error" in part for part in answer["ranges"]] == [False, False, False, True]
    assert answer["ranges"][-1]["error"] == "the venue is down"
    assert answer["ranges"][-1]["attempts"] == 3


async def test_other_timeframes_are_counted_in_buckets(client: Client):
    answer = json.loads(await (await client.get(URL, query_string={**ONE, "timeframe": "1h"})).get_data())
    assert answer["timeframe"] == "1h"
    assert answer["summary"] == {"data": 5, "unconfirmed_empty": 1}


async def test_the_end_is_now_where_none_is_given(client: Client, services: FakeServices):
    await client.get(URL, query_string=ONE)
    await client.get(URL, query_string={**ONE, "end": START_MS + MINUTE_MS, "timeframe": "5m"})
    series = Series("test", "fake", "BTC/USDT")
    assert services.ohlcv.asked == [
        (series, Timeframe.M1, TimeRange(START_MS, services.clock.now_ms())),
        (series, Timeframe.M5, TimeRange(START_MS, START_MS + MINUTE_MS)),
    ]


async def test_a_wider_timeframe_may_span_a_longer_time(client: Client):
    query = {**ONE, "start": 0, "timeframe": "1h"}
    assert (await client.get(URL, query_string=query)).status_code == 200


async def test_simulated_series_are_labelled(client: Client, services: FakeServices):
    services.markets.capabilities = Capabilities(timeframes=(Timeframe.M1,), bars_per_call=1, simulated=True)
    response = await client.get(URL, query_string=ONE)
    assert json.loads(await response.get_data())["simulated"] is True
    assert response.headers["X-Candlery-Simulated"] == "true"


async def test_what_is_stored_is_reported_though_the_provider_be_gone(client: Client, services: FakeServices):
    async def gone(market: str, provider: str) -> None:
        raise NetworkPluginError("gone")

    services.markets.feed = gone  # type: ignore[assignment, method-assign]
    assert (await client.get(URL, query_string=ONE)).status_code == 200
