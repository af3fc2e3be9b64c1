"""The whole product, from the question to the real CCXT client and back, against exchanges that misbehave.

Nothing false is ever stored, coverage is never advanced by an error, and no bar is lost once the exchange recovers.
"""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app import create_app
from app_extensions.wiring import Services, running_services
from config import load_config
from domain.bar import Bar, fold, within
from domain.packed import runs_of
from domain.series import Gap, Series, Verdict
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from services import feed as feed_module
from services.bar_walk import OhlcvQuery
from tests.loopback import faults
from tests.loopback.binance import BinanceLoopback, read_csv
from tests.loopback.coinbase import CoinbaseLoopback
from tests.loopback.exchange import LoopbackExchange
from tests.loopback.kraken import KrakenLoopback
from tests.support.clock import ManualClock
from tests.support.market import START_MS, random_minutes

MARKET = random_minutes(42, 2500, holes=0.03)
WINDOW = TimeRange(START_MS, START_MS + 2500 * MINUTE_MS)
EVER = TimeRange(0, START_MS + 400 * DAY_MS)


@asynccontextmanager
async def product(database_url: str, exchange: LoopbackExchange, clock: ManualClock) -> AsyncIterator[Services]:
    environ = {
        "CANDLERY_ENV": "testing",
        "CANDLERY_DATABASE_URL": database_url,
        "CANDLERY_CRYPTO_EXCHANGES": exchange.provider,
        "CANDLERY_CCXT_OPTIONS": json.dumps({exchange.provider: exchange.ccxt_options}),
        "CANDLERY_PROVIDER_TIMEOUT_S": "1",
    }
    async with running_services(load_config(environ, env_file=None), clock=clock) as services:
        yield services


def series_of(exchange: LoopbackExchange) -> Series:
    return Series("crypto", exchange.provider, next(iter(exchange.listed.values())).unified)


async def bars_of(services: Services, series: Series, window: TimeRange, timeframe: str = "1m") -> list[Bar]:
    """Every page of a range."""
    bars: list[Bar] = []
    start: int | None = window.start_ms
    while start is not None:
        query = OhlcvQuery(series=series, timeframe=Timeframe(timeframe), start_ms=start, end_ms=window.end_ms)
        answer = await services.ohlcv.bars(query)
        bars += answer.bars
        start = answer.next_ms
    return bars


async def assert_nothing_false(services: Services, series: Series, market: Sequence[Bar]) -> None:
    """What is stored is of the market, and lies in what was answered."""
    stored = await services.store.find_series(series)
    if stored is None:
        return
    truth = {bar.ts: bar for bar in market}
    kept = await services.store.read(stored.id, Timeframe.M1, EVER)
    assert [bar for bar in kept if truth.get(bar.ts) != bar] == []
    known = await services.store.knowledge(stored.id, Timeframe.M1, EVER)
    assert known.answered.covers(runs_of(kept, Timeframe.M1))


async def assert_recovers(services: Services, series: Series, clock: ManualClock, market: Sequence[Bar]) -> None:
    """Once the exchange is well, asking again brings everything, and every minute has its last verdict."""
    for _ in range(3):
        clock.advance(hours=2)
        bars = await bars_of(services, series, WINDOW)
    assert bars == list(market)
    tiles = await services.ohlcv.coverage(series, Timeframe.M1, WINDOW)
    assert RangeSet(tile.range for tile in tiles) == RangeSet((WINDOW,))
    assert RangeSet(tile.range for tile in tiles if tile.verdict is Verdict.DATA) == runs_of(market, Timeframe.M1)
    assert {tile.verdict for tile in tiles} <= {Verdict.DATA, Verdict.NO_TRADES}


