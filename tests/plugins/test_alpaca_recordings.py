"""Payloads as Alpaca's own clients are tested with, where they are beside the repository."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from domain.bar import Bar
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import Timeframe
from plugins.alpaca import AlpacaPlugin
from plugins.base import (
    AuthenticationPluginError,
    Credentials,
    Page,
    PluginConfig,
    PluginError,
    PluginFeatureNotSupportedError,
    RateLimitPluginError,
)
from tests.loopback.alpaca import KEY, SECRET, AlpacaLoopback, midnight_in_new_york, ms_of, says

STOCKS = [
    ("go_marketdata__TestGetBars__0.json", "AMZN", Timeframe.M15),
    ("go_marketdata__TestGetBars_Adjustment__0.json", "GE", Timeframe.D1),
    ("go_marketdata__TestGetBars_Asof__0.json", "META", Timeframe.D1),
    ("go_marketdata__TestGetBars_Asof__1.json", "META", Timeframe.D1),
    ("go_marketdata__TestGetMultiBars__0.json", "AAPL", Timeframe.D1),
    ("go_marketdata__TestGetMultiBars__0.json", "NIO", Timeframe.D1),
    ("py_stock__test_get_bars__0.json", "AAPL", Timeframe.D1),
    ("py_stock__test_get_bars_desc__0.json", "TSLA", Timeframe.D1),
    ("py_stock__test_multisymbol_get_bars__0.json", "TSLA", Timeframe.D1),
]


@pytest.fixture
def rest(recordings: Path) -> Path:
    folder = recordings / "wire" / "alpaca" / "rest"
    if not folder.is_dir():
        pytest.skip("Alpaca's recordings are not here")
    return folder


async def replay(market: str, body: bytes, symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Page:
    async with AlpacaLoopback() as venue:
        config = PluginConfig(
            provider="alpaca",
            credentials=Credentials(key=KEY, secret=SECRET),
            options={**venue.options, "market": market},
        )
        plugin = AlpacaPlugin(config)
        await plugin.open()
        venue.faults.append(says(200, body))
        page = await plugin.fetch_page(symbol, timeframe, wanted)
        await plugin.close()
        return page


def expected_bars(rows: Sequence[dict[str, object]], timeframe: Timeframe) -> list[Bar]:
    """Daily bars by the date in their stamp, others by its instant."""
    times = [str(row["t"])[:10] + "T00:00Z" if timeframe is Timeframe.D1 else str(row["t"]) for row in rows]
    bars = [Bar(ms_of(when), *(row[name] for name in "ohlcv")) for when, row in zip(times, rows, strict=True)]
    return sorted(bars, key=lambda bar: bar.ts)


@pytest.mark.parametrize(("name", "symbol", "timeframe"), STOCKS)
async def test_a_recorded_page_of_stocks_is_read(rest: Path, name: str, symbol: str, timeframe: Timeframe):
    body = (rest / name).read_bytes()
    recorded = msgspec.json.decode(body)
    expected = expected_bars(recorded["bars"][symbol], timeframe)
    first_ms, last_ms = expected[0].ts, expected[-1].ts
    wanted = TimeRange(timeframe.back(first_ms, 3), timeframe.back(last_ms, -5))
    page = await replay("stocks", body, symbol, timeframe, wanted)
    assert page.bars == expected
    assert page.rejected == []
    if recorded["next_page_token"] is None:
        assert page.covered == RangeSet((wanted,))
    elif "desc" in name:
        assert page.covered == RangeSet((bar.ts, timeframe.next(bar.ts)) for bar in expected)
    else:
        assert page.covered == RangeSet.of(wanted.start_ms, timeframe.next(last_ms))


async def test_a_recorded_page_of_crypto_is_read(rest: Path):
    body = (rest / "go_marketdata__TestGetCryptoBars__0.json").read_bytes()
    expected = expected_bars(msgspec.json.decode(body)["bars"]["BCH/USD"], Timeframe.M1)
    wanted = TimeRange(expected[0].ts, Timeframe.M1.next(expected[-1].ts))
    page = await replay("crypto", body, "BCH/USD", Timeframe.M1, wanted)
    assert page.bars == expected
    assert page.covered == RangeSet((wanted,))


async def test_bars_of_several_exchanges_at_one_time_are_not_mixed(rest: Path):
    body = (rest / "go_marketdata__TestGetCryptoMultiBars__0.json").read_bytes()
    start_ms = ms_of("2021-11-20T20:00Z")
    wanted = TimeRange(start_ms, Timeframe.H1.back(start_ms, -4))
    page = await replay("crypto", body, "BTC/USD", Timeframe.H1, wanted)
    assert list(page.bars) == []
    assert page.covered == RangeSet((wanted,)) - RangeSet.of(start_ms, Timeframe.H1.next(start_ms))
    assert len(page.rejected) == 2


@pytest.mark.parametrize("kind", ["multi", "single"])
async def test_a_recorded_empty_page_is_empty(rest: Path, kind: str):
    body = (rest / f"py_stock__test_get_bars_{kind}_empty_response__0.json").read_bytes()
    wanted = TimeRange(0, Timeframe.D1.back(0, -30))
    page = await replay("stocks", body, "AAPL", Timeframe.D1, wanted)
    assert (list(page.bars), page.covered) == ([], RangeSet((wanted,)))


async def test_recorded_assets_are_symbols(rest: Path):
    async with AlpacaLoopback() as venue:
        config = PluginConfig(
            provider="alpaca", credentials=Credentials(key=KEY, secret=SECRET), options={**venue.options}
        )
        plugin = AlpacaPlugin(config)
        await plugin.open()
        venue.assets = msgspec.json.decode((rest / "py_assets__test_get_all_assets__0.json").read_bytes())
        symbols = await plugin.fetch_symbols()
        await plugin.close()
    assert {(info.symbol, info.name) for info in symbols.values()} == {("AAPL", "Apple Inc. Common Stock")}


async def test_recorded_errors_are_told_by_their_class(recordings: Path):
    path = recordings / "wire" / "alpaca" / "rest_errors.json"
    if not path.is_file():
        pytest.skip("Alpaca's recordings are not here")
    kinds = {401: AuthenticationPluginError, 403: AuthenticationPluginError, 429: RateLimitPluginError}
    start_ms = midnight_in_new_york(ms_of("2024-01-08T00:00Z"))
    async with AlpacaLoopback() as venue:
        config = PluginConfig(
            provider="alpaca", credentials=Credentials(key=KEY, secret=SECRET), options={**venue.options}
        )
        plugin = AlpacaPlugin(config)
        await plugin.open()
        for seen in msgspec.json.decode(path.read_bytes())["seen"]:
            if seen["status"] == 200:
                continue
            venue.faults.append(says(seen["status"], seen["body"]))
            with pytest.raises(PluginError) as caught:
                await plugin.fetch_page("SPY", Timeframe.M1, TimeRange(start_ms, start_ms + 60_000))
            is_plan = "subscription" in str(seen["body"])
            assert type(caught.value) is (
                PluginFeatureNotSupportedError if is_plan else kinds.get(seen["status"], PluginError)
            )
        await plugin.close()
