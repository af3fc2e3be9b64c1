"""Importing files: resumable, idempotent, with every bad row told and nothing invented between the rows."""

import csv
from pathlib import Path

import pytest

from domain.bar import Bar, fold
from domain.packed import runs_of
from domain.series import Series, Verdict
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from services import importer as importer_module
from services.bar_files import BarBatch, BarFileError, read_bars
from services.bar_store import BarStore, StoredSeries
from services.importer import Importer
from tests.support.clock import ManualClock
from tests.support.house import House, make_house
from tests.support.market import START_MS, random_minutes
from tests.support.scripted import ScriptedPlugin

EVER = TimeRange(0, 4_000_000_000_000)


def write_csv(path: Path, bars: list[Bar], extra: list[str] | None = None) -> Path:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ts_ms", "open", "high", "low", "close", "volume"])
        rows.writerows([bar.ts, bar.open, bar.high, bar.low, bar.close, bar.volume] for bar in bars)
        file.write("".join(f"{line}\n" for line in extra or []))
    return path


@pytest.fixture
def importer(store: BarStore, clock: ManualClock) -> Importer:
    return Importer(store, clock)


@pytest.fixture
async def series(store: BarStore) -> StoredSeries:
    return await store.ensure_series(Series("test", "scripted", "A/B"))


async def test_a_file_is_stored_and_vouches_only_for_its_rows(
    importer: Importer, series: StoredSeries, store: BarStore, tmp_path: Path
) -> None:
    bars = random_minutes(1, 3000, holes=0.2)
    report = await importer.run(write_csv(tmp_path / "bars.csv", bars), series, Timeframe.M1)
    assert (report.rows, report.written, report.bad) == (len(bars), len(bars), 0)
    assert await store.read(series.id, Timeframe.M1, EVER) == bars
    known = await store.knowledge(series.id, Timeframe.M1, EVER)
    assert known.answered == runs_of(bars, Timeframe.M1)
    assert not known.confirmed
    assert not known.checks


async def test_importing_again_changes_nothing(
    importer: Importer, series: StoredSeries, store: BarStore, tmp_path: Path
) -> None:
    bars = random_minutes(2, 500)
    file = write_csv(tmp_path / "bars.csv", bars)
    await importer.run(file, series, Timeframe.M1)
    again = await importer.run(file, series, Timeframe.M1)
    assert (again.rows, again.written, again.revised, again.resumed_at) == (len(bars), 0, 0, 0)
    assert await store.read(series.id, Timeframe.M1, EVER) == bars


