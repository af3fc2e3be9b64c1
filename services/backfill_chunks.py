"""Chunks of backfill jobs as a worker sees them: claimed with a lease and a fencing token, and committed with bars.

Every change that a worker makes to a chunk is fenced: it holds only while the chunk is still this claim's. A worker
that was frozen, and comes back when its chunk was given to another, changes nothing.
"""

import random
from collections.abc import Collection, Sequence
from typing import NamedTuple

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, stop_after_delay
from tenacity.wait import wait_random_exponential

from domain.bar import Bar
from domain.errors import DatabaseUnavailableError
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import MINUTE_MS, Timeframe
from services.backfills import JobState
from services.bar_store import BarStore
from services.coverage import CONFIRM_AFTER_MS
from services.database import Connection, FencedError
from services.sql import load_queries

_CLAIM_TURN = 0x0CA_2D20
#: After a fault a chunk rests so many seconds, doubled with each further one up to the limit; so does its symbol.
REST_S = 1.0
REST_LIMIT_S = 300.0
#: How often and for how many seconds a page is written, before it is given up and its call has to be made again.
KEEP_TRIES = 5
KEEP_PAUSE_S = 0.2
KEEP_FOR_S = 5.0


class Claim(NamedTuple):
    """A chunk that this worker may work on while its lease lasts.

    `attempts` counts this one; `faults` are those of its symbol in a row.
    """

    job_id: str
    id: int
    fence: int
    series_id: int
    symbol: str
    kind: str
    range: TimeRange
    attempts: int
    faults: int


class JobRef(NamedTuple):
    """A job that has something to do."""

    id: str
    market: str
    provider: str


class ChunkStore:
    """Claims and settles chunks in the name of one owner, a process."""

    def __init__(self, store: BarStore, owner: str, *, lease_s: float) -> None:
        """Take the store of bars that chunks are committed with, and how long a claim holds without a sign of life."""
        self.store = store
        self.owner = owner
        self.lease_s = lease_s
        self._database = store.database
        self._sql = load_queries("backfills")

    async def workable(self, busy: Collection[str], limit: int) -> list[JobRef]:
        """Jobs with something to do now, but for the busy ones."""
        async with self._database.connection() as db:
            rows = await db.fetch(self._sql["workable"], list(busy), limit)
        return [JobRef(*row) for row in rows]

    async def claim(self, job_id: str) -> Claim | None:
        """The job's next chunk that may be worked on now."""
        async with self._database.transaction() as db:
            await db.fetchval(self._sql["claim_turn"], _CLAIM_TURN)
            state = await db.fetchval(self._sql["claim_job"], job_id)
            if state not in {JobState.QUEUED, JobState.RUNNING}:
                return None
            row = await db.fetchrow(self._sql["claim"], job_id, self.owner, self.lease_s)
            if row is None:
                return None
            if state == JobState.QUEUED:
                await db.execute(self._sql["begin_job"], job_id)
        at, fence, series_id, symbol, kind, starts, ends, attempts, faults = row
        return Claim(job_id, at, fence, series_id, symbol, kind, TimeRange(starts, ends), attempts, faults)

    async def finish(self, claim: Claim) -> None:
        """The chunk is done with nothing (more) to write."""
        async with self._database.transaction() as db:
            await self.hold(db, claim)
            await self.mark_done(db, claim, 0)

    async def finish_search(self, claim: Claim, first_ms: int, unproven: RangeSet) -> None:
        """The symbol's first bar was found: the chunks before it are done, too.

        `unproven`: minutes before it that are not known to have none; they are asked for in the background, unless
        the second look at the emptiness, which comes first, proves it.
        """
        async with self._database.transaction() as db:
            await self.hold(db, claim)
            await db.execute(self._sql["skip_before"], claim.job_id, claim.series_id, first_ms)
            if unproven:
                await self.store.wish_in(db, claim.series_id, unproven, after_ms=CONFIRM_AFTER_MS + 10 * MINUTE_MS)
            await self.mark_done(db, claim, 0)

    async def put_back(self, claim: Claim, why: str | None, *, rest_s: float) -> None:
        """Queue the chunk again, to rest with its symbol for a while: nobody's fault, so no attempt is counted.

        It rests no longer than after faults: the provider's own pause is kept by its rate budget.
        """
        rest_s = min(rest_s, REST_LIMIT_S)
        async with self._database.transaction() as db:
            await self.hold(db, claim)
            await db.execute(self._sql["put_back"], claim.id, rest_s, why, False)
            await db.execute(self._sql["rest_series"], claim.job_id, claim.series_id, rest_s, False)

    async def fault(self, claim: Claim, why: str, *, limit: int) -> bool:
        """Let the chunk and its symbol rest after a fault; after `limit` tries fail it. Whether it rests.

        A symbol with so many faults in a row, whatever the chunk, is given up as a whole.
        """
        async with self._database.transaction() as db:
            await self.hold(db, claim)
            rests = claim.attempts < limit
            if rests:
                await db.execute(self._sql["put_back"], claim.id, rest_after(claim.attempts), why, True)
            else:
                await db.execute(self._sql["give_up"], claim.id, why)
            if claim.faults + 1 >= limit and not rests:
                words = f"given up with its symbol after {claim.faults + 1} faults in a row: {why}"
                await db.execute(self._sql["give_up_queued"], claim.job_id, claim.series_id, words)
            pause_s = rest_after(claim.faults + 1)
            await db.execute(self._sql["rest_series"], claim.job_id, claim.series_id, pause_s, True)
        return rests

    async def fail(self, claim: Claim, why: str) -> None:
        """Fail this chunk alone."""
        async with self._database.transaction() as db:
            await self.hold(db, claim)
            await db.execute(self._sql["give_up"], claim.id, why)

    async def give_up(self, claim: Claim, why: str, *, whole_job: bool) -> None:
        """Fail the chunk, and what is left of its symbol or of the whole job: trying again cannot help."""
        async with self._database.transaction() as db:
            await self.hold(db, claim)
            await db.execute(self._sql["give_up"], claim.id, why)
            await db.execute(self._sql["give_up_queued"], claim.job_id, None if whole_job else claim.series_id, why)

    async def keep_lease(self, chunk_ids: Sequence[int], *, sure: bool) -> set[int]:
        """Sign of life: extend the leases, say that somebody works, and hand on what others left behind.

        The chunks that are still this owner's.

        `sure=False`: hand on claims of this owner's, too, that it does not know of.
        """
        async with self._database.connection() as db:
            kept = await db.fetch(self._sql["extend"], self.owner, self.lease_s, list(chunk_ids))
            await db.execute(self._sql["seen"], self.owner)
            await db.execute(self._sql["hand_on"], None if sure else self.owner, list(chunk_ids))
        return {row["id"] for row in kept}

    async def sign_off(self) -> None:
        """This owner works no more."""
        async with self._database.transaction() as db:
            await db.execute(self._sql["hand_on"], self.owner, [])
            await db.execute(self._sql["gone"], self.owner)

    async def someone_works(self) -> bool:
        """Whether another process that works on jobs gave a sign of life lately."""
        async with self._database.connection() as db:
            return bool(await db.fetchval(self._sql["someone_seen"], self.lease_s, self.owner))

    async def hold(self, db: Connection, claim: Claim) -> None:
        """Keep the chunk this claim's until the transaction ends; raises `FencedError` where it is no longer."""
        if not await db.fetchval(self._sql["hold"], claim.id, claim.fence):
            raise FencedError(f"chunk {claim.id} of backfill {claim.job_id} was given to another worker")

    async def mark_done(self, db: Connection, claim: Claim, bars: int) -> None:
        """End a chunk that is held, with the bars that its last page wrote."""
        await db.execute(self._sql["finish"], claim.id, bars)
        if claim.faults:
            await db.execute(self._sql["wake_series"], claim.job_id, claim.series_id)

    async def count_bars(self, db: Connection, claim: Claim, bars: int) -> None:
        """Count what a page of a chunk that is held wrote."""
        await db.execute(self._sql["count_bars"], claim.id, bars)


