"""What a backfill is: a durable job over the missing minutes of some symbols, in chunks of one provider's page."""

from enum import StrEnum
from typing import NamedTuple

from domain.time_range import RangeSet, TimeRange


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens by itself."""
        return self in {JobState.DONE, JobState.FAILED, JobState.CANCELLED}


class Origin(StrEnum):
    """Who wanted a job."""

    OPERATOR = "operator"
    HEALING = "healing"


class BackfillRequest(NamedTuple):
    """What is to be made complete: the minutes of `range` (bucket-aligned or not) of each symbol."""

    market: str
    provider: str
    symbols: tuple[str, ...]
    range: TimeRange


class JobError(NamedTuple):
    """What could not be had: a symbol, the part of it (None: all of it), why, and how often it was tried."""

    symbol: str
    detail: str
    attempts: int = 0
    range: TimeRange | None = None


class SymbolPlan(NamedTuple):
    """What is missing of one symbol, and the windows that it will be asked for in, newest first.

    `search`: where the symbol's first bar is to be looked for before; None: it is not worth it.
    """

    symbol: str
    gaps: RangeSet
    chunks: tuple[TimeRange, ...]
    search: TimeRange | None = None

    @property
    def minutes(self) -> int:
        """Missing minutes."""
        return self.gaps.length_ms // 60_000


class Plan(NamedTuple):
    """What a job would do.

    Attributes:
        request: what was asked for.
        symbols: a plan for each symbol that its provider lists.
        errors: symbols that cannot be backfilled, and why.
        calls: upstream calls, at most, but for repeated ones.
        estimated_s: seconds, as the provider's rate limit allows.
    """

    request: BackfillRequest
    symbols: tuple[SymbolPlan, ...]
    errors: tuple[JobError, ...]
    calls: int
    estimated_s: float

    @property
    def chunks(self) -> int:
        """Chunks of all symbols, a search being one."""
        return sum(len(plan.chunks) + (plan.search is not None) for plan in self.symbols)

    @property
    def minutes(self) -> int:
        """Missing minutes of all symbols."""
        return sum(plan.minutes for plan in self.symbols)


class Progress(NamedTuple):
    """How far a job came. `eta_s` is None where its pace is not known (yet, or while it rests)."""

    chunks_done: int
    chunks_failed: int
    chunks_total: int
    bars_written: int
    eta_s: float | None

    @property
    def percent(self) -> float:
        """Done or failed chunks of all, in percent; a job without any chunk has nothing left to do."""
        if self.chunks_total == 0:
            return 100.0
        return 100.0 * (self.chunks_done + self.chunks_failed) / self.chunks_total


class Job(NamedTuple):
    """A backfill job as it stands. Times are UTC epoch milliseconds.

    `errors` are the first hundred; `error_count` counts all.
    """

    id: str
    state: JobState
    origin: Origin
    request: BackfillRequest
    progress: Progress
    errors: tuple[JobError, ...]
    error_count: int
    created_ms: int
    started_ms: int | None
    finished_ms: int | None
