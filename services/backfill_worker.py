"""The processes' hands on backfill jobs: each lane works one job, chunk after chunk; the database shares the work out.

A process has at most one chunk of a job in flight, so that its sudden end costs at most one repeated call.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any
from uuid import uuid4

from domain.clock import Clock
from domain.errors import CandleryError, DatabaseUnavailableError, UnknownNameError, UnsupportedTimeframeError
from domain.series import Series
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import Timeframe
from plugins.base import (
    AuthenticationPluginError,
    NetworkPluginError,
    PluginError,
    PluginFeatureNotSupportedError,
    RateLimitPluginError,
    SymbolNotFoundPluginError,
)
from services.backfill_chunks import ChunkKeeper, ChunkStore, Claim, JobRef
from services.backfill_plan import SEARCH, Planner
from services.backfill_store import BackfillStore
from services.bar_store import BarStore
from services.database import FencedError
from services.feed import DEFAULT_PAUSE_S
from services.fetch import ErrandLimits, Fetch
from services.listing_search import ListingSearch, search_timeframe
from services.market_service import Listing, MarketService
from services.turns import Turns

log = logging.getLogger(__name__)
Chore = Callable[[], Awaitable[None]]

#: For one chunk: a page that comes in pieces needs several calls.
CHUNK = ErrandLimits(calls=50, seconds=300)
#: A claim without a sign of life for so long is another's to take.
LEASE_S = 15.0
#: How often the database is looked at for work that nobody told of.
POLL_S = 1.0
#: How often aggregates are rebuilt while chunks come in; readers fold what is owed from the minutes meanwhile.
SETTLE_S = 2.0
_STOP_S = 2.0
_LOST = float("-inf")
#: A database that went away so often in the midst of one chunk is there, but cannot take the chunk.
_STORING_TRIES = 3
#: After so long a job leaves its lane to another that waits, where one does.
TURN_S = 20.0
#: Jobs looked at beyond the lanes, so that those of providers that only others know hold up none.
_MORE_JOBS = 16
_FORGOTTEN = "the provider no longer has these minutes"
_NOT_CLOSED = "the provider has not closed these minutes yet"
#: Of no use to try again.
_HOPELESS = (
    AuthenticationPluginError,
    PluginFeatureNotSupportedError,
    SymbolNotFoundPluginError,
    UnknownNameError,
    UnsupportedTimeframeError,
)


class BackfillWorkers:
    """Works on any job in the database while it is open."""

    def __init__(
        self,
        store: BarStore,
        clock: Clock,
        *,
        jobs: BackfillStore,
        planner: Planner,
        listings: ListingSearch,
        markets: MarketService,
        turns: Turns,
        lanes: int,
        attempts: int,
        lease_s: float = LEASE_S,
        poll_s: float = POLL_S,
    ) -> None:
        """Take the parts, how many jobs to work on at once, and after how many tries a chunk counts as failed.

        `turns` are those of the queries: a query and a chunk never ask for the same at once.
        """
        self._store = store
        self._jobs = jobs
        self._planner = planner
        self._listings = listings
        self._markets = markets
        self._turns = turns
        self._clock = clock
        self._lanes = lanes
        self._attempts = attempts
        self._poll_s = poll_s
        self._chunks = ChunkStore(store, f"worker-{uuid4()}", lease_s=lease_s)
        self._working: dict[str, asyncio.Task[bool]] = {}
        #: Chunks under way, and until when (monotonic seconds) each is surely ours.
        self._claimed: dict[int, float] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._woken = asyncio.Event()
        #: When each job that may have more to do was last given a lane, in monotonic seconds.
        self._served: dict[str, float] = {}
        #: Whether the database went away and may hold claims of ours that we do not know of.
        self._unsure = False
        #: Chunks that this process finished, by how.
        self.finished = {"done": 0, "failed": 0, "refused": 0}

    @property
    def at_work(self) -> bool:
        """Whether this process works on jobs."""
        return bool(self._tasks)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Work for the block."""
        self.open()
        try:
            yield
        finally:
            await self.close()

    def open(self) -> None:
        """Begin to work."""
        if self._lanes == 0 or self._tasks:
            return
        beat_s = self._chunks.lease_s / 3
        self._tasks = [
            asyncio.create_task(self._forever(self._poll_s, self._dispatch), name="dispatch backfills"),
            asyncio.create_task(self._forever(beat_s, self._beat), name="keep backfill leases"),
            asyncio.create_task(self._forever(SETTLE_S, self._settle), name="settle backfilled aggregates"),
        ]

    async def close(self) -> None:
        """Stop at once; what was claimed is handed on."""
        if not self._tasks:
            return
        tasks: list[asyncio.Task[Any]] = [*self._tasks, *self._working.values()]
        self._tasks = []
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=_STOP_S)
        try:
            async with asyncio.timeout(_STOP_S):
                await self._chunks.sign_off()
        except (CandleryError, TimeoutError) as exc:
            log.warning("backfill chunks were not handed on, and wait for their leases to end: %s", exc)

    def wake(self) -> None:
        """Look for work now."""
        self._woken.set()

    async def someone_else_works(self) -> bool:
        """Whether another process was heard of lately."""
        return await self._chunks.someone_works()

    async def _forever(self, seconds: float, chore: Chore) -> None:
        """The chore again and again, `wake` or `seconds` apart; a database that is away is waited for."""
        while True:
            try:
                await chore()
            except DatabaseUnavailableError as exc:
                log.warning("backfills wait for the database: %s", exc)
            except Exception:
                log.exception("backfills: %s failed; it is tried again", chore.__name__)
            await self._pause(seconds, wakes=chore == self._dispatch)

    async def _pause(self, seconds: float, *, wakes: bool) -> None:
        if not wakes:
            await asyncio.sleep(seconds)
            return
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return
        self._woken.clear()

    async def _dispatch(self) -> None:
        """Give each free lane a job."""
        free = self._lanes - len(self._working)
        if free <= 0:
            return
        found = await self._chunks.workable(list(self._working), self._lanes + _MORE_JOBS)
        able = [job for job in found if self._markets.serves(job.market, job.provider)]
        # The one that waited longest for a turn comes first.
        able.sort(key=lambda job: self._served.get(job.id, 0.0))
        known = {*self._working, *(job.id for job in found)}
        self._served = {job_id: at for job_id, at in self._served.items() if job_id in known}
        for job in able[:free]:
            self._served[job.id] = time.monotonic()
            task = asyncio.create_task(self._work_on(job), name=f"backfill {job.id}")
            self._working[job.id] = task
            task.add_done_callback(self._leave)

    def _leave(self, task: asyncio.Task[bool]) -> None:
        self._working = {job_id: other for job_id, other in self._working.items() if other is not task}
        if not task.cancelled() and task.result():
            self.wake()

    async def _beat(self) -> None:
        sure, self._unsure = not self._unsure, False
        until = time.monotonic() + self._chunks.lease_s
        known = dict(self._claimed)
        kept = await self._chunks.keep_lease(list(known), sure=sure)
        for chunk_id, before in known.items():
            # Not where it was put back and claimed again meanwhile.
            if self._claimed.get(chunk_id) == before:
                self._claimed[chunk_id] = until if chunk_id in kept else _LOST

    async def _settle(self) -> None:
        if self._working:
            await self._store.settle()

    async def _work_on(self, job: JobRef) -> bool:
        """All that can be done of a job now; end it where nothing is left. Whether anything was done."""
        worked = False
        try:
            turn_ends = time.monotonic() + TURN_S
            while time.monotonic() < turn_ends and (claim := await self._claim(job)) is not None:
                worked = True
                try:
                    await self._work(job, claim)
                finally:
                    del self._claimed[claim.id]
            await self._store.settle()
            if await self._jobs.close_finished(job.id):
                log.info("backfill %s is over", job.id)
        except DatabaseUnavailableError as exc:
            log.warning("backfill %s waits for the database: %s", job.id, exc)
            self._unsure = True
            await asyncio.sleep(self._poll_s)
        except Exception:
            log.exception("backfill %s was interrupted; it is taken up again", job.id)
            self._unsure = True
            await asyncio.sleep(self._poll_s)
        return worked

    async def _claim(self, job: JobRef) -> Claim | None:
        until = time.monotonic() + self._chunks.lease_s
        claim = await self._chunks.claim(job.id)
        if claim is not None:
            self._claimed[claim.id] = until
        return claim

    def _check(self, claim: Claim) -> None:
        """Ask for nothing when another may have been given the chunk: this process was frozen, or cut off."""
        if time.monotonic() > self._claimed[claim.id]:
            raise FencedError(
                f"the lease of chunk {claim.id} of backfill {claim.job_id} ran out before it was asked for"
            )

    async def _work(self, job: JobRef, claim: Claim) -> None:
        series = Series(job.market, job.provider, claim.symbol)
        try:
            listing = await self._markets.find(series)
            if claim.kind == SEARCH:
                await self._search(claim, listing)
            else:
                async with self._turns.of((series, Timeframe.M1)):
                    await self._fetch(claim, listing)
        except FencedError as exc:
            self.finished["refused"] += 1
            log.warning("%s", exc)
        except DatabaseUnavailableError as exc:
            # Where it is there after all, and only this chunk can never be stored, that ends some time, too.
            if claim.attempts >= max(self._attempts, _STORING_TRIES):
                with suppress(CandleryError):
                    await self._chunks.fault(claim, f"could not be stored: {exc.detail}", limit=self._attempts)
            raise
        except CandleryError as exc:
            await self._fault(claim, exc)
        except Exception:
            log.exception("a chunk of %s could not be worked", series)
            await self._fault(claim, CandleryError("an internal error; see the log"))

    async def _search(self, claim: Claim, listing: Listing) -> None:
        """Look for the symbol's first bar; what lies before it need not be fetched."""
        if listing.feed is None:
            raise NetworkPluginError(f"{listing.series.provider} cannot be opened.")
        timeframe = search_timeframe(listing.feed.capabilities)
        async with self._turns.of((listing.series, timeframe)):
            found = await self._listings.first_bar(listing.feed, listing.stored, claim.symbol, claim.range)
        if found.first_ms is None or found.first_ms <= claim.range.start_ms:
            await self._chunks.finish(claim)
        else:
            first_ms = min(found.first_ms, claim.range.end_ms)
            before = TimeRange(claim.range.start_ms, first_ms)
            unproven = RangeSet() if found.settled else await self._planner.missing(listing, before)
            await self._chunks.finish_search(claim, first_ms, unproven)
        self.finished["done"] += 1

    async def _fetch(self, claim: Claim, listing: Listing) -> None:
        missing = await self._planner.missing(listing, claim.range)
        assert listing.feed is not None
        keeper = ChunkKeeper(self._chunks, claim, missing)
        if missing:
            errand = Fetch(
                keeper,
                listing.feed,
                self._clock,
                symbol=claim.symbol,
                timeframe=Timeframe.M1,
                limits=CHUNK,
                polite=True,
                check=partial(self._check, claim),
            )
            error = await errand.run(missing)
            if error is not None:
                raise error
            if keeper.failure is None and not keeper.done and keeper.left != missing:
                # It comes in small pieces: go on, as another claim.
                await self._chunks.put_back(claim, None, rest_s=0)
                return
            if not keeper.done:
                raise PluginError(keeper.failure or _NOT_CLOSED)
        elif await self._planner.lost(listing, claim.range):
            await self._chunks.fail(claim, _FORGOTTEN)
            self.finished["failed"] += 1
            return
        else:
            await self._chunks.finish(claim)
        self.finished["done"] += 1

    async def _fault(self, claim: Claim, exc: CandleryError) -> None:
        """Rest after what may pass; give up what trying again cannot mend."""
        try:
            if isinstance(exc, _HOPELESS):
                whole_job = isinstance(exc, AuthenticationPluginError)
                await self._chunks.give_up(claim, exc.detail, whole_job=whole_job)
                self.finished["failed"] += 1
            elif isinstance(exc, RateLimitPluginError):
                pause_s = exc.retry_after_s or DEFAULT_PAUSE_S
                await self._chunks.put_back(claim, exc.detail, rest_s=pause_s)
            elif not await self._chunks.fault(claim, exc.detail, limit=self._attempts):
                self.finished["failed"] += 1
        except FencedError as fenced:
            self.finished["refused"] += 1
            log.warning("%s", fenced)
