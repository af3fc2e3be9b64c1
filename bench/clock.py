"""Clocks that run faster than the world's, the same in several processes."""

import os
import time
from collections.abc import Mapping
from typing import NamedTuple

from domain.clock import Clock, SystemClock
from domain.timeframe import DAY_MS, MINUTE_MS

_VARIABLE = "BENCH_CLOCK"


class SteppingClock(NamedTuple):
    """A minute every so often: at each step the next minute begins, and then time goes on as ever.

    So a minute closes at each step, and what happens within a second of that does so here, too.

    Attributes:
        began_s: by the machine's clock, when the first minute began.
        first_ms: that minute.
        step_s: of the machine's time a minute takes.
    """

    began_s: float
    first_ms: int
    step_s: float

    @classmethod
    def from_yesterday(cls, step_s: float) -> "SteppingClock":
        """One that begins now with a minute of yesterday: nothing that it says lies in the machine's own future."""
        return cls(time.time(), time.time_ns() // 1_000_000 // MINUTE_MS * MINUTE_MS - DAY_MS, step_s)

    def now_ms(self) -> int:
        """UTC epoch milliseconds."""
        steps, within_s = divmod(max(0.0, time.time() - self.began_s), self.step_s)
        return self.first_ms + int(steps) * MINUTE_MS + int(within_s * 1000)

    def environment(self) -> dict[str, str]:
        """What makes `clock_of_environment` return this clock in another process."""
        return {_VARIABLE: f"{self.began_s} {self.first_ms} {self.step_s}"}


def clock_of_environment(environ: Mapping[str, str] = os.environ) -> Clock:
    """The clock that whoever started this process wants it to have; by default the machine's."""
    words = environ.get(_VARIABLE, "").split()
    if not words:
        return SystemClock()
    return SteppingClock(float(words[0]), int(words[1]), float(words[2]))
