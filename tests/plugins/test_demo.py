import asyncio
import subprocess
import sys
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest

from domain.bar import Bar, fault_of
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from plugins.base import (
    Page,
    PluginConfig,
    PluginError,
    PluginFeatureNotSupportedError,
    SymbolNotFoundPluginError,
)
from plugins.demo import BEGAN_MS, NY_WEEKDAYS, DemoPlugin
from services import sessions
from services.sessions import InMemorySessionRepository, SessionService
from tests.support.clock import ManualClock

JAN_2024_MS = 1_704_067_200_000
NOW_MS = JAN_2024_MS + 400 * DAY_MS
ROOT = Path(__file__).parents[2]
PAGE_MS = 10_000 * MINUTE_MS


def make_plugin(*, now_ms: int = NOW_MS, seed: object = 1) -> DemoPlugin:
    options: Mapping[str, object] = {"seed": seed, "now_ms": lambda: now_ms}
    return DemoPlugin(PluginConfig(provider="sim", options=options))


async def page(symbol: str, start_ms: int, end_ms: int, **options: object) -> Page:
    plugin = make_plugin(**options)  # type: ignore[arg-type]
    return await plugin.fetch_page(symbol, Timeframe.M1, TimeRange(start_ms, end_ms))


async def minutes(symbol: str, start_ms: int, end_ms: int, **options: object) -> list[Bar]:
    return list((await page(symbol, start_ms, end_ms, **options)).bars)


async def test_there_are_at_least_twenty_symbols_and_each_is_called_simulated():
    symbols = await make_plugin().fetch_symbols()
    assert len(symbols) >= 20
    assert all("simulated" in info.name.lower() for info in symbols.values())
    assert "simulated" in DemoPlugin.list_configurable_providers({})[0].name.lower()
    assert make_plugin().capabilities.simulated


async def test_every_symbol_gives_good_bars_in_order_inside_what_was_asked():
    start_ms = JAN_2024_MS + 80 * DAY_MS
    for symbol in await make_plugin().fetch_symbols():
        bars = await minutes(symbol, start_ms, start_ms + 3 * DAY_MS)
        assert [fault for bar in bars if (fault := fault_of(bar, Timeframe.M1))] == []
        times = [bar.ts for bar in bars]
        assert times == sorted(set(times))
        assert start_ms <= times[0]
        assert times[-1] < start_ms + 3 * DAY_MS


async def test_demo_usd_trades_every_minute_and_opens_where_it_closed():
    bars = await minutes("DEMO/USD", JAN_2024_MS, JAN_2024_MS + PAGE_MS)
    assert [bar.ts for bar in bars] == list(range(JAN_2024_MS, JAN_2024_MS + PAGE_MS, MINUTE_MS))
    assert all(left.close == right.open for left, right in pairwise(bars))


async def test_a_bar_is_the_same_in_whatever_range_it_is_asked_for():
    for symbol in ("DEMO/USD", "KELP/USD", "TINDER"):
        start_ms, end_ms = JAN_2024_MS + 13 * HOUR_MS, JAN_2024_MS + 3 * DAY_MS
        whole = await minutes(symbol, start_ms, end_ms)
        step_ms = 277 * MINUTE_MS
        parts = [
            bar
            for ts_ms in range(start_ms, end_ms, step_ms)
            for bar in await minutes(symbol, ts_ms, min(ts_ms + step_ms, end_ms))
        ]
        assert parts == whole
        assert await minutes(symbol, whole[7].ts, whole[7].ts + MINUTE_MS) == [whole[7]]


async def test_another_seed_makes_another_market():
    first, again, other = [
        await minutes("DEMO/USD", JAN_2024_MS, JAN_2024_MS + HOUR_MS, seed=seed) for seed in (1, 1, 2)
    ]
    assert first == again
    assert first != other


async def test_the_bars_of_seed_one_never_change():
    """They are stored for good: a change would contradict every store that holds them."""
    bars = await minutes("DEMO/USD", JAN_2024_MS, JAN_2024_MS + 2 * MINUTE_MS)
    assert bars == [
        Bar(1704067200000, 19782.68, 19784.5, 19769.43, 19779.35, 2.67),
        Bar(1704067260000, 19779.35, 19791.42, 19768.78, 19781.13, 5.796),
    ]


@pytest.mark.parametrize(
    ("symbol", "silent"), [("AMBER/USD", 0.05), ("GARNET/USD", 0.5), ("LICHEN/USD", 0.95), ("DEMO/USD", 0)]
)
async def test_symbols_skip_the_share_of_minutes_that_they_should(symbol: str, silent: float):
    bars = await minutes(symbol, JAN_2024_MS, JAN_2024_MS + PAGE_MS)
    assert 1 - len(bars) / 10_000 == pytest.approx(silent, abs=0.02)


