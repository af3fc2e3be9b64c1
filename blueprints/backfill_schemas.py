"""Backfills on the wire. Times are UTC epoch milliseconds."""

from collections.abc import Sequence
from itertools import islice

import msgspec

from services.backfills import Job, JobError, Plan, Progress, SymbolPlan

#: Most gaps that a plan lists of one symbol; all are counted.
GAPS_LISTED = 1000


class ProgressOut(msgspec.Struct, frozen=True, kw_only=True):
    """How far a job came."""

    chunks_done: int
    chunks_failed: int
    chunks_total: int
    bars_written: int
    percent: float
    eta_seconds: float | None


class ErrorOut(msgspec.Struct, frozen=True, kw_only=True):
    """What could not be had: a symbol, and the part of it; no part: all of it."""

    symbol: str
    detail: str
    attempts: int
    start: int | None
    end: int | None


class JobOut(msgspec.Struct, frozen=True, kw_only=True):
    """A job; `errors` are the first of `error_count`."""

    id: str
    state: str
    origin: str
    market: str
    provider: str
    symbols: Sequence[str]
    start: int
    end: int
    created_at: int
    started_at: int | None
    finished_at: int | None
    progress: ProgressOut
    error_count: int
    errors: Sequence[ErrorOut]


class JobsOut(msgspec.Struct, frozen=True):
    """Jobs, newest first."""

    backfills: Sequence[JobOut]


class PartOut(msgspec.Struct, frozen=True):
    """Minutes that are missing, `[start, end)`."""

    start: int
    end: int


class SymbolPlanOut(msgspec.Struct, frozen=True, kw_only=True):
    """What is missing of a symbol; `gaps` are the first of `gap_count`."""

    symbol: str
    minutes: int
    chunks: int
    gap_count: int
    gaps: Sequence[PartOut]


class PlanOut(msgspec.Struct, frozen=True, kw_only=True):
    """What a job would do."""

    dry_run: bool = True
    market: str
    provider: str
    start: int
    end: int
    minutes: int
    chunks: int
    calls: int
    estimated_seconds: float
    symbols: Sequence[SymbolPlanOut]
    errors: Sequence[ErrorOut]


def job_out(job: Job) -> JobOut:
    """The job for the wire."""
    return JobOut(
        id=job.id,
        state=job.state.value,
        origin=job.origin.value,
        market=job.request.market,
        provider=job.request.provider,
        symbols=job.request.symbols,
        start=job.request.range.start_ms,
        end=job.request.range.end_ms,
        created_at=job.created_ms,
        started_at=job.started_ms,
        finished_at=job.finished_ms,
        progress=_progress_out(job.progress),
        error_count=job.error_count,
        errors=list(map(_error_out, job.errors)),
    )


def plan_out(plan: Plan) -> PlanOut:
    """The plan for the wire."""
    return PlanOut(
        market=plan.request.market,
        provider=plan.request.provider,
        start=plan.request.range.start_ms,
        end=plan.request.range.end_ms,
        minutes=plan.minutes,
        chunks=plan.chunks,
        calls=plan.calls,
        estimated_seconds=plan.estimated_s,
        symbols=list(map(_symbol_plan_out, plan.symbols)),
        errors=list(map(_error_out, plan.errors)),
    )


def _progress_out(progress: Progress) -> ProgressOut:
    finished = progress.chunks_done + progress.chunks_failed >= progress.chunks_total
    return ProgressOut(
        chunks_done=progress.chunks_done,
        chunks_failed=progress.chunks_failed,
        chunks_total=progress.chunks_total,
        bars_written=progress.bars_written,
        # Not rounded up to 100 before the last chunk.
        percent=100.0 if finished else min(99.9, round(progress.percent, 1)),
        eta_seconds=None if progress.eta_s is None else round(progress.eta_s, 1),
    )


def _error_out(error: JobError) -> ErrorOut:
    start_ms, end_ms = error.range or (None, None)
    return ErrorOut(symbol=error.symbol, detail=error.detail, attempts=error.attempts, start=start_ms, end=end_ms)


def _symbol_plan_out(plan: SymbolPlan) -> SymbolPlanOut:
    return SymbolPlanOut(
        symbol=plan.symbol,
        minutes=plan.minutes,
        chunks=len(plan.chunks),
        gap_count=len(plan.gaps.ranges),
        gaps=[PartOut(*gap) for gap in islice(plan.gaps, GAPS_LISTED)],
    )
