"""How a job that is followed is shown: a live bar on a terminal, now and then a line elsewhere."""

import logging
import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from commands.backfill_words import error_words, percent, short, state_words
from commands.terminal import counted, duration
from services.backfills import Job

Monotonic = Callable[[], float]

#: Over how long the pace is taken, seconds.
PACE_S = 30.0
#: A line at most so often, seconds.
LINE_EVERY_S = 5.0
#: Problems that are told while a job is followed; all stand in `backfill show`.
PROBLEMS_TOLD = 20


class Pace:
    """Bars a second over the last while."""

    def __init__(self, now_s: Monotonic = time.monotonic, *, window_s: float = PACE_S) -> None:
        """Take the clock, seconds from whenever."""
        self._now_s = now_s
        self._window_s = window_s
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, bars: int) -> None:
        """So many bars are written by now. Fewer than before: it is counted anew."""
        if self._seen and bars < self._seen[-1][1]:
            self._seen.clear()
        self._seen.append((self._now_s(), bars))
        self._forget()

    def per_second(self) -> float | None:
        """None where it was not watched for long enough."""
        if not self._seen:
            return None
        self._forget()
        since_s, bars = self._seen[0]
        elapsed_s = self._now_s() - since_s
        return (self._seen[-1][1] - bars) / elapsed_s if elapsed_s >= 1 else None

    def _forget(self) -> None:
        """Keep one observation from before the window."""
        horizon = self._now_s() - self._window_s
        while len(self._seen) > 1 and self._seen[1][0] <= horizon:
            self._seen.popleft()


class Problems:
    """The problems of a job that were not told of yet."""

    def __init__(self) -> None:
        """Begin with none told."""
        self._told: set[tuple[str, str]] = set()

    def new(self, job: Job) -> list[str]:
        """Each symbol's problem once; symbols that were left out were told of when the job was made."""
        lines = []
        for error in job.errors:
            key = (error.symbol, error.detail)
            if error.range is not None and key not in self._told and len(self._told) < PROBLEMS_TOLD:
                self._told.add(key)
                lines.append(error_words(error))
        return lines


class View(Protocol):
    """Shows a job while the block lasts."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        """End."""

    def show(self, job: Job) -> None:
        """The job as it stands now."""

    def note(self, text: str) -> None:
        """Something else to know."""


class LineView:
    """Lines on `out`, at most one in `LINE_EVERY_S` while nothing but the progress changes."""

    def __init__(self, out: TextIO, now_s: Monotonic = time.monotonic) -> None:
        """Take where to write to, and the clock."""
        self._out = out
        self._now_s = now_s
        self._pace = Pace(now_s)
        self._problems = Problems()
        self._said: tuple[float, object] | None = None

    def __enter__(self) -> Self:
        """Nothing is needed."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is left behind."""

    def show(self, job: Job) -> None:
        """A line, where it is time for one or the state changed."""
        self._pace.note(job.progress.bars_written)
        for line in self._problems.new(job):
            self.note(line)
        now_s = self._now_s()
        if self._said is not None and self._said[1] == job.state and now_s - self._said[0] < LINE_EVERY_S:
            return
        self._said = (now_s, job.state)
        self.note(f"{short(job.id)} {percent(job)}, {state_words(job)}{self._speed(job)}")

    def note(self, text: str) -> None:
        """A line."""
        self._out.write(f"{text}\n")
        self._out.flush()

    def _speed(self, job: Job) -> str:
        pace, eta_s = self._pace.per_second(), job.progress.eta_s
        words = "" if pace is None else f", {counted(int(pace), 'bar')} a second"
        if job.errors:
            words += f", {counted(len(job.errors), 'problem')}"
        return words if eta_s is None else f"{words}, {duration(eta_s)} left"


class LiveView:
    """A bar that moves, with problems and notes above it."""

    def __init__(self, out: Console) -> None:
        """Take the terminal."""
        self._pace = Pace()
        self._problems = Problems()
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[percent]}", markup=False),
            TextColumn("{task.fields[chunks]} chunks", markup=False),
            TextColumn("{task.fields[bars]} bars", markup=False),
            _PaceColumn(self._pace),
            TextColumn("{task.fields[left]}", markup=False),
        )
        self._progress = Progress(*columns, console=out)
        self._task = self._progress.add_task("", total=None, visible=False, percent="", chunks="", bars="", left="")
        self._log_streams: list[tuple[logging.StreamHandler[TextIO], TextIO]] = []

    def __enter__(self) -> Self:
        """Begin to draw; lines of the log go above the bar meanwhile."""
        self._progress.start()
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler):
                self._log_streams.append((handler, handler.stream))
                handler.setStream(sys.stderr)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the bar as it stands last."""
        for handler, stream in self._log_streams:
            handler.setStream(stream)
        self._progress.stop()

    def show(self, job: Job) -> None:
        """Move the bar."""
        progress = job.progress
        self._pace.note(progress.bars_written)
        for line in self._problems.new(job):
            self.note(line)
        self._progress.update(
            self._task,
            description=f"{short(job.id)} {job.state.value}",
            visible=True,
            total=progress.chunks_total,
            completed=progress.chunks_done + progress.chunks_failed,
            percent=percent(job),
            chunks=f"{progress.chunks_done + progress.chunks_failed:,}/{progress.chunks_total:,}",
            bars=f"{progress.bars_written:,}",
            left="" if progress.eta_s is None or job.state.is_over else f"{_clock(progress.eta_s)} left",
        )

    def note(self, text: str) -> None:
        """A line above the bar."""
        self._progress.console.print(text, soft_wrap=True)


class _PaceColumn(ProgressColumn):
    """The pace as of now, also while nothing comes in."""

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._pace = pace

    def render(self, task: Task) -> Text:  # noqa: ARG002 - there is one task
        """Bars a second."""
        pace = self._pace.per_second()
        return Text("" if pace is None else f"{pace:,.0f}/s", no_wrap=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
