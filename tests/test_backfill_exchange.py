"""A month of minutes by the real CCXT client from an exchange on the loopback that leaves some out at first."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from app_extensions.wiring import Services, running_services
from config import load_config
from domain.bar import Bar, fold
from domain.packed import runs_of
from domain.series import Series, Verdict
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from services import backfill_chunks
from services import feed as feed_module
from services.backfills import BackfillRequest, Job, JobState
from services.coverage import Tile
from tests.loopback import faults
from tests.loopback.binance import BinanceLoopback, read_csv
from tests.support.clock import ManualClock
from tests.support.market import START_MS, random_minutes

MONTH = TimeRange(START_MS, START_MS + 30 * DAY_MS)
#: Answers of Binance that make up a month of minutes.
PAGES = 44
BTC = Series("crypto", "binance", "BTC/USDT")


class SlowToTellLoopback(BinanceLoopback):
    """Leaves some minutes out of its answers until it is told to give them."""

    def __init__(self, bars: Sequence[Bar], late: Sequence[Bar], *, clock: ManualClock) -> None:
        super().__init__({"BTCUSDT": bars}, clock=clock)
        self.late = {bar.ts for bar in late}

    def bars(self, id_: str, timeframe: Timeframe) -> list[Bar]:
        found = super().bars(id_, timeframe)
        return found if timeframe is not Timeframe.M1 else [bar for bar in found if bar.ts not in self.late]


@pytest.fixture
def clock() -> ManualClock:
    """A day after the month."""
    return ManualClock(MONTH.end_ms + DAY_MS)


@pytest.fixture(autouse=True)
def short_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "_BACKOFF", lambda _: 0.001)
    monkeypatch.setattr(backfill_chunks, "REST_S", 0.01)
    monkeypatch.setattr(backfill_chunks, "REST_LIMIT_S", 0.05)


@asynccontextmanager
async def product(database_url: str, exchange: BinanceLoopback, clock: ManualClock) -> AsyncIterator[Services]:
    environ = {
        "CANDLERY_ENV": "testing",
        "CANDLERY_DATABASE_URL": database_url,
        "CANDLERY_CRYPTO_EXCHANGES": "binance",
        "CANDLERY_CCXT_OPTIONS": json.dumps({"binance": exchange.ccxt_options}),
        "CANDLERY_PROVIDER_TIMEOUT_S": "1",
    }
    async with running_services(load_config(environ, env_file=None), clock=clock) as services:
        yield services


async def finished(services: Services, job_id: str) -> Job:
    async for job in services.backfills.watch(job_id):
        last = job
    return last


async def a_month(services: Services) -> Job:
    job = await services.backfills.create(BackfillRequest("crypto", "binance", ("BTC/USDT",), MONTH))
    return await finished(services, job.id)


async def tiles_of(services: Services) -> list[Tile]:
    return await services.ohlcv.coverage(BTC, Timeframe.M1, MONTH)


def with_verdict(tiles: Sequence[Tile], verdict: Verdict) -> RangeSet:
    return RangeSet(tile.range for tile in tiles if tile.verdict is verdict)


async def check_stored(services: Services, market: Sequence[Bar]) -> None:
    stored = await services.store.find_series(BTC)
    assert stored is not None
    assert await services.store.read(stored.id, Timeframe.M1, MONTH) == market
    async with services.database.connection() as db:
        assert await db.fetchval("SELECT count(*) FROM bar_revisions") == 0
    # Real volumes are no binary fractions: the sum of a day depends on the order by the last digit.
    folded = (await services.store.read_folded(stored.id, Timeframe.D1, MONTH)).bars
    rounded = [msgspec.structs.replace(bar, volume=round(bar.volume, 6)) for bar in folded]
    assert rounded == [msgspec.structs.replace(bar, volume=round(bar.volume, 6)) for bar in fold(market, Timeframe.D1)]


async def look_again(services: Services) -> None:
    """Second looks, run after run, until nothing is due."""
    while await services.rechecker.run():
        pass


async def check_late_and_never(market: Sequence[Bar], database_url: str, clock: ManualClock) -> None:
    """Every 977th bar comes late; the minutes without a bar never come."""
    late = market[100::977]
    async with (
        SlowToTellLoopback(market, late, clock=clock) as exchange,
        product(database_url, exchange, clock) as services,
    ):
        job = await a_month(services)
        assert (job.state, job.error_count, job.progress.bars_written) == (JobState.DONE, 0, len(market) - len(late))
        assert sum(call.query["interval"] == "1m" for call in exchange.calls_to("klines")) == PAGES
        never = RangeSet((MONTH,)) - runs_of(market, Timeframe.M1)
        doubtful = never | runs_of(late, Timeframe.M1)
        assert with_verdict(await tiles_of(services), Verdict.UNCONFIRMED_EMPTY) == doubtful
        clock.advance(minutes=59)
        await look_again(services)
        assert with_verdict(await tiles_of(services), Verdict.UNCONFIRMED_EMPTY) == doubtful
        exchange.late.clear()
        clock.advance(minutes=2)
        await look_again(services)
        tiles = await tiles_of(services)
        assert with_verdict(tiles, Verdict.DATA) == runs_of(market, Timeframe.M1)
        assert with_verdict(tiles, Verdict.NO_TRADES) == never
        await check_stored(services, market)


async def test_minutes_that_come_late_are_stored_and_those_that_never_come_end_as_no_trades(
    database_url: str, clock: ManualClock
) -> None:
    await check_late_and_never(random_minutes(90, 30 * 1440, holes=0.01), database_url, clock)


async def test_a_month_of_real_minutes_is_completed_though_some_come_late(
    database_url: str, clock: ManualClock, recordings: Path
) -> None:
    """The recorded days, one after the other and over again until the month is full, with the holes that they have."""
    recorded = read_csv(recordings / "data" / "crypto_1m" / "coinbase_btcusd_1m.csv")
    days = sorted({Timeframe.D1.floor(bar.ts) for bar in recorded})
    by_day = {day: [bar for bar in recorded if Timeframe.D1.floor(bar.ts) == day] for day in days}
    market: list[Bar] = []
    for number in range(30):
        day = days[number % len(days)]
        shift_ms = MONTH.start_ms + number * DAY_MS - day
        market += (msgspec.structs.replace(bar, ts=bar.ts + shift_ms) for bar in by_day[day])
    assert market[-1].ts < MONTH.end_ms
    await check_late_and_never(market, database_url, clock)


@pytest.mark.parametrize("seed", range(3))
async def test_a_backfill_from_an_exchange_with_every_fault_loses_doubles_and_invents_nothing(
    seed: int, database_url: str, clock: ManualClock
) -> None:
    market = random_minutes(91 + seed, 8 * 1440, holes=0.03)
    every: list[faults.Fault] = [*faults.LOUD, *faults.QUIET, faults.EMPTY, faults.ALL_NULL]
    async with BinanceLoopback({"BTCUSDT": market}, clock=clock) as exchange:
        exchange.faults.randomly(every, probability=0.4, seed=seed)
        async with product(database_url, exchange, clock) as services:
            await a_month(services)
            met = set(exchange.faults.met)
            exchange.faults.clear()
            clock.advance(hours=2)
            job = await a_month(services)
            assert job.state is JobState.DONE
            for _ in range(2):
                clock.advance(minutes=HOUR_MS // MINUTE_MS + 1)
                await look_again(services)
            assert len(met) > 5
            tiles = await tiles_of(services)
            assert with_verdict(tiles, Verdict.DATA) == runs_of(market, Timeframe.M1)
            rest = RangeSet((MONTH,)) - runs_of(market, Timeframe.M1)
            assert with_verdict(tiles, Verdict.NO_TRADES) == rest
            await check_stored(services, market)
