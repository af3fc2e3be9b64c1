"""A process that asks for a day of bars and kills itself, as `kill -9` would, at a step that it is told.

Usage: python -m tests.support.crash_child DSN STEP
"""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from app_extensions.db_pool import DatabasePool
from app_extensions.migrations import Flavour, migrate
from domain.timeframe import DAY_MS
from services.bar_store import BarStore
from services.coverage import CoverageLedger
from services.data_sources.cache_source import CacheSource
from services.feed import Feed
from services.rollups import PlainRollups, TimescaleRollups
from tests.support.clock import ManualClock
from tests.support.house import make_house
from tests.support.market import START_MS, random_minutes
from tests.support.scripted import ScriptedPlugin

MARKET = random_minutes(77, 1440, holes=0.1)
NOW_MS = START_MS + 30 * DAY_MS
#: Method to die in, on which of its calls, and whether before or after its work.
STEPS: dict[str, tuple[type, str, int, bool]] = {
    "before the second page": (Feed, "page", 2, True),
    "after the second page came": (Feed, "page", 2, False),
    "after the second page's bars, before its coverage": (BarStore, "_write", 2, False),
    "after the second page's coverage, before the commit": (CoverageLedger, "answered", 2, False),
    "after the commit, before the refresh": (BarStore, "settle", 2, True),
    "after the refresh, before the cache": (CacheSource, "keep", 1, True),
    "after everything": (CacheSource, "keep", 1, False),
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying(method: Callable[..., Awaitable[Any]], nth: int, *, before: bool) -> Callable[..., Awaitable[Any]]:
    calls = 0

    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if before and calls == nth:
            die()
        result = await method(*args, **kwargs)
        if calls == nth:
            die()
        return result

    return wrapper


async def main(dsn: str, step: str) -> None:
    owner, name, nth, before = STEPS[step]
    setattr(owner, name, dying(getattr(owner, name), nth, before=before))
    clock = ManualClock(NOW_MS)
    pool = DatabasePool(dsn, min_size=1, max_size=1, connect_timeout_s=30)
    await pool.open()
    flavour = await migrate(pool)
    rollups = TimescaleRollups(pool, clock) if flavour is Flavour.TIMESCALEDB else PlainRollups()
    house = make_house(BarStore(pool, CoverageLedger(), rollups, clock), clock, ScriptedPlugin({"A/B": MARKET}))
    await house.bars(start_ms=START_MS, end_ms=START_MS + DAY_MS, limit=10_000)
    sys.exit("the step was never reached")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
