"""Changes of series are heard of over a real PostgreSQL, and it is known when they would not be."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from app_extensions.db_pool import DatabasePool
from app_extensions.revision_watch import RevisionWatch
from domain.packed import runs_of
from domain.series import Series
from domain.timeframe import Timeframe
from services.bar_store import BarStore
from services.coverage import CoverageLedger
from services.revisions import Revisions, Stamp
from services.rollups import PlainRollups
from tests.support.clock import ManualClock
from tests.support.market import random_minutes

SERIES = Series("test", "scripted", "A/B")
BARS = random_minutes(1, 5, holes=0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.01)


@asynccontextmanager
async def watching(pool: DatabasePool, revisions: Revisions) -> AsyncIterator[None]:
    async def again_and_again() -> None:
        watch = RevisionWatch(pool, revisions)
        while True:
            await watch.run()
            await asyncio.sleep(0.05)

    task = asyncio.create_task(again_and_again())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def store_of(pool: DatabasePool, clock: ManualClock, revisions: Revisions | None = None) -> BarStore:
    return BarStore(pool, CoverageLedger(), PlainRollups(), clock, revisions)


async def record(store: BarStore, series_id: int, bars: list[Any]) -> None:
    await store.record(series_id, Timeframe.M1, bars=bars, answered=runs_of(bars, Timeframe.M1))


async def test_another_process_change_of_what_was_known_is_heard_of(pool: DatabasePool, clock: ManualClock):
    revisions = Revisions()
    here, there = store_of(pool, clock, revisions), store_of(pool, clock)
    found = await here.ensure_series(SERIES)
    async with watching(pool, revisions):
        await until(lambda: revisions.holds(Stamp(found.id, 0, revisions.era)))
        first = await here.find_series(SERIES, from_memory=True)
        assert first is not None
        await record(there, found.id, BARS)
        assert await here.find_series(SERIES, from_memory=True) is first, "new knowledge changes nothing that was known"
        await record(there, found.id, BARS)
        await until(lambda: not revisions.holds(first.stamp))
        second = await here.find_series(SERIES, from_memory=True)
        assert second is not None
        assert second.revision == first.revision + 1
        assert await here.find_series(SERIES, from_memory=True) is second


async def test_a_change_of_this_process_counts_at_once(pool: DatabasePool, clock: ManualClock):
    revisions = Revisions()
    store = store_of(pool, clock, revisions)
    found = await store.ensure_series(SERIES)
    await record(store, found.id, BARS)
    async with watching(pool, revisions):
        await until(lambda: revisions.holds(Stamp(found.id, 0, revisions.era)))
        for revision in range(1, 20):
            await record(store, found.id, BARS)
            now = await store.find_series(SERIES, from_memory=True)
            assert now is not None
            assert now.revision == revision


async def test_nothing_holds_when_the_connection_is_lost_until_there_is_another(pool: DatabasePool, clock: ManualClock):
    revisions = Revisions()
    async with watching(pool, revisions):
        await until(lambda: revisions.holds(Stamp(1, 0, revisions.era)))
        before = Stamp(1, 0, revisions.era)
        async with pool.connection() as db:
            await db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND query LIKE '%pg_notify%' AND pid <> pg_backend_pid()"
            )
        await until(lambda: not revisions.holds(before))
        await until(lambda: revisions.holds(Stamp(1, 0, revisions.era)))
        assert not revisions.holds(before)


async def test_nobody_vouches_where_messages_do_not_come_back(
    pool: DatabasePool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """As behind a pooler that gives the connection to others between two statements."""

    class DeafConnection:
        def __init__(self, real: Any) -> None:
            self.execute, self.add_termination_listener = real.execute, real.add_termination_listener
            self._real = real

        async def add_listener(self, *args: Any) -> None:
            await self._real.add_listener(*args)
            await self._real.execute("UNLISTEN *")

    class Deaf(DatabasePool):
        @asynccontextmanager
        async def lone_connection(self) -> AsyncIterator[Any]:
            async with pool.lone_connection() as connection:
                yield DeafConnection(connection)

    monkeypatch.setattr("app_extensions.revision_watch.PATIENCE_S", 0.3)
    revisions = Revisions()
    with caplog.at_level("INFO"):
        await RevisionWatch(Deaf(""), revisions).run()
    assert not revisions.holds(Stamp(1, 0, revisions.era))
    assert "cannot be heard of" in caplog.text


async def test_a_database_that_is_away_is_no_fault(caplog: pytest.LogCaptureFixture):
    revisions = Revisions()
    with caplog.at_level("INFO"):
        await RevisionWatch(DatabasePool("postgresql://nobody@127.0.0.1:1/none"), revisions).run()
    assert "cannot be heard of" in caplog.text
    assert revisions.era == 1
