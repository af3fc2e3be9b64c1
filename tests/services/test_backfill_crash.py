"""Backfills go on where a process or the database ended: nothing is lost, and at most one chunk is asked for twice."""

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from app_extensions.db_pool import DatabasePool
from app_extensions.embedded_postgres import EmbeddedPostgres
from app_extensions.migrations import migrate
from domain.bar import fold
from domain.errors import DatabaseUnavailableError
from domain.series import Series
from domain.time_range import RangeSet
from domain.timeframe import Timeframe
from services.backfills import BackfillRequest, Job, JobState
from services.coverage import CoverageLedger
from tests.conftest import store_on
from tests.support.backfill_child import (
    FREEZE_IN_CALL,
    FREEZE_IN_TRANSACTION,
    LEASE_S,
    MARKET,
    MEET,
    NOW_MS,
    STEPS,
    WINDOW,
    WitnessedPlugin,
)
from tests.support.clock import ManualClock
from tests.support.house import House, make_house

PATIENCE_S = 60
CHUNKS = 4


class Child:
    """A process beside this one."""

    def __init__(self, dsn: str, calls_file: Path, mode: str) -> None:
        self._arguments = [sys.executable, "-m", "tests.support.backfill_child", dsn, str(calls_file), mode]
        self.process: asyncio.subprocess.Process

    async def __aenter__(self) -> Self:
        pipe = asyncio.subprocess.PIPE
        root = Path(__file__).resolve().parents[2]
        self.process = await asyncio.create_subprocess_exec(
            *self._arguments, cwd=root, stdin=pipe, stdout=pipe, stderr=pipe
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await asyncio.wait_for(self.process.communicate(), PATIENCE_S)

    async def heard(self, word: str) -> None:
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), PATIENCE_S)
        if line.decode().strip() != word:
            _, err = await asyncio.wait_for(self.process.communicate(), PATIENCE_S)
            pytest.fail(f"{line!r} instead of {word}: {err.decode()}")

    def tell(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"go on\n")

    async def killed_itself(self) -> None:
        assert self.process.stdin is not None
        _, err = await asyncio.wait_for(self.process.communicate(), PATIENCE_S)
        assert self.process.returncode == -signal.SIGKILL, err.decode()


@asynccontextmanager
async def a_house(dsn: str, calls_file: Path, *, bars_per_call: int = 500, **pool_options: Any) -> AsyncIterator[House]:
    """This process' own hands on the database, not at work yet."""
    clock = ManualClock(NOW_MS)
    pool = DatabasePool(dsn, connect_timeout_s=30, **pool_options)
    await pool.open()
    flavour = await migrate(pool)
    plugin = WitnessedPlugin(calls_file, bars_per_call=bars_per_call)
    house = make_house(store_on(pool, flavour, clock), clock, plugin, lanes=1, lease_s=LEASE_S)
    yield house
    await house.workers.close()
    await house.markets.close()
    await pool.close()


async def a_job(house: House, symbol: str) -> str:
    job = await house.backfills.create(BackfillRequest("test", "scripted", (symbol,), WINDOW))
    return job.id


async def finished(house: House, job_id: str) -> Job:
    return await asyncio.wait_for(house.finished(job_id), PATIENCE_S)


def asked(calls_file: Path, symbol: str) -> Counter[tuple[int, int]]:
    """How often each window was asked for, by whichever process."""
    calls = (line.split() for line in calls_file.read_text().splitlines())
    return Counter((int(start), int(end)) for _, of, start, end in calls if of == symbol)


async def check_complete(house: House, symbol: str) -> None:
    store = house.store
    series = await store.find_series(Series("test", "scripted", symbol))
    assert series is not None
    assert await store.read(series.id, Timeframe.M1, WINDOW) == MARKET
    known = await store.knowledge(series.id, Timeframe.M1, WINDOW)
    assert known.answered == RangeSet((WINDOW,))
    for timeframe in (Timeframe.M5, Timeframe.M15, Timeframe.H1, Timeframe.H4, Timeframe.D1):
        folded = await store.read_folded(series.id, timeframe, WINDOW)
        assert folded.bars == fold(MARKET, timeframe), timeframe
    async with store.database.connection() as db:
        assert await db.fetchval("SELECT count(*) FROM bar_revisions WHERE series_id = $1", series.id) == 0


async def check_killed_at(step: str, symbol: str, dsn: str, calls_file: Path, **pool_options: Any) -> None:
    async with a_house(dsn, calls_file, **pool_options) as house:
        job_id = await a_job(house, symbol)
    async with Child(dsn, calls_file, step) as child:
        await child.killed_itself()
    async with a_house(dsn, calls_file, **pool_options) as house:
        house.workers.open()
        job = await finished(house, job_id)
        assert (job.state, job.error_count) == (JobState.DONE, 0)
        assert (job.progress.chunks_done, job.progress.chunks_total) == (CHUNKS, CHUNKS)
        assert job.progress.bars_written == len(MARKET)
        await check_complete(house, symbol)
    times = asked(calls_file, symbol)
    assert (len(times), max(times.values())) in {(CHUNKS, 1), (CHUNKS, 2)}
    assert sum(times.values()) <= CHUNKS + 1


