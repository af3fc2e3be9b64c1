"""A process killed at any step of fetch, store, coverage and refresh leaves nothing half done."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from app_extensions.db_pool import DatabasePool
from app_extensions.migrations import Flavour
from domain.bar import fold
from domain.packed import runs_of
from domain.series import Series
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, Timeframe
from services.bar_store import BarStore
from tests.conftest import store_on
from tests.support.clock import ManualClock
from tests.support.crash_child import MARKET, STEPS
from tests.support.house import make_house
from tests.support.market import START_MS
from tests.support.scripted import ScriptedPlugin

DAY = TimeRange(START_MS, START_MS + DAY_MS)


async def crash(dsn: str, step: str) -> None:
    root = Path(__file__).resolve().parents[2]
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.crash_child", dsn, step, cwd=root, stderr=asyncio.subprocess.PIPE
    )
    _, err = await asyncio.wait_for(child.communicate(), 60)
    assert child.returncode == -signal.SIGKILL, err.decode()


async def check_what_is_left(store: BarStore, clock: ManualClock) -> None:
    series = await store.ensure_series(Series("test", "scripted", "A/B"))
    bars = await store.read(series.id, Timeframe.M1, DAY)
    known = await store.knowledge(series.id, Timeframe.M1, DAY)
    assert bars == [bar for bar in MARKET if RangeSet.of(bar.ts, bar.ts + 1) & known.answered]
    assert known.answered.covers(runs_of(bars, Timeframe.M1))
    house = make_house(store, clock, ScriptedPlugin({"A/B": MARKET}))
    answer = await house.bars(start_ms=DAY.start_ms, end_ms=DAY.end_ms, limit=10_000)
    assert answer.bars == MARKET
    for timeframe in (Timeframe.M5, Timeframe.M15, Timeframe.H1, Timeframe.H4, Timeframe.D1):
        folded = await store.read_folded(series.id, timeframe, DAY)
        assert folded.bars == fold(MARKET, timeframe), timeframe


@pytest.mark.parametrize("step", STEPS)
async def test_kill_at_any_step_then_restart(
    step: str, database_url: str, template: tuple[str, Flavour], clock: ManualClock
) -> None:
    await crash(database_url, step)
    pool = DatabasePool(database_url)
    await pool.open()
    await check_what_is_left(store_on(pool, template[1], clock), clock)
    await pool.close()


@pytest.mark.parametrize("step", STEPS)
async def test_kill_at_any_step_then_restart_on_timescaledb(step: str, timescale_url: str, clock: ManualClock) -> None:
    await crash(timescale_url, step)
    pool = DatabasePool(timescale_url, min_size=1, max_size=1, connect_timeout_s=30)
    await pool.open()
    await check_what_is_left(store_on(pool, Flavour.TIMESCALEDB, clock), clock)
    await pool.close()
