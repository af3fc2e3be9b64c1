"""The whole product on an Alpaca that misbehaves: sessions, official days, and nothing false or lost."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from app import create_app
from app_extensions.wiring import Services, running_services
from config import load_config
from domain.bar import Bar, fold
from domain.packed import runs_of
from domain.series import Series, Verdict
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from services import feed as feed_module
from services.bar_walk import OhlcvAnswer, OhlcvQuery
from tests.loopback.alpaca import (
    KEY,
    SECRET,
    AlpacaLoopback,
    Fault,
    drops,
    drops_within_the_body,
    hangs,
    says,
)
from tests.support.clock import ManualClock
from tests.support.market import START_MS, random_minutes

#: Tuesday 2022-12-13 and the day after; regular hours are 14:30 to 21:00 UTC in winter.
OPENS = (START_MS + 14 * HOUR_MS + 30 * MINUTE_MS, START_MS + DAY_MS + 14 * HOUR_MS + 30 * MINUTE_MS)
MARKET = [bar for day, opens in enumerate(OPENS) for bar in random_minutes(day, 390, start_ms=opens, holes=0.1)]
DAYS = [Bar(START_MS + day * DAY_MS, 100.0, 120.0, 90.0, 110.0 + day, 5e6) for day in range(2)]
WINDOW = TimeRange(START_MS, START_MS + 2 * DAY_MS)
SPY = Series("stocks", "alpaca", "SPY")

LOUD: dict[str, Fault] = {
    "429": says(429, "too many requests", headers={"Retry-After": "0.05"}),
    "500": says(500, "internal"),
    "HTML with 200": says(200, "<html>Just a moment</html>"),
    "truncated JSON with 200": says(200, b'{"bars": {"SPY": [{"t": "2022-12-1'),
    "wrong types": says(200, {"bars": [1, 2, 3], "next_page_token": 7}),
    "dropped": drops,
    "dropped in mid-body": drops_within_the_body,
    "hang": hangs,
}


@asynccontextmanager
async def product(
    database_url: str, venue: AlpacaLoopback, clock: ManualClock, *, key: str = KEY
) -> AsyncIterator[Services]:
    environ = {
        "CANDLERY_ENV": "testing",
        "CANDLERY_DATABASE_URL": database_url,
        "CANDLERY_ALPACA_KEY_ID": key,
        "CANDLERY_ALPACA_SECRET_KEY": SECRET if key else "",
        "CANDLERY_ALPACA_DATA_URL": venue.url,
        "CANDLERY_ALPACA_TRADING_URL": venue.url,
        "CANDLERY_PROVIDER_TIMEOUT_S": "0.5",
    }
    async with running_services(load_config(environ, env_file=None), clock=clock) as services:
        yield services


def venue() -> AlpacaLoopback:
    return AlpacaLoopback(stocks={"SPY": MARKET}, daily={"SPY": DAYS})


async def ask(services: Services, timeframe: str = "1m") -> OhlcvAnswer:
    start, end = WINDOW
    query = OhlcvQuery(series=SPY, timeframe=Timeframe(timeframe), start_ms=start, end_ms=end, limit=10_000)
    return await services.ohlcv.bars(query)


@pytest.mark.parametrize("name", LOUD)
async def test_an_alpaca_in_trouble_advances_no_coverage_and_nothing_is_lost_after(
    name: str, database_url: str, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "_BACKOFF", lambda _: 0.001)
    async with venue() as alpaca, product(database_url, alpaca, clock) as services:
        await services.markets.symbols("stocks", "alpaca")
        # More than it is asked: the HTTP client itself asks again when a connection is lost.
        alpaca.faults.extend([LOUD[name]] * 50)
        answer = await ask(services)
        assert answer.bars == []
        assert answer.error is not None
        assert {gap.verdict for gap in answer.gaps} == {Verdict.FETCH_FAILED}
        stored = await services.store.find_series(SPY)
        assert stored is not None
        assert not (await services.store.knowledge(stored.id, Timeframe.M1, WINDOW)).answered
        alpaca.faults.clear()
        for _ in range(2):
            clock.advance(hours=2)
            answer = await ask(services)
        assert (answer.bars, answer.gaps) == (MARKET, [])


async def test_one_fault_between_two_pages_is_sat_out(
    database_url: str, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "_BACKOFF", lambda _: 0.001)
    async with venue() as alpaca, product(database_url, alpaca, clock) as services:
        alpaca.page_rows = 100
        await services.markets.symbols("stocks", "alpaca")
        alpaca.faults.extend([LOUD["429"], LOUD["500"]])
        answer = await ask(services)
        assert answer.bars == MARKET
        assert answer.error is None


async def test_every_minute_of_two_sessions_has_its_verdict(database_url: str, clock: ManualClock) -> None:
    async with venue() as alpaca, product(database_url, alpaca, clock) as services:
        for _ in range(2):
            await ask(services)
            clock.advance(hours=2)
        tiles = await services.ohlcv.coverage(SPY, Timeframe.M1, WINDOW)
    by_verdict = {
        verdict: RangeSet(tile.range for tile in tiles if tile.verdict is verdict)
        for verdict in (Verdict.DATA, Verdict.NO_TRADES, Verdict.CLOSED_SESSION)
    }
    extended = RangeSet(
        (START_MS + day * DAY_MS + 9 * HOUR_MS, START_MS + (day + 1) * DAY_MS + HOUR_MS) for day in (0, 1)
    )
    data = runs_of(MARKET, Timeframe.M1)
    night = RangeSet((WINDOW,)) - extended - RangeSet.of(START_MS, START_MS + HOUR_MS)
    assert by_verdict == {
        Verdict.DATA: data,
        Verdict.CLOSED_SESSION: night,
        Verdict.NO_TRADES: RangeSet((WINDOW,)) - night - data,
    }


async def test_days_are_the_official_ones_by_session_date_and_hours_are_folded(
    database_url: str, clock: ManualClock
) -> None:
    async with venue() as alpaca, product(database_url, alpaca, clock) as services:
        for _ in range(2):
            await ask(services)
            clock.advance(hours=2)
        calls = len(alpaca.calls)
        hours = await ask(services, "1h")
        assert (hours.bars, hours.gaps) == (fold(MARKET, Timeframe.H1), [])
        assert len(alpaca.calls) == calls
        days = await ask(services, "1d")
        assert (days.bars, days.gaps) == (DAYS, [])
        assert alpaca.calls[-1][1]["timeframe"] == "1Day"


async def test_without_keys_the_answer_says_which_settings_are_missing(database_url: str, clock: ManualClock) -> None:
    async with venue() as alpaca, product(database_url, alpaca, clock, key="") as services:
        client = create_app(services.config, services).test_client()
        response = await client.get("/api/v1/ohlcv?market=stocks&provider=alpaca&symbol=SPY&limit=5")
        problem = await response.get_json()
        assert (response.status_code, problem["code"]) == (502, "provider_authentication_failed")
        assert "CANDLERY_ALPACA_KEY_ID" in problem["detail"]
        assert alpaca.calls == []


async def test_what_is_stored_is_served_when_the_keys_are_refused(database_url: str, clock: ManualClock) -> None:
    async with venue() as alpaca:
        async with product(database_url, alpaca, clock) as services:
            await ask(services)
        async with product(database_url, alpaca, clock, key="AKREVOKED") as services:
            clock.advance(hours=2)
            client = create_app(services.config, services).test_client()
            path = f"/api/v1/ohlcv?market=stocks&provider=alpaca&symbol=SPY&start={WINDOW.start_ms}&end={WINDOW.end_ms}"
            answer = await (await client.get(path)).get_json()
            assert len(answer["bars"]) == len(MARKET)
            assert not answer["coverage"]["complete"]
            refused = await client.get(f"{path}&require=complete")
            assert (refused.status_code, (await refused.get_json())["code"]) == (503, "incomplete")
            assert SECRET not in await refused.get_data(as_text=True)