class ChunkKeeper:
    """Keeps the pages of one chunk: bars, coverage and, with the last page, `done` in one fenced transaction."""

    def __init__(self, chunks: ChunkStore, claim: Claim, missing: RangeSet) -> None:
        """Take what the chunk still misses."""
        self._chunks = chunks
        self._claim = claim
        #: What is neither kept nor failed yet.
        self.left = missing
        #: Whether the chunk was marked done.
        self.done = False
        self.failure: str | None = None

    async def keep(self, bars: Sequence[Bar], covered: RangeSet, *, vouched: bool, asked_ms: int) -> None:
        """Write a page, also where the database restarts meanwhile. The last one ends the chunk."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(DatabaseUnavailableError),
            stop=stop_after_attempt(KEEP_TRIES) | stop_after_delay(KEEP_FOR_S),
            wait=wait_random_exponential(multiplier=KEEP_PAUSE_S, min=KEEP_PAUSE_S),
            reraise=True,
        )
        await retrying(self._keep, bars, covered, vouched=vouched, asked_ms=asked_ms)

    async def _keep(self, bars: Sequence[Bar], covered: RangeSet, *, vouched: bool, asked_ms: int) -> None:
        chunks, claim = self._chunks, self._claim
        left = self.left - covered
        ends = not left and self.failure is None
        async with chunks.store.database.transaction() as db:
            await chunks.hold(db, claim)
            written = await chunks.store.record_in(
                db, claim.series_id, Timeframe.M1, bars=bars, answered=covered, vouched=vouched, asked_ms=asked_ms
            )
            if ends:
                await chunks.mark_done(db, claim, written.written)
            else:
                await chunks.count_bars(db, claim, written.written)
        chunks.store.count(written)
        self.left, self.done = left, ends

    async def fail(self, ranges: RangeSet, why: str) -> None:
        """Write down what could not be had, unless the chunk is another's by now."""
        chunks, claim = self._chunks, self._claim
        async with chunks.store.database.transaction() as db:
            await chunks.hold(db, claim)
            await chunks.store.record_failure_in(db, claim.series_id, Timeframe.M1, ranges, why)
        self.left -= ranges
        self.failure = why


def rest_after(faults: int) -> float:
    """Seconds to rest after so many faults in a row, with jitter so that processes do not come back all at once."""
    pause = min(REST_S * float(1 << min(faults - 1, 16)), REST_LIMIT_S)
    return pause * random.uniform(0.75, 1.25)  # noqa: S311 - no secret
