"""Following a job: until it is over, until a signal, and working on it where nobody else does."""

import asyncio
import os
import signal
from typing import Self

import pytest

from commands.following import DATABASE_AWAY, NO_LANES, NOBODY_WORKS, Detached, Follower
from domain.errors import DatabaseUnavailableError, NotFoundError
from domain.time_range import TimeRange
from domain.timeframe import DAY_MS
from services.backfills import BackfillRequest, Job, JobState
from tests.commands.fakes import Services, Workers
from tests.support.market import START_MS

REQUEST = BackfillRequest("test", "fake", ("BTC/USDT",), TimeRange(START_MS, START_MS + DAY_MS))


class View:
    """Remembers what it was shown."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.notes: list[str] = []
        self.is_open = False
        self._changed = asyncio.Event()

    def __enter__(self) -> Self:
        self.is_open = True
        return self

    def __exit__(self, *_: object) -> None:
        self.is_open = False

    def show(self, job: Job) -> None:
        assert self.is_open
        self.jobs.append(job)
        self._changed.set()

    def note(self, text: str) -> None:
        assert self.is_open
        self.notes.append(text)
        self._changed.set()

    async def until(self, *, shown: int = 0, noted: int = 0) -> None:
        async with asyncio.timeout(10):
            while len(self.jobs) < shown or len(self.notes) < noted:
                self._changed.clear()
                await self._changed.wait()


class Following:
    """A job that is being followed."""

    def __init__(self, *, patience_s: float = 60) -> None:
        self.services = Services()
        self.backfills = self.services.backfills
        self.workers = self.services.backfill_workers
        self.view = View()
        self.patience_s = patience_s

    async def begin(self) -> asyncio.Task[Job]:
        self.job = await self.backfills.create(REQUEST)
        follower = Follower(
            self.backfills,  # type: ignore[arg-type]
            self.workers,
            look_around_s=0.01,
            retry_s=0.01,
            patience_s=self.patience_s,
        )
        return asyncio.create_task(follower.follow(self.job.id, self.view))


async def end_of(task: asyncio.Task[Job]) -> Job:
    return await asyncio.wait_for(task, 10)


async def test_a_job_is_shown_at_every_change_until_it_is_over():
    it = Following()
    task = await it.begin()
    await it.view.until(shown=1)
    await it.backfills.move(it.job.id, state=JobState.RUNNING)
    await it.view.until(shown=2)
    await it.backfills.move(it.job.id, state=JobState.DONE)
    assert (await end_of(task)).state is JobState.DONE
    assert [job.state for job in it.view.jobs] == ["queued", "running", "done"]
    assert not it.view.is_open
    assert it.backfills.watchers == 0


async def test_where_a_server_works_the_command_only_watches():
    it = Following()
    task = await it.begin()
    await asyncio.wait_for(it.backfills.asked_thrice.wait(), 10)
    await it.backfills.move(it.job.id, state=JobState.FAILED)
    assert (await end_of(task)).state is JobState.FAILED
    assert (it.workers.entered, it.view.notes) == (0, [])


async def test_the_command_works_from_the_moment_on_that_nobody_else_does_and_stops_at_the_end():
    it = Following()
    task = await it.begin()
    await it.view.until(shown=1)
    assert not it.workers.at_work
    it.backfills.someone_else_works = False
    await it.view.until(noted=1)
    assert it.workers.at_work
    assert it.view.notes == [NOBODY_WORKS]
    await it.backfills.move(it.job.id, state=JobState.DONE)
    await end_of(task)
    assert not it.workers.at_work


async def test_a_process_that_may_not_work_says_so():
    it = Following()
    it.workers = Workers(lanes=0)
    it.backfills.someone_else_works = False
    task = await it.begin()
    await it.view.until(noted=1)
    assert it.view.notes == [NO_LANES]
    await it.backfills.move(it.job.id, state=JobState.CANCELLED)
    await end_of(task)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_detaches_and_leaves_the_job_and_the_handlers_as_they_were(number: signal.Signals):
    before = signal.getsignal(number)
    it = Following()
    it.backfills.someone_else_works = False
    task = await it.begin()
    await it.view.until(shown=1, noted=1)
    os.kill(os.getpid(), number)
    with pytest.raises(Detached) as told:
        await end_of(task)
    assert told.value.number == number
    assert signal.getsignal(number) == before
    assert not it.workers.at_work
    assert it.backfills.watchers == 0
    assert (await it.backfills.job(it.job.id)).state is JobState.QUEUED


async def test_a_database_that_is_away_for_a_while_is_waited_for():
    it = Following()
    it.backfills.away = 2
    task = await it.begin()
    await it.view.until(shown=1)
    await it.backfills.interrupt(DatabaseUnavailableError())
    await it.view.until(noted=1)
    assert it.view.notes == [DATABASE_AWAY]
    await it.view.until(shown=2)
    await it.backfills.move(it.job.id, state=JobState.DONE)
    assert (await end_of(task)).state is JobState.DONE


async def test_a_database_that_stays_away_ends_the_watch():
    it = Following(patience_s=0)
    task = await it.begin()
    await it.view.until(shown=1)
    it.backfills.error = DatabaseUnavailableError()
    await it.backfills.interrupt(DatabaseUnavailableError())
    async with asyncio.timeout(10):
        while not task.done():
            # Whoever watches anew asks for the job only when it changes.
            await it.backfills.interrupt(DatabaseUnavailableError())
            await asyncio.sleep(0.005)
    with pytest.raises(DatabaseUnavailableError):
        task.result()
    assert it.view.notes == [DATABASE_AWAY]


async def test_a_job_that_is_gone_is_told_of():
    it = Following()
    task = await it.begin()
    await it.view.until(shown=1)
    await it.backfills.interrupt(NotFoundError("There is no such backfill."))
    with pytest.raises(NotFoundError):
        await end_of(task)


async def test_a_command_that_is_cancelled_stops_working():
    it = Following()
    it.backfills.someone_else_works = False
    task = await it.begin()
    await it.view.until(noted=1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await end_of(task)
    assert not it.workers.at_work
