"""Keeping watched series complete: holes are found on a schedule, at start, and after an outage, and become jobs."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from domain.clock import Clock, SystemClock
from domain.errors import CandleryError, ConflictError, DatabaseUnavailableError, NotFoundError
from domain.series import Series, WatchedSeries
from domain.time_range import TimeRange
from domain.timeframe import MINUTE_MS
from services.backfills import BackfillRequest, Job, JobError, JobState, Plan

log = logging.getLogger(__name__)

#: Between two looks at least, however often something recovers.
LEAST_PAUSE_S = 5.0
#: What could not be had is left alone for so long, doubled with each further failure up to the limit.
REST_S = 300.0
REST_LIMIT_S = 3600.0
#: Of one job, unless a single symbol needs more; the other symbols wait for the next.
MOST_CHUNKS = 50_000
_INTERNAL = "an internal error; see the log"


class Backfills(Protocol):
    """The part of the backfill manager that heals."""

    async def plan(self, request: BackfillRequest) -> Plan:
        """What is missing; see `BackfillManager.plan`."""
        ...

    async def heal(
        self, market: str, provider: str, starts: Mapping[str, int]
    ) -> tuple[Job | None, Sequence[JobError]]:
        """Make a job of all that is missing; see `BackfillManager.heal`."""
        ...

    async def job(self, job_id: str) -> Job:
        """One job; see `BackfillManager.job`."""
        ...


class WatchedStatus(NamedTuple):
    """A watched series at the last look. Times are UTC epoch milliseconds.

    `missing_minutes` is None before the first look that succeeded; `problem` says why it is not or cannot be healed.
    """

    series: Series
    start_ms: int
    checked_ms: int | None
    missing_minutes: int | None
    problem: str | None


@dataclass
class _Watch:
    """A watched series, and how its healing goes."""

    series: Series
    start_ms: int
    checked_ms: int | None = None
    missing_minutes: int | None = None
    #: Why it could not be looked at, and why the last job could not heal it.
    unplanned: str | None = None
    failed: str | None = None
    #: Failures in a row; until when (seconds of the loop) what lies before `tried_ms` is left alone.
    faults: int = 0
    rests_until: float = 0.0
    tried_ms: int = 0

    @property
    def problem(self) -> str | None:
        return self.unplanned or self.failed

    def rest(self, why: str | None, pause_s: float) -> None:
        """Note how the last job over all that is missing went; None: well."""
        self.failed = why
        self.faults = self.faults + 1 if why else 0
        pause_s = min(pause_s * float(1 << min(self.faults - 1, 16)), REST_LIMIT_S) if why else 0.0
        self.rests_until = asyncio.get_running_loop().time() + pause_s


class _Due(NamedTuple):
    """A series to be healed, from where on, what of it is missing, and whether that is all of it."""

    watch: _Watch
    start_ms: int
    plan: Plan
    whole: bool


class _Made(NamedTuple):
    """The job that was made last, and the symbols of which it is to fetch all that is missing."""

    job_id: str
    whole: frozenset[str]


class Healer:
    """Makes at most one job at a time for each provider, and none where nothing is missing.

    A symbol that a job could not heal rests, longer each time, so that no heap of failing jobs grows. Its new minutes
    are healed meanwhile, and a recovery ends its rest.
    """

    def __init__(
        self,
        backfills: Backfills,
        watched: Sequence[WatchedSeries],
        clock: Clock | None = None,
        *,
        least_pause_s: float = LEAST_PAUSE_S,
        rest_s: float = REST_S,
    ) -> None:
        """Take what is to be kept complete."""
        self._backfills = backfills
        self._clock = clock or SystemClock()
        self._least_pause_s = least_pause_s
        self._rest_s = rest_s
        self._watches = [_Watch(one.series, one.start_ms) for one in watched]
        self._providers: dict[tuple[str, str], list[_Watch]] = {}
        for watch in self._watches:
            self._providers.setdefault(watch.series[:2], []).append(watch)
        self._made: dict[tuple[str, str], _Made] = {}
        #: Providers whose failures before the last `wake` do not count any more.
        self._recovered: set[tuple[str, str]] = set()
        self._may_run_at = 0.0
        #: Set when there may be something to heal before the next look is due.
        self.woken = asyncio.Event()

    def wake(self) -> None:
        """Something recovered: look soon, also at what rests."""
        if self._providers:
            self._recovered.update(self._providers)
            self.woken.set()

    def status(self) -> list[WatchedStatus]:
        """Every watched series at the last look."""
        return [
            WatchedStatus(one.series, one.start_ms, one.checked_ms, one.missing_minutes, one.problem)
            for one in self._watches
        ]

    async def run(self) -> int:
        """Look at every watched series; how many jobs were made. What fails is looked at again the next time."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._may_run_at - loop.time())
        self.woken.clear()
        made = 0
        for provider, watches in self._providers.items():
            before = [one.problem for one in watches]
            made += await self._look(provider, watches)
            _tell(provider, watches, before)
        self._may_run_at = loop.time() + self._least_pause_s
        return made

    async def _look(self, provider: tuple[str, str], watches: Sequence[_Watch]) -> bool:
        """Look at the series of a provider, and make a job where there is need; whether one was made."""
        try:
            under_way = await self._learn(provider, watches)
            due = [found for one in watches if (found := await self._check(one)) is not None]
            return bool(due) and not under_way and await self._heal(provider, due)
        except DatabaseUnavailableError as exc:
            for one in watches:
                one.unplanned = exc.detail
            asyncio.get_running_loop().call_later(self._least_pause_s, self.woken.set)
        except Exception:
            log.exception("watched %s/%s could not be looked at", *provider)
            for one in watches:
                one.unplanned = _INTERNAL
        return False

    async def _learn(self, provider: tuple[str, str], watches: Sequence[_Watch]) -> bool:
        """See how the last job went; whether it is still under way."""
        made = self._made.get(provider)
        try:
            job = await self._backfills.job(made.job_id) if made else None
        except NotFoundError:
            job = None
        if job is not None and not job.state.is_over:
            return True
        self._made.pop(provider, None)
        if made and job is not None:
            errors = {error.symbol: error.detail for error in reversed(job.errors) if job.state is JobState.FAILED}
            for one in (one for one in watches if one.series.symbol in job.request.symbols):
                why = errors.get(one.series.symbol)
                if one.series.symbol in made.whole:
                    one.rest(why, self._rest_s)
                else:
                    one.failed = why or one.failed
        if provider in self._recovered:
            self._recovered.discard(provider)
            for one in watches:
                one.rests_until = 0.0
        return False

    async def _check(self, one: _Watch) -> _Due | None:
        """What of a series is missing, and due."""
        now_ms = self._clock.now_ms()
        wanted = TimeRange(one.start_ms, max(now_ms, one.start_ms + MINUTE_MS))
        market, provider, symbol = one.series
        try:
            plan = await self._backfills.plan(BackfillRequest(market, provider, (symbol,), wanted))
        except DatabaseUnavailableError:
            raise
        except CandleryError as exc:
            one.unplanned = exc.detail
            return None
        one.checked_ms, one.missing_minutes, one.unplanned = now_ms, plan.minutes, None
        if plan.chunks == 0:
            one.rest(None, 0)
            return None
        whole = asyncio.get_running_loop().time() >= one.rests_until
        start_ms = one.start_ms if whole else max(one.start_ms, one.tried_ms)
        return _Due(one, start_ms, plan, whole) if start_ms < _end_ms(plan) else None

    async def _heal(self, provider: tuple[str, str], due: Sequence[_Due]) -> bool:
        """Make a job of what is due; another process may have been faster."""
        some: list[_Due] = []
        chunks = 0
        for one in due:
            if not some or chunks + one.plan.chunks <= MOST_CHUNKS:
                some.append(one)
                chunks += one.plan.chunks
        try:
            starts = {one.watch.series.symbol: one.start_ms for one in some}
            job, errors = await self._backfills.heal(*provider, starts)
        except ConflictError:
            return False
        except DatabaseUnavailableError:
            raise
        except CandleryError as exc:
            job, errors = None, [JobError(symbol, exc.detail) for symbol in starts]
        bad = {error.symbol: error.detail for error in errors}
        for one in some:
            one.watch.unplanned = bad.get(one.watch.series.symbol)
            one.watch.tried_ms = _end_ms(one.plan)
        if job is None:
            return False
        self._made[provider] = _Made(job.id, frozenset(one.watch.series.symbol for one in some if one.whole))
        log.info("backfill %s heals %s/%s: %d chunks", job.id, *provider, job.progress.chunks_total)
        return True


def _end_ms(plan: Plan) -> int:
    """Where the missing minutes of a plan for one symbol end."""
    return plan.symbols[0].gaps.ranges[-1].end_ms


def _tell(provider: tuple[str, str], watches: Sequence[_Watch], before: Sequence[str | None]) -> None:
    """Log problems that began, changed or ended, those of the same kind in one line."""
    changed: dict[str | None, list[str]] = {}
    for one, was in zip(watches, before, strict=True):
        if one.problem != was:
            changed.setdefault(one.problem, []).append(one.series.symbol)
    for problem, symbols in changed.items():
        level = logging.WARNING if problem else logging.INFO
        log.log(level, "watched %s/%s %s: %s", *provider, ", ".join(symbols), problem or "all is well again")
