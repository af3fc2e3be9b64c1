"""What a question comes to."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Protocol

import msgspec

#: Each figure is measured so often beside its control, but for a quick look.
ROUNDS = 3


class WrongResultError(RuntimeError):
    """What was measured did not do its work, so its speed says nothing."""


class Row(msgspec.Struct, frozen=True):
    """One figure: its values, one a round, beside those of its control.

    Attributes:
        name: what it is.
        unit: of its values.
        figure: one value a round.
        control: one value a round; empty where there is nothing to hold it against.
        target: what is to be reached, in words.
        decimals: worth showing.
    """

    name: str
    unit: str
    figure: list[float]
    control: list[float] = []
    target: str = ""
    decimals: int = 0

    @property
    def ratio(self) -> float | None:
        """The figure's median over its control's."""
        return median(self.figure) / median(self.control) if self.control and median(self.control) else None


class Spot(msgspec.Struct, frozen=True):
    """A function, and its shares of the time: by itself, and with all that it calls."""

    name: str
    own: float
    whole: float


class Profile(msgspec.Struct, frozen=True):
    """Where a process spent its time. `why_not`: it could not be looked at."""

    title: str
    spots: list[Spot] = []
    why_not: str | None = None


class Outcome(msgspec.Struct, frozen=True):
    """The answer to one question.

    Attributes:
        rows: its figures.
        notes: what else was seen, in sentences.
        versions: of the servers that it ran on.
        profiles: where the time went.
    """

    rows: list[Row]
    notes: list[str] = []
    versions: dict[str, str] = {}
    profiles: list[Profile] = []


class Task(msgspec.Struct, frozen=True):
    """What a question is given.

    Attributes:
        quick: a quick look will do.
        scratch: an empty folder that is removed afterwards.
        shared: a folder that all questions of a run use, for what takes long to make.
    """

    quick: bool
    scratch: Path
    shared: Path

    @property
    def rounds(self) -> int:
        """How often to measure."""
        return 1 if self.quick else ROUNDS


class Question(Protocol):
    """A module of `bench.questions`."""

    __doc__: str | None

    async def run(self, task: Task) -> Outcome:
        """Measure."""
        ...


Measure = Callable[[], Awaitable[float]]


async def side_by_side(rounds: int, control: Measure, figure: Measure) -> tuple[list[float], list[float]]:
    """Values of the control and of the figure, measured in turns: what slows the machine for a while slows both."""
    controls: list[float] = []
    figures: list[float] = []
    for _ in range(rounds):
        controls.append(await control())
        figures.append(await figure())
    return controls, figures


def spread(values: Sequence[float], decimals: int) -> str:
    """`min..max`."""
    return f"{min(values):,.{decimals}f}..{max(values):,.{decimals}f}"
