"""How many calls a provider may be asked, shared by everything that asks it with one credential."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from plugins.base import RateLimitPluginError

#: Below this a token counts as whole: a wait too short to move the clock would never end.
_ROUNDING = 1e-9


class RateBudget:
    """A token bucket, and the pause that a provider asked for.

    Urgent callers, for whom somebody waits, are served in the order they came; polite ones (backfills, second looks)
    take a token only while no urgent caller waits.
    """

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
        # Who waits, each by the event that tells it to look again.
        self._urgent: deque[asyncio.Event] = deque()
        self._polite: deque[asyncio.Event] = deque()
        #: Calls that had to wait, and the seconds that they waited, in all.
        self.waits = 0
        self.waited_s = 0.0

    @property
    def paused_s(self) -> float:
        """Seconds for which the provider asked to be left alone; zero when it did not."""
        return max(0.0, self._paused_until - self._monotonic())

    def pause(self, seconds: float) -> None:
        """Leave the provider alone for so long; a longer pause stands."""
        self._paused_until = max(self._paused_until, self._monotonic() + seconds)

    async def take(self, *, patience_s: float, polite: bool = False) -> None:
        """Wait for leave to make one call.

        Raises:
            RateLimitPluginError: the wait would be longer than `patience_s`; says how long.
        """
        line = self._polite if polite else self._urgent
        me = asyncio.Event()
        line.append(me)
        began, slept, took = self._monotonic(), False, False
        try:
            while (wait := self._wait_s(line, me)) > 0:
                if self._monotonic() + wait > began + patience_s:
                    raise RateLimitPluginError("The provider's rate limit is used up.", retry_after_s=wait)
                slept = True
                await _nap(me, wait)
            self._tokens -= 1
            took = True
        finally:
            line.remove(me)
            if not took:
                self._move_up()
            if slept:
                self.waits += 1
                self.waited_s += self._monotonic() - began

    def _move_up(self) -> None:
        """Somebody left without a token: those behind it need not wait as long as they thought."""
        for one in (*self._urgent, *self._polite):
            one.set()

    def _wait_s(self, line: deque[asyncio.Event], me: asyncio.Event) -> float:
        """How long until this caller's token is there, with those before it served; zero: it is."""
        now = self._monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        ahead = line.index(me) + (len(self._urgent) if line is self._polite else 0)
        missing = 1 + ahead - self._tokens
        wait = missing / self._rate if missing > _ROUNDING else 0.0
        return max(wait, self._paused_until - now, 0.0)


async def _nap(event: asyncio.Event, seconds: float) -> None:
    """Sleep until the time has passed or the event is set."""
    event.clear()
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