@pytest.mark.parametrize("step", STEPS)
async def test_a_process_killed_at_any_step_of_a_chunk_costs_at_most_one_repeated_call(
    step: str, database_url: str, tmp_path: Path
) -> None:
    await check_killed_at(step, "K0/X", database_url, tmp_path / "calls")


async def test_a_process_killed_at_any_step_of_a_chunk_costs_at_most_one_repeated_call_on_timescaledb(
    timescale_url: str, tmp_path: Path
) -> None:
    for n, step in enumerate(STEPS):
        await check_killed_at(step, f"K{n}/X", timescale_url, tmp_path / "calls", min_size=1, max_size=1)


async def test_two_processes_share_one_job_and_each_chunk_is_asked_for_once(database_url: str, tmp_path: Path) -> None:
    calls_file = tmp_path / "calls"
    calls_file.touch()
    async with (
        Child(database_url, calls_file, MEET) as one,
        Child(database_url, calls_file, MEET) as other,
        a_house(database_url, calls_file, bars_per_call=250) as house,
    ):
        await asyncio.gather(one.heard("ready"), other.heard("ready"))
        job_id = await a_job(house, "K0/X")
        job = await finished(house, job_id)
        assert (job.state, job.progress.chunks_done, job.progress.bars_written) == (JobState.DONE, 8, len(MARKET))
        await check_complete(house, "K0/X")
        times = asked(calls_file, "K0/X")
        assert (len(times), set(times.values())) == (8, {1})
        pids = {int(line.split()[0]) for line in calls_file.read_text().splitlines()}
        assert pids == {one.process.pid, other.process.pid}


@pytest.mark.parametrize("moment", [FREEZE_IN_CALL, FREEZE_IN_TRANSACTION])
async def test_a_process_that_was_frozen_is_refused_when_it_comes_back_late(
    moment: str, database_url: str, tmp_path: Path
) -> None:
    calls_file = tmp_path / "calls"
    calls_file.touch()
    async with Child(database_url, calls_file, moment) as frozen, a_house(database_url, calls_file) as house:
        await frozen.heard("ready")
        job_id = await a_job(house, "K0/X")
        await frozen.heard("here")
        frozen.process.send_signal(signal.SIGSTOP)
        house.workers.open()
        job = await finished(house, job_id)
        assert (job.state, job.progress.chunks_done) == (JobState.DONE, CHUNKS)
        frozen.process.send_signal(signal.SIGCONT)
        frozen.tell()
        if moment == FREEZE_IN_CALL:
            await frozen.heard("refused")
        # Awake, it works as before.
        await house.workers.close()
        job = await finished(house, await a_job(house, "K1/X"))
        assert job.state is JobState.DONE
        for symbol in ("K0/X", "K1/X"):
            await check_complete(house, symbol)
        assert sorted(asked(calls_file, "K0/X").values()) == [1, 1, 1, 2]
        assert sorted(asked(calls_file, "K1/X").values()) == [1, 1, 1, 1]


async def patiently_finished(house: House, job_id: str) -> Job:
    """The end of the job, though the database cannot be asked for a while."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await house.finished(job_id)
            except DatabaseUnavailableError:
                await asyncio.sleep(0.05)


def end(server: EmbeddedPostgres, how: signal.Signals) -> None:
    """End the database, which is started again by its keeper: killed, or shut down fast."""
    assert server.pid is not None
    os.kill(server.pid, how)


def once(work: Callable[[], None], nth: int, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """The method, with something else happening at the end of its n-th call."""
    calls = 0

    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        result = await method(*args, **kwargs)
        if calls == nth:
            work()
        return result

    return wrapped


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("moment", ["in a call", "in a transaction"])
async def test_a_database_that_ends_in_mid_job_costs_at_most_one_repeated_call(
    how: signal.Signals, moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls_file = tmp_path / "calls"
    server = EmbeddedPostgres(tmp_path / "pg")
    await server.open()

    def ended() -> None:
        end(server, how)

    try:
        async with a_house(server.dsn, calls_file, bars_per_call=250) as house:
            if moment == "in a call":
                monkeypatch.setattr(house.plugin, "fetch_page", once(ended, 3, house.plugin.fetch_page))
            else:
                monkeypatch.setattr(CoverageLedger, "answered", once(ended, 3, CoverageLedger.answered))
            house.workers.open()
            job_id = await a_job(house, "K0/X")
            job = await patiently_finished(house, job_id)
            assert (job.state, job.progress.chunks_done) == (JobState.DONE, 8)
            await check_complete(house, "K0/X")
        times = asked(calls_file, "K0/X")
        assert len(times) == 8
        assert sum(times.values()) <= 9
    finally:
        await server.close()
