"""The contract of a source of bars."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, TypedDict

from domain.bar import Bar
from domain.packed import joined
from domain.series import Series
from domain.time_range import NOWHERE, RangeSet, TimeRange
from domain.timeframe import Timeframe
from plugins.base import Capabilities, PluginError
from services.bar_store import StoredSeries
from services.feed import Feed
from services.heavy import aside

_ANY_TIMEFRAME = Capabilities(timeframes=tuple(Timeframe), bars_per_call=1000)


class How(TypedDict, total=False):
    """How to go about a question; see `Ask`."""

    newest_first: bool
    stored_only: bool
    minutes_final: bool


@dataclass(frozen=True)
class Ask:
    """One question: whole buckets of a series' timeframe in a range, and who may be asked.

    Attributes:
        series: whose bars.
        stored: its number and revision in the store.
        timeframe: of the bars.
        range: bucket-aligned, and ended: nothing in it is still forming or settling.
        closed: buckets in which the venue is closed.
        feed: the provider; None: answer from what is stored.
        now_ms: when the question was put.
        newest_first: fetch from the end of the range on, since its newest bars matter most.
        stored_only: leave the provider alone; it has just failed.
        minutes_final: its minutes were closed by evidence, empty ones too: they count for more than what the provider
            says of coarser bars, which may be from before a late minute came in.
    """

    series: Series
    stored: StoredSeries
    timeframe: Timeframe
    range: TimeRange
    closed: RangeSet
    now_ms: int
    feed: Feed | None = None
    newest_first: bool = False
    stored_only: bool = False
    minutes_final: bool = False

    @property
    def capabilities(self) -> Capabilities:
        """Of the provider; without one, every stored timeframe is taken as its own."""
        return self.feed.capabilities if self.feed else _ANY_TIMEFRAME

    @property
    def native(self) -> Timeframe:
        """The timeframe that the provider is asked for: this one, or the coarsest of its own that makes it up."""
        return self.capabilities.native_for(self.timeframe) or self.timeframe

    @property
    def forgotten(self) -> RangeSet:
        """What lies beyond the provider's memory: it is of no use to ask for it."""
        reach = self.capabilities.history_bars
        return RangeSet() if reach is None else RangeSet.of(0, self.native.back(self.now_ms, reach - 1))

    @property
    def folds_minutes(self) -> bool:
        """Whether minutes may be folded into this timeframe."""
        limit = self.capabilities.folds_below
        return self.timeframe is not Timeframe.M1 and (limit is None or self.timeframe.nominal_ms < limit.nominal_ms)


class SourceAnswer(NamedTuple):
    """What a source has of what was wanted.

    Attributes:
        bars: ascending.
        known: buckets that it accounts for, so that no later source need be asked.
        settled: those of them whose verdict is final.
        lasting: those of the settled that may be cached: what makes one of them change gives the series a new
            revision. A closed hour that nobody was asked about is settled but not lasting: a bar may yet turn up in it.
    """

    bars: Sequence[Bar] = ()
    known: RangeSet = NOWHERE
    settled: RangeSet = NOWHERE
    lasting: RangeSet = NOWHERE

    @property
    def size(self) -> int:
        """Stretches that it is made of."""
        return len(self.known) + len(self.settled) + len(self.lasting)

    def plus(self, other: "SourceAnswer") -> "SourceAnswer":
        """Both answers in one; they are for disjoint buckets."""
        return SourceAnswer(
            joined(self.bars, other.bars),
            self.known | other.known,
            self.settled | other.settled,
            self.lasting | other.lasting,
        )


@dataclass
class Trace:
    """What happened on the way to an answer: which sources gave bars, and what the provider failed with."""

    sources: list[str] = field(default_factory=list)
    error: PluginError | None = None

    def gave(self, name: str) -> None:
        """A source contributed bars."""
        if name not in self.sources:
            self.sources.append(name)


class DataSource(ABC):
    """Answers what it can of a question; the rest goes to the next source."""

    #: As it stands in an answer's `sources`.
    name: ClassVar[str]

    @abstractmethod
    async def read(self, ask: Ask, wanted: RangeSet, trace: Trace) -> SourceAnswer:
        """The bars of `wanted` (a part of `ask.range`) that this source has; its `known` is a part of `wanted`."""


async def consult(sources: Iterable[DataSource], ask: Ask, wanted: RangeSet, trace: Trace) -> SourceAnswer:
    """Ask one source after the other for what the ones before did not know."""
    answer = SourceAnswer()
    for source in sources:
        missing = wanted - answer.known
        if not missing:
            break
        found = await source.read(ask, missing, trace)
        answer = await aside(answer.size + found.size, answer.plus, found)
    return answer