async def test_an_interrupted_import_goes_on_where_it_stopped(
    importer: Importer, series: StoredSeries, store: BarStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars = random_minutes(3, 30_000, holes=0)
    file = write_csv(tmp_path / "bars.csv", bars)

    def in_small_batches(path: Path, timeframe: Timeframe, **options: object) -> object:
        return read_bars(path, timeframe, batch_rows=1000, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(importer_module, "read_bars", in_small_batches)
    seen: list[int] = []

    def stop_in_the_middle(batch: BarBatch) -> None:
        seen.append(batch.position)
        if len(seen) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        await importer.run(file, series, Timeframe.M1, progress=stop_in_the_middle)
    done = seen[-1]
    assert 0 < done < len(bars)
    assert await store.read(series.id, Timeframe.M1, EVER) == bars[:done]
    report = await importer.run(file, series, Timeframe.M1)
    assert (report.resumed_at, report.rows, report.written) == (done, len(bars) - done, len(bars) - done)
    assert await store.read(series.id, Timeframe.M1, EVER) == bars


async def test_bad_rows_are_listed_by_line_and_the_rest_is_kept(
    importer: Importer, series: StoredSeries, store: BarStore, tmp_path: Path
) -> None:
    bars = random_minutes(4, 10, holes=0)
    lines = [
        f"{START_MS + 10 * MINUTE_MS},1,0.5,2,1,1",
        "not,a,bar,at,all,!",
        f"{START_MS + 11 * MINUTE_MS},1,2,0.5,1,nan",
    ]
    file = write_csv(tmp_path / "bars.csv", bars, [*lines, f"{START_MS + 12 * MINUTE_MS},1,2,0.5,1,7"])
    report = await importer.run(file, series, Timeframe.M1)
    assert [bad.line for bad in report.bad_rows] == [12, 13, 14]
    assert (report.bad, report.written) == (3, 11)
    assert await store.read(series.id, Timeframe.M1, EVER) == [*bars, Bar(START_MS + 12 * MINUTE_MS, 1, 2, 0.5, 1, 7)]


async def test_a_bar_that_has_not_ended_is_not_taken(
    importer: Importer, series: StoredSeries, store: BarStore, tmp_path: Path, clock: ManualClock
) -> None:
    now = Timeframe.M1.floor(clock.now_ms())
    bars = random_minutes(5, 3, start_ms=now - MINUTE_MS, holes=0)
    report = await importer.run(write_csv(tmp_path / "bars.csv", bars), series, Timeframe.M1)
    assert (report.written, report.bad) == (1, 2)
    assert "have not ended" in report.bad_rows[-1].detail
    assert await store.read(series.id, Timeframe.M1, EVER) == bars[:1]


async def test_a_file_that_is_none_is_refused_in_words(
    importer: Importer, series: StoredSeries, tmp_path: Path
) -> None:
    page = tmp_path / "error.csv"
    page.write_text("<!doctype html><html><body>Not found</body></html>")
    with pytest.raises(BarFileError):
        await importer.run(page, series, Timeframe.M1)


def read_recording(path: Path) -> list[Bar]:
    with path.open() as file:
        return [Bar(int(row[0]), *map(float, row[1:])) for row in list(csv.reader(file))[1:]]


@pytest.fixture
def house(store: BarStore, clock: ManualClock) -> House:
    return make_house(store, clock, ScriptedPlugin({}))


async def imported(house: House, path: Path, timeframe: Timeframe, symbol: str) -> list[Bar]:
    series = await house.store.ensure_series(Series("test", "scripted", symbol))
    bars = read_recording(path)
    report = await Importer(house.store, house.clock).run(path, series, timeframe)
    assert (report.written, report.bad) == (len(bars), 0)
    return bars


async def test_recorded_minutes_of_a_day_are_complete_and_fold_to_the_day(house: House, recordings: Path) -> None:
    path = recordings / "data" / "crypto_1m" / "binance_btcbusd_1m.csv"
    bars = await imported(house, path, Timeframe.M1, "BTC/BUSD")
    tiles = await house.coverage(START_MS, START_MS + DAY_MS, symbol="BTC/BUSD")
    assert [(tile.range, tile.verdict) for tile in tiles] == [(TimeRange(START_MS, START_MS + DAY_MS), Verdict.DATA)]
    for name in ("5m", "1h", "4h", "1d"):
        answer = await house.bars("BTC/BUSD", name, start_ms=START_MS, end_ms=START_MS + DAY_MS)
        expected = fold(bars, Timeframe(name))
        assert [bar.ts for bar in answer.bars] == [bar.ts for bar in expected]
        for got, want in zip(answer.bars, expected, strict=True):
            assert (got.open, got.high, got.low, got.close) == (want.open, want.high, want.low, want.close)
            assert got.volume == pytest.approx(want.volume, rel=1e-12)
        assert not answer.gaps


async def test_the_missing_minute_of_a_recording_is_unknown_and_nothing_else(house: House, recordings: Path) -> None:
    await imported(house, recordings / "data" / "crypto_1m" / "binance_btcusd_perp_1m.csv", Timeframe.M1, "PERP")
    tiles = await house.coverage(START_MS, START_MS + DAY_MS, symbol="PERP")
    missing = [tile.range for tile in tiles if tile.verdict is not Verdict.DATA]
    at = START_MS + 4 * HOUR_MS + 29 * MINUTE_MS
    assert missing == [TimeRange(at, at + MINUTE_MS)]


async def test_the_hole_of_432_minutes_in_a_recording_is_unknown(house: House, recordings: Path) -> None:
    path = recordings / "data" / "crypto_1m" / "coinbase_btcusd_1m.csv"
    bars = await imported(house, path, Timeframe.M1, "BTC/USD")
    hole = 1_522_860_480_000
    assert hole not in {bar.ts for bar in bars}
    tiles = await house.coverage(hole - HOUR_MS, hole + 433 * MINUTE_MS, symbol="BTC/USD")
    assert [(tile.range, tile.verdict) for tile in tiles if tile.range.length_ms > 100 * MINUTE_MS] == [
        (TimeRange(hole, hole + 432 * MINUTE_MS), Verdict.NEVER_FETCHED)
    ]


async def test_recorded_hours_show_the_outage_of_three_hours(house: House, recordings: Path) -> None:
    path = recordings / "data" / "crypto_1h" / "binance_BTCUSDT_1h.csv"
    bars = await imported(house, path, Timeframe.H1, "BTC/USDT")
    outage = 1_593_309_600_000  # 2020-06-28 02:00 UTC
    assert outage not in {bar.ts for bar in bars}
    day = Timeframe.D1.floor(outage)
    tiles = await house.coverage(day - 30 * DAY_MS, day + DAY_MS, "1h", symbol="BTC/USDT")
    missing = [tile.range for tile in tiles if tile.verdict is not Verdict.DATA]
    assert missing == [TimeRange(outage, outage + 3 * HOUR_MS)]


async def test_recorded_stock_minutes_are_whole_in_regular_hours(house: House, recordings: Path) -> None:
    """SPY traded every regular minute of the six sessions from 2013-10-04; 09:30 New York was 13:30 UTC."""
    bars = await imported(house, recordings / "data" / "us_stock_1m" / "SPY_1m.csv", Timeframe.M1, "SPY")
    days = sorted({Timeframe.D1.floor(bar.ts) for bar in bars})
    regular = RangeSet((day + 13 * HOUR_MS + 30 * MINUTE_MS, day + 20 * HOUR_MS) for day in days)
    assert len([day for day in days if runs_of(bars, Timeframe.M1) & RangeSet.of(day, day + DAY_MS) & regular]) == 6
    assert (regular - runs_of(bars, Timeframe.M1)).length_ms == 0


async def test_recorded_daily_bars_of_stocks_get_their_session_date(
    store: BarStore, clock: ManualClock, recordings: Path
) -> None:
    series = await store.ensure_series(Series("stocks", "alpaca", "SPY"), calendar="XNYS")
    path = recordings / "data" / "us_stock_daily" / "SPY_1d.csv"
    report = await Importer(store, clock).run(path, series, Timeframe.D1)
    assert report.bad == 0
    bars = await store.read(series.id, Timeframe.D1, EVER)
    assert all(bar.ts % DAY_MS == 0 for bar in bars)
    assert bars[0].ts == 883_699_200_000  # 1998-01-02
    assert len(bars) == len(read_recording(path))
