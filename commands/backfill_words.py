"""Backfill jobs and plans in words and tables."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from commands.terminal import counted, duration, say, utc, utc_minute
from services.backfills import Job, JobError, JobState, Plan, SymbolPlan

#: As much of an id as is shown; any unique beginning of it is enough to name a job.
SHORT_ID = 8
#: Gaps whose times a plan shows for a symbol, and errors that a report shows; the rest are counted.
GAPS_SHOWN = 3
ERRORS_SHOWN = 20
#: From so many columns on a list of jobs shows their times.
_WIDE = 120
#: Symbols that a line of the list names.
SYMBOLS_SHOWN = 3


class Situation(NamedTuple):
    """A job that is not over, and whether a process works on jobs now."""

    job: Job
    someone_works: bool


def short(job_id: str) -> str:
    """What people see of an id, and may type."""
    return job_id[:SHORT_ID]


def attach_words(job_id: str) -> str:
    """The command that follows the job."""
    return f"candlery backfill attach {short(job_id)}"


def outlook(situation: Situation) -> str:
    """Who goes on with the job, and how to follow it."""
    job, someone_works = situation
    if job.state is JobState.PAUSED:
        return f"It rests until `candlery backfill resume {short(job.id)}`. Follow it: {attach_words(job.id)}"
    if someone_works:
        return f"A server is at work on it. Follow it: {attach_words(job.id)}"
    return f"Nobody works on it now: it waits until `candlery serve` runs, or until you attach: {attach_words(job.id)}"


def state_words(job: Job) -> str:
    """A line on where the job stands."""
    progress = job.progress
    failed = f", {progress.chunks_failed:,} failed" if progress.chunks_failed else ""
    return (
        f"{job.state.value}: {progress.chunks_done:,} of {counted(progress.chunks_total, 'chunk')} done{failed}, "
        f"{counted(progress.bars_written, 'bar')} written"
    )


def error_words(error: JobError) -> str:
    """`symbol, range: reason (so many attempts)`."""
    part = ""
    if error.range is not None:
        part = f", {utc_minute(error.range.start_ms)} to {utc_minute(error.range.end_ms)}"
    tried = f" ({counted(error.attempts, 'attempt')})" if error.attempts else ""
    return f"{error.symbol}{part}: {error.detail}{tried}"


def report(job: Job) -> int:
    """Say how a job ended, on stderr what it could not get; the exit code for that."""
    if job.state is JobState.DONE and not job.progress.chunks_total:
        print(f"Backfill {short(job.id)} is done: nothing was missing.", flush=True)
        return 0
    print(f"Backfill {short(job.id)} is {state_words(job)}{_took(job)}.", flush=True)
    if job.state is JobState.DONE:
        return 0
    tell_errors(job.errors, job.error_count)
    if job.state is JobState.FAILED and job.progress.chunks_failed:
        say(f"Try what failed again: candlery backfill retry {short(job.id)}")
    return 1


def _took(job: Job) -> str:
    if job.started_ms is None or job.finished_ms is None:
        return ""
    return f", in {duration((job.finished_ms - job.started_ms) / 1000)}"


def tell_errors(errors: Sequence[JobError], count: int) -> None:
    """Say what could not be had."""
    shown = errors[:ERRORS_SHOWN]
    for error in sorted(shown, key=lambda error: error.symbol):
        say(f"  {error_words(error)}")
    if count > len(shown):
        say(f"  ... and {count - len(shown):,} more")


def print_plan(out: Console, plan: Plan) -> None:
    """What a job would do."""
    request = plan.request
    start, end = (utc_minute(ts_ms) for ts_ms in request.range)
    table = Table("symbol", "gaps (UTC)", title=f"{request.market}/{request.provider}, {start} to {end} UTC")
    for name in ("gaps", "missing minutes", "chunks"):
        table.add_column(name, justify="right")
    for one in plan.symbols:
        table.add_row(
            *(one.symbol, _gap_lines(one), f"{len(one.gaps.ranges):,}", f"{one.minutes:,}"),
            f"{len(one.chunks) + (one.search is not None):,}",
        )
    out.print(table)
    if not plan.chunks:
        print("Nothing is missing.")
        return
    print(
        f"{counted(plan.minutes, 'missing minute')} in {counted(plan.chunks, 'chunk')}, "
        f"at most {counted(plan.calls, 'upstream call')}: about {duration(plan.estimated_s)}. Nothing was begun."
    )


def _gap_lines(plan: SymbolPlan) -> str:
    """The latest gaps, which are fetched first, with their times."""
    latest = islice(reversed(plan.gaps.ranges), GAPS_SHOWN)
    lines = [f"{utc_minute(gap.start_ms)} to {utc_minute(gap.end_ms)}" for gap in latest]
    if len(plan.gaps.ranges) > GAPS_SHOWN:
        lines.append(f"... and {len(plan.gaps.ranges) - GAPS_SHOWN:,} earlier")
    if plan.search is not None:
        lines.append("its first bar is looked for first")
    return "\n".join(lines) or "none"


def print_jobs(out: Console, jobs: Iterable[Job]) -> None:
    """A line a job; on a narrow terminal the series are cut and the least is left out, never the id."""
    wide = out.width >= _WIDE
    table = Table(box=None, pad_edge=False)
    for name in ("id", "state"):
        table.add_column(name, no_wrap=True)
    table.add_column("series", no_wrap=True, overflow="ellipsis")
    for name in ("from (UTC)", "to (UTC)", "made (UTC)") if wide else ():
        table.add_column(name, no_wrap=True)
    for name in ("done", "chunks", "bars", "errors"):
        table.add_column(name, justify="right", no_wrap=True)
    for job in jobs:
        progress = job.progress
        times = (*job.request.range, job.created_ms) if wide else ()
        table.add_row(
            *(short(job.id), _state(job), _series(job), *map(utc_minute, times), percent(job)),
            *(f"{progress.chunks_total:,}", f"{progress.bars_written:,}", f"{job.error_count:,}"),
        )
    out.print(table)


def percent(job: Job) -> str:
    """How much of the job is over; 100 only when all of it is."""
    return f"{int(job.progress.percent * 10) / 10:.1f} %"


def _state(job: Job) -> str:
    return job.state.value if job.origin == "operator" else f"{job.state.value} ({job.origin.value})"


def _series(job: Job) -> str:
    request = job.request
    names = ", ".join(request.symbols[:SYMBOLS_SHOWN])
    more = len(request.symbols) - SYMBOLS_SHOWN
    return f"{request.market}/{request.provider} {names}{f' and {more:,} more' if more > 0 else ''}"


def print_job(job: Job) -> None:
    """All about one job."""
    start, end = (utc(ts_ms) for ts_ms in job.request.range)
    rows = [
        ("id", job.id),
        ("state", state_words(job)),
        ("origin", job.origin.value),
        ("provider", f"{job.request.market}/{job.request.provider}"),
        ("symbols", ", ".join(job.request.symbols)),
        ("range", f"{start} to {end} UTC"),
        ("done", percent(job)),
        ("left", "" if job.progress.eta_s is None else f"about {duration(job.progress.eta_s)}"),
        *((name, "" if ts_ms is None else f"{utc(ts_ms)} UTC") for name, ts_ms in _instants(job)),
    ]
    for name, value in rows:
        if value:
            print(f"{name:<10}{value}")
    for error in job.errors:
        print(f"{'problem':<10}{error_words(error)}")
    if job.error_count > len(job.errors):
        print(f"{'':<10}... and {job.error_count - len(job.errors):,} more")


def _instants(job: Job) -> tuple[tuple[str, int | None], ...]:
    return (("made", job.created_ms), ("started", job.started_ms), ("finished", job.finished_ms))
