"""Backfills for operators: planned, made, shown, steered and followed. `services.backfill_worker` does the work."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence

from domain.clock import Clock
from domain.errors import ConflictError, InvalidParameterError
from domain.time_range import TimeRange
from services.backfill_plan import Planner
from services.backfill_store import BackfillStore
from services.backfill_worker import BackfillWorkers
from services.backfills import BackfillRequest, Job, JobError, Origin, Plan

#: How often a job that is followed is looked at.
LOOK_S = 1.0


class BackfillManager:
    """The one way to backfill jobs.

    Every method raises `DatabaseUnavailableError` while the database is away; those that take the id of a job raise
    `NotFoundError` where there is no such job, and those that steer one `ConflictError` where its state forbids it.
    """

    def __init__(
        self, jobs: BackfillStore, planner: Planner, workers: BackfillWorkers, clock: Clock, *, look_s: float = LOOK_S
    ) -> None:
        """Take the parts; the workers run by themselves."""
        self._jobs = jobs
        self._planner = planner
        self._workers = workers
        self._clock = clock
        self._look_s = look_s
        #: Chunks of the jobs that are not over, by state, as of the last `refresh`.
        self.chunk_counts: Mapping[str, int] = {}

    @property
    def chunks_finished(self) -> Mapping[str, int]:
        """Chunks that this process finished, by how: done, failed, or refused since they were another's by then."""
        return self._workers.finished

    async def plan(self, request: BackfillRequest) -> Plan:
        """What a job would do; nothing is written.

        Raises:
            UnknownNameError: there is no such market or provider, or none of the symbols.
            PluginError: the provider cannot be asked for its symbols.
            InvalidParameterError: the range is empty or lies ahead, or it is too much for one job.
        """
        plan, _ = await self._planner.plan(self._checked(request))
        return plan

    async def create(self, request: BackfillRequest) -> Job:
        """Make a job; the same errors as `plan`."""
        request = self._checked(request)
        plan, chunks = await self._planner.plan(request)
        job_id = await self._jobs.add(request, chunks, plan.errors, Origin.OPERATOR)
        self._workers.wake()
        return await self._jobs.job(job_id)

    async def heal(
        self, market: str, provider: str, starts: Mapping[str, int]
    ) -> tuple[Job | None, Sequence[JobError]]:
        """Make a job of what is missing of symbols from their starts (UTC epoch milliseconds) to now.

        None where nothing is missing; the errors are of symbols that cannot be healed. The same errors as `plan`, and
        `ConflictError` while jobs heal all of them already; those that are being healed are left out.
        """
        now_ms = self._clock.now_ms()
        busy = await self._jobs.healing(market, provider)
        due = {symbol: start_ms for symbol, start_ms in starts.items() if start_ms < now_ms}
        starts = {symbol: start_ms for symbol, start_ms in due.items() if symbol not in busy}
        if due and not starts:
            raise ConflictError(f"Jobs that heal {', '.join(sorted(due))} are under way already.")
        if not starts:
            return None, ()
        request = BackfillRequest(market, provider, tuple(starts), TimeRange(min(starts.values()), now_ms))
        plan, chunks = await self._planner.plan(request, starts)
        if not chunks:
            return None, plan.errors
        job_id = await self._jobs.add(request, chunks, (), Origin.HEALING)
        self._workers.wake()
        return await self._jobs.job(job_id), plan.errors

    async def jobs(self, *, limit: int = 100) -> list[Job]:
        """The newest jobs, newest first."""
        return await self._jobs.jobs(limit=limit)

    async def job(self, job_id: str) -> Job:
        """One job as it stands."""
        return await self._jobs.job(job_id)

    async def pause(self, job_id: str) -> Job:
        """Begin no more chunks of a job; those under way are finished."""
        await self._jobs.pause(job_id)
        return await self._jobs.job(job_id)

    async def resume(self, job_id: str) -> Job:
        """Go on with a paused job."""
        await self._jobs.resume(job_id)
        self._workers.wake()
        return await self._jobs.job(job_id)

    async def cancel(self, job_id: str) -> Job:
        """End a job. What it has fetched stays."""
        await self._jobs.cancel(job_id)
        return await self._jobs.job(job_id)

    async def retry(self, job_id: str) -> Job:
        """Try again what failed of a job."""
        await self._jobs.retry(job_id)
        self._workers.wake()
        return await self._jobs.job(job_id)

    async def watch(self, job_id: str) -> AsyncGenerator[Job, None]:
        """The job now, and again whenever it changed, until it is over."""
        seen: Job | None = None
        while seen is None or not seen.state.is_over:
            job = await self._jobs.job(job_id)
            if job != seen:
                yield job
            seen = job
            if not job.state.is_over:
                await asyncio.sleep(self._look_s)

    async def someone_works(self) -> bool:
        """Whether a process that works on jobs is alive: this one, or another that was heard of lately."""
        return self._workers.at_work or await self._workers.someone_else_works()

    async def refresh(self) -> None:
        """Count chunks for the metrics, and forget jobs that ended long ago."""
        self.chunk_counts = await self._jobs.chunk_counts()
        await self._jobs.tidy()

    def _checked(self, request: BackfillRequest) -> BackfillRequest:
        """The request with its range cut at the present."""
        start_ms, end_ms = request.range
        now_ms = self._clock.now_ms()
        if start_ms >= end_ms:
            raise InvalidParameterError("start", "start must be before end.")
        if start_ms >= now_ms:
            raise InvalidParameterError("start", "start lies in the future; there is nothing to fetch yet.")
        if not request.symbols:
            raise InvalidParameterError("symbols", "symbols is empty; name at least one.")
        return request._replace(range=TimeRange(start_ms, min(end_ms, now_ms)))
