"""How many calls a provider may be asked, shared by everything that asks it with one credential."""

import asyncio
import time
from collections.abc import Callable

from plugins.base import RateLimitPluginError

#: Below this a token counts as whole: a wait too short to move the clock would never end.
_ROUNDING = 1e-9


class RateBudget:
    """A token bucket, and the pause that a provider asked for."""

    def __init__(
        self, calls_per_second: float, *, burst: float | None = None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Allow `calls_per_second` on average and `burst` at once (a second's worth, and at least one)."""
        self._rate = calls_per_second
        self._burst = max(1.0, burst if burst is not None else calls_per_second)
        self._monotonic = monotonic
        self._tokens = self._burst
        self._at = monotonic()
        self._paused_until = 0.0
        self._turn = asyncio.Lock()

    @property
    def paused_s(self) -> float:
        """Seconds for which the provider asked to be left alone; zero when it did not."""
        return max(0.0, self._paused_until - self._monotonic())

    def pause(self, seconds: float) -> None:
        """Leave the provider alone for so long; a longer pause stands."""
        self._paused_until = max(self._paused_until, self._monotonic() + seconds)

    async def take(self, *, patience_s: float) -> None:
        """Wait for leave to make one call.

        Raises:
            RateLimitPluginError: the wait would be longer than `patience_s`; says how long.
        """
        deadline = self._monotonic() + patience_s
        async with self._turn:
            while (wait := self._wait_s()) > 0:
                if self._monotonic() + wait > deadline:
                    raise RateLimitPluginError("The provider's rate limit is used up.", retry_after_s=wait)
                await asyncio.sleep(wait)
            self._tokens -= 1

    def _wait_s(self) -> float:
        now = self._monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._paused_until > now:
            return self._paused_until - now
        missing = 1 - self._tokens
        return missing / self._rate if missing > _ROUNDING else 0.0