async def test_prices_stay_plausible_over_the_years():
    day_ms = BEGAN_MS + 15 * HOUR_MS
    for symbol, info in (await make_plugin().fetch_symbols()).items():
        closes = []
        for ts_ms in range(day_ms, NOW_MS, 61 * DAY_MS):
            # On a weekday, and long enough for the quietest of them.
            weekday_ms = ts_ms - (ts_ms // DAY_MS + 3) % 7 // 5 * 2 * DAY_MS
            found = await minutes(symbol, weekday_ms, weekday_ms + 3 * HOUR_MS)
            closes += [found[-1].close] if found else []
            assert found or (info.listed_ms or 0) > weekday_ms
        assert max(closes) / min(closes) < 100
        assert max(closes) / min(closes) > 1.1


async def test_nothing_trades_before_a_symbol_is_listed():
    symbols = await make_plugin().fetch_symbols()
    assert all((info.listed_ms or 0) >= BEGAN_MS for info in symbols.values())
    listed_ms = symbols["OPAL/USD"].listed_ms
    assert listed_ms == JAN_2024_MS + 74 * DAY_MS
    answer = await page("OPAL/USD", listed_ms - DAY_MS, listed_ms + DAY_MS)
    assert listed_ms <= answer.bars[0].ts < listed_ms + HOUR_MS
    assert answer.covered == RangeSet.of(listed_ms - DAY_MS, listed_ms + DAY_MS)
    assert await minutes("DEMO/USD", BEGAN_MS - DAY_MS, BEGAN_MS) == []


async def test_symbols_of_new_york_keep_its_hours_across_a_change_of_the_clocks():
    # The clocks went forward on Sunday, 2024-03-10.
    start_ms = JAN_2024_MS + 66 * DAY_MS
    service = SessionService(InMemorySessionRepository(), clock=ManualClock(NOW_MS))
    hours = await service.open_ranges(NY_WEEKDAYS, Timeframe.M1, TimeRange(start_ms, start_ms + 6 * DAY_MS))
    assert sessions.NY_WEEKDAYS == NY_WEEKDAYS
    assert [(r.start_ms - start_ms) // MINUTE_MS % 1440 for r in hours] == [870, 870, 810, 810]
    bars = await minutes("HARBOR", start_ms, start_ms + 6 * DAY_MS)
    assert [bar.ts for bar in bars] == [ts_ms for r in hours for ts_ms in range(*r, MINUTE_MS)]


async def test_some_symbols_of_new_york_skip_minutes_in_a_session():
    bars = await minutes("TINDER", JAN_2024_MS, JAN_2024_MS + 5 * DAY_MS)
    # A holiday: the simulated market knows none.
    assert 40 < len(bars) / 5 < 80


async def test_nothing_is_told_of_the_future():
    answer = await page("DEMO/USD", NOW_MS - 2 * MINUTE_MS, NOW_MS + DAY_MS)
    assert [bar.ts for bar in answer.bars] == [NOW_MS - 2 * MINUTE_MS, NOW_MS - MINUTE_MS]
    assert answer.venue_ms == NOW_MS
    assert await minutes("DEMO/USD", NOW_MS + HOUR_MS, NOW_MS + DAY_MS) == []


@pytest.mark.parametrize("minute", range(12))
async def test_the_forming_bar_grows_into_the_final_one(minute: int):
    start_ms = NOW_MS + minute * MINUTE_MS
    (final,) = await minutes("DEMO/USD", start_ms, start_ms + MINUTE_MS, now_ms=start_ms + MINUTE_MS)
    before = None
    for second in range(60):
        now_ms = start_ms + second * 1000 + 7
        found = await minutes("DEMO/USD", start_ms, start_ms + HOUR_MS, now_ms=now_ms)
        assert found == await minutes("DEMO/USD", start_ms, start_ms + HOUR_MS, now_ms=now_ms)
        if second == 0:
            assert found == []
            continue
        (bar,) = found
        assert fault_of(bar, Timeframe.M1) is None
        assert (bar.open, final.low <= bar.low, bar.high <= final.high) == (final.open, True, True)
        assert bar.volume <= final.volume
        if before is not None:
            assert (bar.high >= before.high, bar.low <= before.low, bar.volume >= before.volume) == (True,) * 3
        before = bar
    assert before is not None
    assert (before.high, before.low) == (final.high, final.low)


async def test_a_page_ends_after_ten_thousand_minutes():
    answer = await page("DEMO/USD", JAN_2024_MS, JAN_2024_MS + 3 * PAGE_MS)
    assert len(answer.bars) == 10_000
    assert answer.covered == RangeSet.of(JAN_2024_MS, JAN_2024_MS + PAGE_MS)


async def test_a_page_lets_others_run_meanwhile():
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    await page("DEMO/USD", JAN_2024_MS, JAN_2024_MS + PAGE_MS)
    task.cancel()
    assert turns >= 10


async def test_a_page_far_away_costs_no_more_than_one_at_the_beginning():
    async def cost_s(start_ms: int) -> float:
        begun = time.process_time()
        assert len(await minutes("DEMO/USD", start_ms, start_ms + PAGE_MS, now_ms=4_000_000_000_000)) == 10_000
        return time.process_time() - begun

    near = min([await cost_s(BEGAN_MS) for _ in range(3)])
    far = min([await cost_s(BEGAN_MS + 40 * 365 * DAY_MS) for _ in range(3)])
    assert far < 5 * near


async def test_an_unknown_symbol_is_refused():
    with pytest.raises(SymbolNotFoundPluginError, match="NOPE/USD"):
        await page("NOPE/USD", JAN_2024_MS, JAN_2024_MS + HOUR_MS)


async def test_other_timeframes_are_left_to_the_services():
    assert make_plugin().capabilities.can_serve(Timeframe.W1)
    with pytest.raises(PluginFeatureNotSupportedError, match="1h"):
        await make_plugin().fetch_page("DEMO/USD", Timeframe.H1, TimeRange(JAN_2024_MS, JAN_2024_MS + DAY_MS))


def test_a_clock_that_is_none_is_refused():
    with pytest.raises(PluginError, match="now_ms"):
        DemoPlugin(PluginConfig(provider="sim", options={"now_ms": 5}))


def test_loading_the_plugins_imports_no_client_library():
    code = (
        "import sys; from plugins import PluginLoader; PluginLoader({}).load();"
        "print(sorted({'ccxt', 'aiohttp', 'numpy', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