@pytest.mark.parametrize(
    "fault", [*faults.LOUD, *faults.QUIET, faults.EMPTY, faults.ALL_NULL, faults.HANG], ids=lambda f: f.name
)
async def test_one_fault_of_binance_on_any_page_spoils_nothing(
    fault: faults.Fault, database_url: str, clock: ManualClock
) -> None:
    async with (
        BinanceLoopback({"BTCUSDT": MARKET}, clock=clock) as exchange,
        product(database_url, exchange, clock) as services,
    ):
        series = series_of(exchange)
        exchange.faults.next(None, fault, None, fault)
        await bars_of(services, series, WINDOW)
        assert fault.name in exchange.faults.met
        await assert_nothing_false(services, series, MARKET)
        await assert_recovers(services, series, clock, MARKET)


@pytest.mark.parametrize("fault", faults.LOUD, ids=lambda f: f.name)
async def test_an_exchange_that_only_errs_advances_no_coverage(
    fault: faults.Fault, database_url: str, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "_BACKOFF", lambda _: 0.001)
    async with (
        BinanceLoopback({"BTCUSDT": MARKET}, clock=clock) as exchange,
        product(database_url, exchange, clock) as services,
    ):
        series = series_of(exchange)
        exchange.faults.randomly([fault], probability=1.0, seed=1)
        start, end = WINDOW
        query = OhlcvQuery(series=series, timeframe=Timeframe.M1, start_ms=start, end_ms=end, limit=10_000)
        answer = await services.ohlcv.bars(query)
        assert answer.bars == []
        assert answer.error is not None
        assert answer.gaps == [Gap(WINDOW, Verdict.FETCH_FAILED)]
        stored = await services.store.find_series(series)
        assert stored is not None
        known = await services.store.knowledge(stored.id, Timeframe.M1, EVER)
        assert not known.answered
        exchange.faults.clear()
        await assert_recovers(services, series, clock, MARKET)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", [BinanceLoopback, CoinbaseLoopback])
async def test_random_faults_lose_double_and_invent_nothing(
    seed: int, kind: Any, database_url: str, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "_BACKOFF", lambda _: 0.001)
    everything = [*faults.LOUD, *faults.QUIET, faults.EMPTY, faults.ALL_NULL]
    async with _exchange(kind, clock) as exchange, product(database_url, exchange, clock) as services:
        series = series_of(exchange)
        exchange.faults.randomly(everything, probability=0.5, seed=seed)
        for part in range(5):
            start = WINDOW.start_ms + part * 400 * MINUTE_MS
            await bars_of(services, series, TimeRange(start, min(WINDOW.end_ms, start + 900 * MINUTE_MS)))
            await assert_nothing_false(services, series, MARKET)
            clock.advance(minutes=2)
        exchange.faults.clear()
        await assert_recovers(services, series, clock, MARKET)


def _exchange(kind: Any, clock: ManualClock) -> LoopbackExchange:
    exchange: LoopbackExchange = kind({}, clock=clock)
    exchange.set_bars(next(iter(exchange.listed)), MARKET)
    return exchange


async def test_pages_are_no_more_than_needed_and_the_second_question_makes_no_call(
    database_url: str, clock: ManualClock
) -> None:
    full = random_minutes(7, 2500, holes=0)
    async with (
        BinanceLoopback({"BTCUSDT": full}, clock=clock) as exchange,
        product(database_url, exchange, clock) as services,
    ):
        series = series_of(exchange)
        query = OhlcvQuery(
            series=series, timeframe=Timeframe.M1, start_ms=WINDOW.start_ms, end_ms=WINDOW.end_ms, limit=10_000
        )
        assert (await services.ohlcv.bars(query)).bars == full
        assert len(exchange.calls_to("klines")) == 3
        before = len(exchange.calls)
        again = await services.ohlcv.bars(query)
        assert (again.bars, again.sources, len(exchange.calls)) == (full, ["cache"], before)


