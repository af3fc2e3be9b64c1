"""A provider as the services use it: one plugin instance behind its rate budget, with retries."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
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
    """How patient a call is: tries, seconds over all tries, and seconds to wait for a place and the rate budget.

    The `polite_` ones are for calls that nobody waits for. `concurrency` calls are under way at once at most, polite
    ones in half of the places.
    """

    attempts: int = 4
    total_s: float = 20.0
    patience_s: float = 5.0
    polite_total_s: float = 120.0
    polite_patience_s: float = 60.0
    concurrency: int = 8


class CrowdedError(RateLimitPluginError):
    """No place for the call came free in time. The caller has waited, so this is not tried again."""

    retryable = False


class Feed:
    """Calls to one provider with one credential; raises `PluginError` and its kin only."""

    def __init__(self, plugin: MarketPlugin, budget: RateBudget, limits: FeedLimits) -> None:
        """Take an open plugin and what bounds the calls to it."""
        self.plugin = plugin
        self.budget = budget
        self._limits = limits
        self._places = asyncio.Semaphore(limits.concurrency)
        self._polite_places = asyncio.Semaphore(max(1, limits.concurrency // 2))
        self._failing = False
        #: Calls made, also for lists of symbols; how often one was made again; and what was given up in the end.
        self.calls = self.retries = self.failures = 0
        #: Told when a call succeeds after one that failed for a reason that may pass; a rate limit is no outage.
        self.recovered: Callable[[], None] | None = None

    @property
    def capabilities(self) -> Capabilities:
        """What the provider can do."""
        return self.plugin.capabilities

    async def page(
        self,
        symbol: str,
        timeframe: Timeframe,
        wanted: TimeRange,
        *,
        polite: bool = False,
        check: Callable[[], None] | None = None,
    ) -> Page:
        """One page of bars, asked for again after passing faults; `polite`: nobody waits for it.

        `check` is called before each try; what it raises ends the call.
        """

        def call() -> Awaitable[Page]:
            if check is not None:
                check()
            return self.plugin.fetch_page(symbol, timeframe, wanted)

        return await self._retrying(call, polite=polite)

    async def symbols(self) -> Mapping[str, SymbolInfo]:
        """Every symbol of the provider, asked for again after passing faults."""
        return await self._retrying(self.plugin.fetch_symbols, polite=False)

    async def _retrying(self, call: Callable[[], Awaitable[T]], *, polite: bool) -> T:
        limits = self._limits
        patience_s = limits.polite_patience_s if polite else limits.patience_s
        total_s = limits.polite_total_s if polite else limits.total_s
        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda exc: _worth_another_try(exc, patience_s)),
            stop=stop_after_attempt(limits.attempts) | stop_after_delay(total_s),
            wait=_wait_s,
            before_sleep=self._again,
            reraise=True,
        )
        try:
            return await retrying(self._once, call, patience_s=patience_s, polite=polite)
        except PluginError:
            self.failures += 1
            raise

    async def _once(self, call: Callable[[], Awaitable[T]], *, patience_s: float, polite: bool) -> T:
        """Make the call when there is a place and a token for it; between tries it keeps neither."""
        began = time.monotonic()
        async with self._place(patience_s, polite=polite):
            await self.budget.take(patience_s=patience_s - (time.monotonic() - began), polite=polite)
            trying = call()
            self.calls += 1
            try:
                answer = await trying
            except RateLimitPluginError as exc:
                self.budget.pause(exc.retry_after_s or DEFAULT_PAUSE_S)
                raise
            except PluginError as exc:
                self._failing = self._failing or exc.retryable
                raise
        self._succeeded()
        return answer

    @asynccontextmanager
    async def _place(self, patience_s: float, *, polite: bool) -> AsyncIterator[None]:
        """One of the places for calls under way."""
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(patience_s):
                    for places in (self._polite_places, self._places) if polite else (self._places,):
                        await held.enter_async_context(places)
            except TimeoutError:
                raise CrowdedError("Too many calls to the provider are under way.", retry_after_s=patience_s) from None
            yield

    def _succeeded(self) -> None:
        recovered, self._failing = self._failing, False
        if recovered and self.recovered is not None:
            self.recovered()

    def _again(self, state: RetryCallState) -> None:
        self.retries += 1
        exc = state.outcome.exception() if state.outcome else None
        provider = self.plugin.config.provider
        log.info("%s: call failed (try %d), trying again: %s", provider, state.attempt_number, exc)


def _worth_another_try(exc: BaseException, patience_s: float) -> bool:
    if not isinstance(exc, PluginError) or not exc.retryable:
        return False
    return (exc.retry_after_s or 0) <= patience_s


def _wait_s(state: RetryCallState) -> float:
    """What the provider asked for, or growing random pauses."""
    exc = state.outcome.exception() if state.outcome else None
    if isinstance(exc, PluginError) and exc.retry_after_s is not None:
        return exc.retry_after_s
    return _BACKOFF(state)
