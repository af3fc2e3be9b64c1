"""A provider as the services use it: one plugin instance behind its rate budget, with retries."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, stop_after_delay
from tenacity.wait import wait_random_exponential

from domain.time_range import TimeRange
from domain.timeframe import Timeframe
from plugins.base import Capabilities, MarketPlugin, Page, PluginError, RateLimitPluginError, SymbolInfo
from services.rate_budget import RateBudget

log = logging.getLogger(__name__)
T = TypeVar("T")

_BACKOFF = wait_random_exponential(multiplier=0.2, max=3)
#: Without a word from the provider on how long to wait after "too many calls".
DEFAULT_PAUSE_S = 1.0


@dataclass(frozen=True)
class FeedLimits:
    """How patient a call is: tries, seconds over all tries, and seconds to wait for the rate budget."""

    attempts: int = 4
    total_s: float = 20.0
    patience_s: float = 5.0


class Feed:
    """Calls to one provider with one credential; raises `PluginError` and its kin only."""

    def __init__(self, plugin: MarketPlugin, budget: RateBudget, limits: FeedLimits) -> None:
        """Take an open plugin and what bounds the calls to it."""
        self.plugin = plugin
        self.budget = budget
        self._limits = limits
        #: Calls made, also for lists of symbols.
        self.calls = 0

    @property
    def capabilities(self) -> Capabilities:
        """What the provider can do."""
        return self.plugin.capabilities

    async def page(self, symbol: str, timeframe: Timeframe, wanted: TimeRange, *, polite: bool = False) -> Page:  # noqa: ARG002
        """One page of bars, asked for again after passing faults."""
        return await self._retrying(lambda: self.plugin.fetch_page(symbol, timeframe, wanted))

    async def symbols(self) -> Mapping[str, SymbolInfo]:
        """Every symbol of the provider, asked for again after passing faults."""
        return await self._retrying(self.plugin.fetch_symbols)

    async def _retrying(self, call: Callable[[], Awaitable[T]]) -> T:
        retrying = AsyncRetrying(
            retry=retry_if_exception(self._worth_another_try),
            stop=stop_after_attempt(self._limits.attempts) | stop_after_delay(self._limits.total_s),
            wait=_wait_s,
            before_sleep=_log_retry,
            reraise=True,
        )
        return await retrying(self._within_budget, call)

    def _worth_another_try(self, exc: BaseException) -> bool:
        if not isinstance(exc, PluginError) or not exc.retryable:
            return False
        return (exc.retry_after_s or 0) <= self._limits.patience_s

    async def _within_budget(self, call: Callable[[], Awaitable[T]]) -> T:
        await self.budget.take(patience_s=self._limits.patience_s)
        self.calls += 1
        try:
            return await call()
        except RateLimitPluginError as exc:
            self.budget.pause(exc.retry_after_s or DEFAULT_PAUSE_S)
            raise


def _wait_s(state: RetryCallState) -> float:
    """What the provider asked for, or growing random pauses."""
    exc = state.outcome.exception() if state.outcome else None
    if isinstance(exc, PluginError) and exc.retry_after_s is not None:
        return exc.retry_after_s
    return _BACKOFF(state)


def _log_retry(state: RetryCallState) -> None:
    exc = state.outcome.exception() if state.outcome else None
    log.info("provider call failed (try %d), trying again: %s", state.attempt_number, exc)