async def test_krakens_720_newest_bars_are_all_that_it_is_asked_for(database_url: str, clock: ManualClock) -> None:
    clock._now_ms = WINDOW.end_ms
    async with _exchange(KrakenLoopback, clock) as exchange, product(database_url, exchange, clock) as services:
        series = series_of(exchange)
        old = await services.ohlcv.bars(
            OhlcvQuery(series=series, timeframe=Timeframe.M1, start_ms=START_MS, end_ms=START_MS + HOUR_MS)
        )
        assert old.bars == []
        assert {gap.verdict for gap in old.gaps} == {Verdict.NEVER_FETCHED}
        new = await services.ohlcv.bars(OhlcvQuery(series=series, timeframe=Timeframe.M1, limit=500))
        assert new.bars == within(MARKET, [TimeRange(START_MS, WINDOW.end_ms - MINUTE_MS)])[-len(new.bars) :]
        assert len(new.bars) >= 480
        await assert_nothing_false(services, series, MARKET)


async def test_a_forming_bar_is_never_stored_and_its_final_self_is(database_url: str, clock: ManualClock) -> None:
    full = random_minutes(8, 200, holes=0)
    clock._now_ms = START_MS + 100 * MINUTE_MS + 30_000
    async with (
        BinanceLoopback({"BTCUSDT": full}, clock=clock) as exchange,
        product(database_url, exchange, clock) as services,
    ):
        series = series_of(exchange)
        query = OhlcvQuery(series=series, timeframe=Timeframe.M1, limit=10, include_forming=True)
        answer = await services.ohlcv.bars(query)
        assert answer.forming == [START_MS + 100 * MINUTE_MS]
        assert answer.bars[:-1] == full[91:100]
        await assert_nothing_false(services, series, full)
        clock.advance(minutes=1)
        later = await services.ohlcv.bars(OhlcvQuery(series=series, timeframe=Timeframe.M1, limit=10))
        assert later.bars == full[91:101]


async def test_recorded_minutes_are_served_cold_then_warm_then_without_the_exchange(
    database_url: str, recordings: Path
) -> None:
    """Nine recorded days of four months, over HTTP; the exchange's silence between them is told as such."""
    recorded = read_csv(recordings / "data" / "crypto_1m" / "coinbase_btcusd_1m.csv")
    days = TimeRange(Timeframe.D1.floor(recorded[0].ts), Timeframe.D1.floor(recorded[0].ts) + 31 * DAY_MS)
    month = within(recorded, [days])
    clock = ManualClock(recorded[-1].ts + 30 * DAY_MS)
    exchange = BinanceLoopback({"BTCUSDT": recorded}, clock=clock)
    await exchange.start()
    async with product(database_url, exchange, clock) as services:
        client = create_app(services.config, services).test_client()

        async def ask(timeframe: str) -> tuple[list[Bar], set[str], bool]:
            bars: list[Bar] = []
            sources: set[str] = set()
            token = ""
            complete = True
            while True:
                query = (
                    f"symbol=BTC/USDT&timeframe={timeframe}&start={days.start_ms}&end={days.end_ms}&limit=5000{token}"
                )
                answer = await (await client.get(f"/api/v1/ohlcv?market=crypto&provider=binance&{query}")).get_json()
                bars += [Bar(int(row[0]), *row[1:]) for row in answer["bars"]]
                sources |= set(answer["sources"])
                complete &= answer["coverage"]["complete"]
                if answer["next_page_token"] is None:
                    return bars, sources, complete
                token = f"&page_token={answer['next_page_token']}"

        cold, sources, _ = await ask("1m")
        assert (cold, sources) == (month, {"provider"})
        clock.advance(hours=2)
        warm, sources, complete = await ask("1m")
        assert (warm, complete) == (month, True)
        await exchange.stop()
        gone, sources, complete = await ask("1m")
        assert (gone, complete) == (month, True)
        assert "provider" not in sources
        before = len(exchange.calls)
        hours, sources, complete = await ask("1h")
        assert (sources, complete, len(exchange.calls)) == ({"aggregate"}, True, before)
        expected = fold(month, Timeframe.H1)
        assert [bar.ts for bar in hours] == [bar.ts for bar in expected]
        assert [bar.close for bar in hours] == [bar.close for bar in expected]
