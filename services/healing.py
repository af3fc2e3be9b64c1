"""Keeping watched series complete: holes are found on a schedule, at start, and after an outage, and become jobs."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

from domain.errors import CandleryError, ConflictError, DatabaseUnavailableError
from domain.series import WatchedSeries
from services.backfills import Job, JobError

log = logging.getLogger(__name__)

#: Between two looks at least, however often something recovers.
LEAST_PAUSE_S = 5.0


class Backfills(Protocol):
    """The part of the backfill manager that heals."""

    async def heal(
        self, market: str, provider: str, starts: Mapping[str, int]
    ) -> tuple[Job | None, Sequence[JobError]]:
        """Make a job of all that is missing; see `BackfillManager.heal`."""
        ...


class Healer:
    """Makes at most one job at a time for each provider, and none where nothing is missing."""

    def __init__(
        self, backfills: Backfills, watched: Sequence[WatchedSeries], *, least_pause_s: float = LEAST_PAUSE_S
    ) -> None:
        """Take what is to be kept complete."""
        self._backfills = backfills
        self._least_pause_s = least_pause_s
        self._starts: dict[tuple[str, str], dict[str, int]] = {}
        for one in watched:
            market, provider, symbol = one.series
            self._starts.setdefault((market, provider), {})[symbol] = one.start_ms
        self._told: dict[str, str] = {}
        self._may_run_at = 0.0
        #: Set when there may be something to heal before the next look is due.
        self.woken = asyncio.Event()

    def wake(self) -> None:
        """Something recovered: look soon."""
        if self._starts:
            self.woken.set()

    async def run(self) -> int:
        """Look at every watched series; how many jobs were made. What fails is looked at again the next time."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._may_run_at - loop.time())
        made = 0
        for market, provider in self._starts:
            made += await self._heal(market, provider)
        self._may_run_at = loop.time() + self._least_pause_s
        return made

    async def _heal(self, market: str, provider: str) -> bool:
        name = f"{market}/{provider}"
        starts = self._starts[market, provider]
        try:
            job, errors = await self._backfills.heal(market, provider, starts)
        except ConflictError:
            return False
        except DatabaseUnavailableError as exc:
            self._tell(name, exc.detail)
            asyncio.get_running_loop().call_later(self._least_pause_s, self.wake)
            return False
        except CandleryError as exc:
            self._tell(name, exc.detail)
            return False
        self._tell(name, None)
        bad = {error.symbol: error.detail for error in errors}
        for symbol in starts:
            self._tell(f"{name}/{symbol}", bad.get(symbol))
        if job is not None:
            log.info("backfill %s heals %s: %d chunks", job.id, name, job.progress.chunks_total)
        return job is not None

    def _tell(self, name: str, problem: str | None) -> None:
        """Log a problem when it begins or changes, and its end."""
        before = self._told.pop(name, None)
        if problem is not None:
            self._told[name] = problem
        if problem != before:
            log.warning("watched %s: %s", name, problem or "all is well again")
