"""Backfill jobs in the database: made, shown, steered and closed. Chunks are claimed in `backfill_chunks`."""

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import uuid4

from domain.errors import ConflictError, NotFoundError
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import Timeframe
from services.backfills import BackfillRequest, Job, JobError, JobState, Origin, Progress
from services.database import Connection, Database
from services.sql import load_queries

#: Errors that a job shows; more are counted.
ERRORS_SHOWN = 100
_ROWS_PER_STATEMENT = 2_000
_HEALING_TURN = 0x0CA_2D21
#: Seconds over which a job's pace is taken; see `jobs` in backfills.sql.
_PACE_S = 30.0


class NewChunk(NamedTuple):
    """A chunk to be; its place follows from its position among the job's chunks."""

    series_id: int
    symbol: str
    kind: str
    range: TimeRange


class BackfillStore:
    """Reads and writes jobs."""

    def __init__(self, database: Database) -> None:
        """Take the database; do no I/O."""
        self.database = database
        self._sql = load_queries("backfills")

    async def missing(self, series_id: int, wanted: TimeRange) -> RangeSet:
        """Minutes of `wanted` that the ledger does not know."""
        async with self.database.connection() as db:
            row = await db.fetchrow(self._sql["missing"], series_id, Timeframe.M1.value, *wanted)
        return RangeSet.ascending(zip(row["starts"], row["ends"], strict=True))

    async def add(
        self, request: BackfillRequest, chunks: Sequence[NewChunk], bad: Sequence[JobError], origin: Origin
    ) -> str:
        """Write a job with its chunks, in the order they are to be worked; its id.

        Raises:
            ConflictError: a job already heals one of the symbols.
        """
        job_id = str(uuid4())
        over = JobState.FAILED if bad else JobState.DONE
        state = JobState.QUEUED if chunks else over
        async with self.database.transaction() as db:
            if origin is Origin.HEALING:
                await self._check_healing(db, request)
            await db.execute(
                self._sql["add_job"],
                job_id,
                request.market,
                request.provider,
                list(request.symbols),
                *request.range,
                origin.value,
                [error.symbol for error in bad],
                [error.detail for error in bad],
                state.value,
            )
            await db.execute(self._sql["add_series"], job_id, sorted({chunk.series_id for chunk in chunks}))
            await self._add_chunks(db, job_id, chunks)
        return job_id

    async def healing(self, market: str, provider: str) -> set[str]:
        """Symbols of a provider that unfinished jobs heal."""
        async with self.database.connection() as db:
            return {row["symbol"] for row in await db.fetch(self._sql["healing"], market, provider)}

    async def _check_healing(self, db: Connection, request: BackfillRequest) -> None:
        await db.execute(self._sql["healing_turn"], _HEALING_TURN)
        rows = await db.fetch(self._sql["healing"], request.market, request.provider)
        if busy := {row["symbol"] for row in rows} & set(request.symbols):
            raise ConflictError(f"A job that heals {', '.join(sorted(busy))} is under way already.")

    async def _add_chunks(self, db: Connection, job_id: str, chunks: Sequence[NewChunk]) -> None:
        for at in range(0, len(chunks), _ROWS_PER_STATEMENT):
            part = chunks[at : at + _ROWS_PER_STATEMENT]
            rows = ((c.series_id, c.symbol, c.kind, at + i, *c.range) for i, c in enumerate(part))
            await db.execute(self._sql["add_chunks"], job_id, *map(list, zip(*rows, strict=True)))

    async def jobs(self, *, limit: int) -> list[Job]:
        """The newest jobs, newest first."""
        return await self._jobs(None, limit)

    async def job(self, job_id: str) -> Job:
        """One job; raises `NotFoundError` where there is none."""
        found = await self._jobs(job_id, 1)
        if not found:
            raise NotFoundError(f"There is no backfill {job_id!r}.")
        return found[0]

    async def _jobs(self, job_id: str | None, limit: int) -> list[Job]:
        async with self.database.connection() as db:
            rows = await db.fetch(self._sql["jobs"], job_id, limit)
            errors = await db.fetch(self._sql["errors"], [row["id"] for row in rows], ERRORS_SHOWN)
        by_job: dict[str, list[JobError]] = {row["id"]: _bad_symbols(row) for row in rows}
        for row in errors:
            part = TimeRange(row["starts"], row["ends"])
            by_job[row["job_id"]].append(JobError(row["symbol"], row["error"], row["attempts"], part))
        return [_job(row, by_job[row["id"]]) for row in rows]

    async def pause(self, job_id: str) -> None:
        """Claim no more of its chunks; what is under way is finished."""
        async with self.database.transaction() as db:
            await self._expect(db, job_id, "paused", JobState.QUEUED, JobState.RUNNING)
            await db.execute(self._sql["set_state"], job_id, JobState.PAUSED.value)

    async def resume(self, job_id: str) -> None:
        """Go on with a paused job; what rested after a fault is tried at once."""
        async with self.database.transaction() as db:
            await self._expect(db, job_id, "resumed", JobState.PAUSED)
            await db.execute(self._sql["wake_chunks"], job_id)
            await db.execute(self._sql["wake_all_series"], job_id)
            await db.execute(self._sql["set_state"], job_id, JobState.QUEUED.value)

    async def cancel(self, job_id: str) -> None:
        """Give up what is not under way; what was fetched stays."""
        async with self.database.transaction() as db:
            await self._expect(db, job_id, "cancelled", JobState.QUEUED, JobState.RUNNING, JobState.PAUSED)
            await db.execute(self._sql["cancel_chunks"], job_id)
            await db.execute(self._sql["set_state"], job_id, JobState.CANCELLED.value)

    async def retry(self, job_id: str) -> None:
        """Try again what failed."""
        async with self.database.transaction() as db:
            state = await self._expect(db, job_id, "retried", JobState.FAILED, JobState.RUNNING)
            if await db.fetchval(self._sql["heals_beside"], job_id):
                raise ConflictError("Another job heals the same symbols now.")
            if await db.execute(self._sql["retry_chunks"], job_id) == "UPDATE 0":
                raise ConflictError("No chunk of this job has failed; make a new job for what it could not plan.")
            await db.execute(self._sql["wake_all_series"], job_id)
            if state is JobState.FAILED:
                await db.execute(self._sql["set_state"], job_id, JobState.QUEUED.value)

    async def _expect(self, db: Connection, job_id: str, done: str, *states: JobState) -> JobState:
        """Lock the job, and make sure that it is in one of the states."""
        found = await db.fetchval(self._sql["lock_job"], job_id)
        if found is None:
            raise NotFoundError(f"There is no backfill {job_id!r}.")
        state = JobState(found)
        if state not in states:
            wanted = " or ".join(states)
            raise ConflictError(f"The backfill is {state.value}; only one that is {wanted} can be {done}.")
        return state

    async def close_finished(self, job_id: str) -> bool:
        """End a job of which no chunk is open; whether it ended now."""
        async with self.database.transaction() as db:
            state = await db.fetchval(self._sql["lock_job"], job_id)
            if state not in {JobState.QUEUED, JobState.RUNNING} or await db.fetchval(self._sql["is_open"], job_id):
                return False
            await db.execute(self._sql["close_job"], job_id)
            return True

    async def chunk_counts(self) -> dict[str, int]:
        """Chunks of the jobs that are not over, by state."""
        async with self.database.connection() as db:
            rows = await db.fetch(self._sql["chunk_counts"])
        return {row["state"]: row["chunks"] for row in rows}

    async def tidy(self) -> None:
        """Let what is over of cancelled jobs leave the table.

        Also drop jobs that ended more than 90 days ago, and all but a provider's newest ten that healed it.
        """
        async with self.database.connection() as db:
            await db.execute(self._sql["tidy_cancelled"])
            await db.execute(self._sql["forget_jobs"])


