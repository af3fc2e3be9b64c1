"""Following a backfill job until it is over or the operator has seen enough; working on it where nobody else does."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager
from typing import Any, Protocol

from commands.backfill_views import View
from domain.errors import DatabaseUnavailableError
from services.backfill_manager import BackfillManager
from services.backfills import Job

#: How often it is seen after whether anybody works on jobs.
LOOK_AROUND_S = 5.0
#: A database that is away is waited for so long.
PATIENCE_S = 60.0
RETRY_S = 1.0
_DETACHING = (signal.SIGINT, signal.SIGTERM)

NOBODY_WORKS = "No server works on backfills now: this command does, for as long as it is attached."
NO_LANES = "No server works on backfills now, nor does this command, since CANDLERY_BACKFILL_JOBS is 0: the job waits."
DATABASE_AWAY = "The database is away; it is waited for."


class Workers(Protocol):
    """What works on jobs in this process."""

    @property
    def at_work(self) -> bool:
        """Whether it does."""

    def running(self) -> AbstractAsyncContextManager[None]:
        """Let it for the block."""


class Detached(Exception):  # noqa: N818 - it is an end, not an error
    """The operator wants to look no more; the job is as it was."""

    def __init__(self, number: int) -> None:
        """Take the signal that said so."""
        super().__init__()
        self.number = number


class Follower:
    """Watches jobs, and lends a hand."""

    def __init__(
        self,
        backfills: BackfillManager,
        workers: Workers,
        *,
        look_around_s: float = LOOK_AROUND_S,
        patience_s: float = PATIENCE_S,
        retry_s: float = RETRY_S,
    ) -> None:
        """Take the jobs and who can work on them here."""
        self._backfills = backfills
        self._workers = workers
        self._look_around_s = look_around_s
        self._patience_s = patience_s
        self._retry_s = retry_s

    async def follow(self, job_id: str, view: View) -> Job:
        """Show the job until it is over; the job as it ended.

        Raises:
            Detached: SIGINT or SIGTERM came first.
            NotFoundError: there is no such job (any more).
            DatabaseUnavailableError: the database was away for too long.
        """
        with _signals() as told, view:
            watching = asyncio.create_task(self._watch(job_id, view), name="watch the backfill")
            helping = asyncio.create_task(self._help(view), name="help with backfills")
            tasks: set[asyncio.Future[Any]] = {watching, helping}
            try:
                await asyncio.wait({told} | tasks, return_when=asyncio.FIRST_COMPLETED)
                if watching.done():
                    return watching.result()
                if told.done():
                    raise Detached(told.result())
                # It ends by a failure only.
                await helping
                raise AssertionError("helping came to an end")
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)

    async def _watch(self, job_id: str, view: View) -> Job:
        """The job once it is over; a database that is away is waited for."""
        loop = asyncio.get_running_loop()
        gone_s: float | None = None
        while True:
            try:
                async with aclosing(self._backfills.watch(job_id)) as states:
                    async for job in states:
                        gone_s = None
                        view.show(job)
                        if job.state.is_over:
                            return job
            except DatabaseUnavailableError:
                if gone_s is None:
                    gone_s = loop.time()
                    view.note(DATABASE_AWAY)
                elif loop.time() - gone_s > self._patience_s:
                    raise
                await asyncio.sleep(self._retry_s)

    async def _help(self, view: View) -> None:
        """Work from the moment on that nobody else does, until cancelled."""
        while await self._someone_works():  # noqa: ASYNC110 - other processes set no event
            await asyncio.sleep(self._look_around_s)
        async with self._workers.running():
            view.note(NOBODY_WORKS if self._workers.at_work else NO_LANES)
            await asyncio.get_running_loop().create_future()

    async def _someone_works(self) -> bool:
        try:
            return await self._backfills.someone_works()
        except DatabaseUnavailableError:
            # Nobody can, and we could not either.
            return True


@contextmanager
def _signals() -> Iterator[asyncio.Future[int]]:
    """A future that a signal to detach resolves, in place of what the signals do otherwise."""
    loop = asyncio.get_running_loop()
    told: asyncio.Future[int] = loop.create_future()
    before = {number: signal.getsignal(number) for number in _DETACHING}

    def tell(number: int) -> None:
        if not told.done():
            told.set_result(number)

    for number in _DETACHING:
        loop.add_signal_handler(number, tell, number)
    try:
        yield told
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        told.cancel()
