"""What bars belong to, and what is known about each minute."""

from enum import StrEnum
from typing import NamedTuple

from domain.time_range import TimeRange


class Series(NamedTuple):
    """One stream of bars: a symbol of a provider of a market."""

    market: str
    provider: str
    symbol: str

    def __str__(self) -> str:
        """`market/provider/symbol`, for people."""
        return f"{self.market}/{self.provider}/{self.symbol}"


class WatchedSeries(NamedTuple):
    """A series that is kept complete from a time on, in UTC epoch milliseconds."""

    series: Series
    start_ms: int


class Verdict(StrEnum):
    """What is known about a minute (or bucket)."""

    DATA = "data"
    NO_TRADES = "no_trades"
    UNCONFIRMED_EMPTY = "unconfirmed_empty"
    CLOSED_SESSION = "closed_session"
    NOT_LISTED = "not_listed"
    FETCH_FAILED = "fetch_failed"
    NEVER_FETCHED = "never_fetched"


class Gap(NamedTuple):
    """A sub-range that is not known in full, and why."""

    range: TimeRange
    verdict: Verdict
