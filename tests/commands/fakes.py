"""Jobs in memory, and somebody who may work on them, for the commands."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from domain.errors import DatabaseUnavailableError
from domain.time_range import TimeRange
from domain.timeframe import DAY_MS, HOUR_MS
from services.backfills import BackfillRequest, Job, JobError, JobState, Origin, Progress
from tests.fakes import FakeBackfills, FakeMarkets, FakeServices
from tests.support.clock import ManualClock
from tests.support.market import START_MS

PART = TimeRange(START_MS, START_MS + HOUR_MS)


class Backfills(FakeBackfills):
    """Jobs of which the tests say whether another process works on them."""

    def __init__(self, markets: FakeMarkets, clock: ManualClock) -> None:
        super().__init__(markets, clock)
        self.someone_else_works = True
        #: How often the database is away when it is asked who works.
        self.away = 0
        self.asked_thrice = asyncio.Event()
        self._asked = 0

    async def someone_works(self) -> bool:
        self._asked += 1
        if self._asked == 3:
            self.asked_thrice.set()
        if self.away:
            self.away -= 1
            raise DatabaseUnavailableError
        return self.someone_else_works


class Workers:
    """Hands of this process: idle until they are run, useless with `lanes=0`."""

    def __init__(self, lanes: int = 4) -> None:
        self.at_work = False
        self.entered = 0
        self._lanes = lanes

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.entered += 1
        self.at_work = self._lanes > 0
        try:
            yield
        finally:
            self.at_work = False


class Services(FakeServices):
    """What the commands use."""

    def __init__(self) -> None:
        super().__init__()
        self.backfills = Backfills(self.markets, self.clock)
        self.backfill_workers = Workers()


def job(job_id: str = "1234abcd-5678", **changes: Any) -> Job:
    """A job that runs."""
    made = Job(
        id=job_id,
        state=JobState.RUNNING,
        origin=Origin.OPERATOR,
        request=BackfillRequest("test", "fake", ("BTC/USDT",), TimeRange(START_MS, START_MS + DAY_MS)),
        progress=Progress(1, 0, 4, 100, 75.0),
        errors=(),
        error_count=0,
        created_ms=START_MS,
        started_ms=START_MS + 1000,
        finished_ms=None,
    )
    return made._replace(**changes)


def error(symbol: str = "BTC/USDT", detail: str = "gone", attempts: int = 2) -> JobError:
    return JobError(symbol, detail, attempts, PART)