def _bad_symbols(row: Any) -> list[JobError]:
    pairs = zip(row["bad_symbols"], row["bad_reasons"], strict=True)
    return [JobError(symbol, reason) for symbol, reason in pairs][:ERRORS_SHOWN]


def _job(row: Any, errors: Sequence[JobError]) -> Job:
    state = JobState(row["state"])
    request = BackfillRequest(
        row["market"], row["provider"], tuple(row["symbols"]), TimeRange(row["starts"], row["ends"])
    )
    return Job(
        id=row["id"],
        state=state,
        origin=Origin(row["origin"]),
        request=request,
        progress=_progress(row, state),
        errors=tuple(errors[:ERRORS_SHOWN]),
        error_count=row["troubled"] + len(row["bad_symbols"]),
        created_ms=row["created_at"],
        started_ms=row["started_at"],
        finished_ms=row["finished_at"],
    )


def _progress(row: Any, state: JobState) -> Progress:
    left = row["total"] - row["done"] - row["failed"]
    pace = row["recent"] / max(1.0, min(_PACE_S, row["running_s"] or 0.0))
    moving = state is JobState.RUNNING and pace > 0
    return Progress(
        chunks_done=row["chunks_done"] + row["done"],
        chunks_failed=row["failed"],
        chunks_total=row["chunks_done"] + row["chunks_dropped"] + row["total"],
        bars_written=row["bars_written"] + row["bars"],
        eta_s=left / pace if moving else None,
    )
