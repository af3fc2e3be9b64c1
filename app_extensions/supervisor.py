"""Owner of the background tasks: each has a name, its failures are logged, and all end within a deadline."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

log = logging.getLogger(__name__)


class Supervisor:
    """Runs chores again and again until it is closed."""

    def __init__(self, *, stop_timeout_s: float = 2) -> None:
        """Take how long a chore may take to end once it is told to."""
        self._stop_timeout_s = stop_timeout_s
        self._tasks: list[asyncio.Task[None]] = []

    def every(
        self, seconds: float, name: str, chore: Callable[[], Awaitable[object]], *, woken: asyncio.Event | None = None
    ) -> None:
        """Run the chore now and then `seconds` after it ended, for ever; one that fails is tried again likewise.

        `woken`: where this is set, the next run begins at once.
        """
        self._tasks.append(asyncio.create_task(self._repeat(seconds, name, chore, woken or asyncio.Event()), name=name))

    async def close(self) -> None:
        """Cancel every chore and wait for its end."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=self._stop_timeout_s)
            for task in stuck:
                log.error("%s did not end in time", task.get_name())

    @staticmethod
    async def _repeat(seconds: float, name: str, chore: Callable[[], Awaitable[object]], woken: asyncio.Event) -> None:
        while True:
            woken.clear()
            try:
                await chore()
            except Exception:
                log.exception("%s failed; it is tried again in %g s", name, seconds)
            with suppress(TimeoutError):
                await asyncio.wait_for(woken.wait(), seconds)
