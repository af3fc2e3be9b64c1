"""`GET /api/v1/coverage`."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from quart.typing import TestClientProtocol as Client

from app import create_app
from domain.bar import Bar
from domain.series import Series, Verdict
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from plugins.base import Capabilities, NetworkPluginError
from services.bar_store import BarStore
from services.coverage import Tile
from tests.fakes import FakeServices
from tests.support.clock import ManualClock
from tests.support.house import House, make_house
from tests.support.market import START_MS
from tests.support.scripted import ScriptedPlugin

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


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


def minutes(start: str, end: str) -> list[Bar]:
    return [Bar(ts, 1.0, 2.0, 0.5, 1.5, 10.0) for ts in range(at(start), at(end), MINUTE_MS)]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(at("2025-06-02"))


@pytest.fixture
def stocks(store: BarStore, clock: ManualClock) -> House:
    """A stock that trades in every minute of regular hours, on a half-day and on a normal one."""
    bars = minutes("2024-11-29T14:30", "2024-11-29T18:00") + minutes("2025-01-10T14:30", "2025-01-10T21:00")
    return make_house(store, clock, ScriptedPlugin({"SPY": bars}, calendar="XNYS"))


async def verdicts(house: House, start: str, end: str) -> list[tuple[str, str, str]]:
    """What `GET /coverage` says, as times of day and verdicts; neighbours of one verdict joined."""
    services: Any = FakeServices()
    services.clock, services.markets, services.ohlcv = house.clock, house.markets, house.ohlcv
    query = {"market": "test", "provider": "scripted", "symbol": "SPY", "start": at(start), "end": at(end)}
    response = await create_app(services.config, services).test_client().get(URL, query_string=query)
    assert response.status_code == 200
    found: list[tuple[str, str, str]] = []
    for part in json.loads(await response.get_data())["ranges"]:
        begins, ends = (datetime.fromtimestamp(part[edge] / 1000, UTC).strftime("%H:%M") for edge in ("start", "end"))
        if found and found[-1][2] == part["verdict"]:
            begins = found.pop()[0]
        found.append((begins, ends, part["verdict"]))
    return found


async def fetch(house: House, start: str, end: str) -> None:
    await house.bars("SPY", start_ms=at(start), end_ms=at(end), limit=10_000)


async def test_a_half_day_is_closed_from_17_o_clock_in_new_york_on(stocks: House):
    assert await verdicts(stocks, "2024-11-29", "2024-11-30") == [
        ("00:00", "09:00", "closed_session"),
        ("09:00", "22:00", "never_fetched"),
        ("22:00", "00:00", "closed_session"),
    ]
    await fetch(stocks, "2024-11-29", "2024-11-30")
    assert await verdicts(stocks, "2024-11-29", "2024-11-30") == [
        ("00:00", "09:00", "closed_session"),
        ("09:00", "14:30", "unconfirmed_empty"),
        ("14:30", "18:00", "data"),
        ("18:00", "22:00", "unconfirmed_empty"),
        ("22:00", "00:00", "closed_session"),
    ]


async def test_a_second_look_confirms_the_extended_hours_and_leaves_the_closed_ones_alone(stocks: House):
    await fetch(stocks, "2024-11-29", "2024-11-30")
    stocks.clock.advance(hours=1)
    stocks.plugin.calls.clear()
    assert await stocks.rechecker.run() == 2
    assert [tuple(wanted) for _, _, wanted in stocks.plugin.calls] == [
        (at("2024-11-29T09:00"), at("2024-11-29T14:30")),
        (at("2024-11-29T18:00"), at("2024-11-29T22:00")),
    ]
    assert await verdicts(stocks, "2024-11-29", "2024-11-30") == [
        ("00:00", "09:00", "closed_session"),
        ("09:00", "14:30", "no_trades"),
        ("14:30", "18:00", "data"),
        ("18:00", "22:00", "no_trades"),
        ("22:00", "00:00", "closed_session"),
    ]


async def test_a_day_of_mourning_is_closed_and_nobody_is_asked_about_it(stocks: House):
    await fetch(stocks, "2025-01-09T01:00", "2025-01-10")
    assert stocks.plugin.calls == []
    # The evening of the session before ends at 20:00 in New York.
    assert await verdicts(stocks, "2025-01-09", "2025-01-10") == [
        ("00:00", "01:00", "never_fetched"),
        ("01:00", "00:00", "closed_session"),
    ]


async def test_extended_hours_of_a_session_count_as_open(stocks: House):
    assert await verdicts(stocks, "2025-01-10", "2025-01-12") == [
        ("00:00", "09:00", "closed_session"),
        ("09:00", "01:00", "never_fetched"),
        ("01:00", "00:00", "closed_session"),
    ]


async def test_a_bar_in_a_closed_hour_is_data(stocks: House, store: BarStore):
    listing = await stocks.markets.find(Series("test", "scripted", "SPY"))
    odd = RangeSet.of(at("2025-01-09T12:00"), at("2025-01-09T12:02"))
    bars = minutes("2025-01-09T12:00", "2025-01-09T12:02")
    await store.record(listing.stored.id, Timeframe.M1, bars=bars, answered=odd, was_asked=False)
    assert await verdicts(stocks, "2025-01-09T01:00", "2025-01-10") == [
        ("01:00", "12:00", "closed_session"),
        ("12:00", "12:02", "data"),
        ("12:02", "00:00", "closed_session"),
    ]
