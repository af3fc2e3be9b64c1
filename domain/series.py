"""What bars belong to, and what is known about each minute."""

from enum import StrEnum
from typing import NamedTuple

from domain.time_range import RangeSet, TimeRange
from domain.timeframe import Timeframe


class Series(NamedTuple):
    """One stream of bars: a symbol of a provider of a market."""

    market: str
    provider: str
    symbol: str

    def __str__(self) -> str:
        """`market/provider/symbol`, for people."""
        return f"{self.market}/{self.provider}/{self.symbol}"


class Verdict(StrEnum):
    """What is known about a minute (or bucket)."""

    DATA = "data"
    NO_TRADES = "no_trades"
    UNCONFIRMED_EMPTY = "unconfirmed_empty"
    CLOSED_SESSION = "closed_session"
    NOT_LISTED = "not_listed"
    FETCH_FAILED = "fetch_failed"
    NEVER_FETCHED = "never_fetched"

    @property
    def is_known(self) -> bool:
        """Whether the verdict is final: nothing is missing where it stands."""
        return self in _KNOWN


_KNOWN = frozenset({Verdict.DATA, Verdict.NO_TRADES, Verdict.CLOSED_SESSION, Verdict.NOT_LISTED})


class Gap(NamedTuple):
    """A sub-range that is not known in full, and why."""

    range: TimeRange
    verdict: Verdict


class BarQuery(NamedTuple):
    """The one way of asking for bars: whole buckets of a series' timeframe that start in `range`."""

    series: Series
    timeframe: Timeframe
    range: TimeRange

    @property
    def ranges(self) -> RangeSet:
        """The range as a set."""
        return RangeSet((self.range,))
