"""The series whose upstream this process owns, each with its worker."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from services.live import FeedState
from services.live_store import FeedClaim

log = logging.getLogger(__name__)

#: How long workers may take to let go of their upstreams.
STOP_S = 2.0


class Follower(Protocol):
    """Follows one series; see `services.subscription_worker.SubscriptionWorker`."""

    @property
    def claim(self) -> FeedClaim:
        """What it follows."""
        ...

    @property
    def state(self) -> FeedState:
        """How its upstream fares."""
        ...

    @property
    def detail(self) -> str | None:
        """Why, in words."""
        ...

    @property
    def settled_ms(self) -> int | None:
        """Every minute before is closed; None: it has not begun."""
        ...

    @property
    def last_heard_ms(self) -> int | None:
        """When anything was heard last, by this process's clock."""
        ...

    @property
    def reconnects(self) -> int:
        """How often its upstream was connected again."""
        ...

    @property
    def heals(self) -> int:
        """How often something missed was fetched."""
        ...

    async def run(self) -> None:
        """Follow until cancelled, or until the lease is another's."""
        ...


class Followers:
    """Starts a worker for each claim, and ends it with the lease."""

    def __init__(self, make: Callable[[FeedClaim], Follower]) -> None:
        """Take what makes a worker for a claim."""
        self._make = make
        self._working: dict[int, tuple[Follower, asyncio.Task[None]]] = {}
        #: Of workers that are gone.
        self._reconnects = self._heals = 0

    @property
    def owned(self) -> list[int]:
        """The series that are followed."""
        return list(self._working)

    @property
    def working(self) -> list[Follower]:
        """The workers."""
        return [worker for worker, _ in self._working.values()]

    @property
    def reconnects(self) -> int:
        """How often upstreams were connected again."""
        return self._reconnects + sum(worker.reconnects for worker, _ in self._working.values())

    @property
    def heals(self) -> int:
        """How often something missed was fetched."""
        return self._heals + sum(worker.heals for worker, _ in self._working.values())

    def start(self, claim: FeedClaim) -> None:
        """Follow a series that was claimed."""
        worker = self._make(claim)
        task = asyncio.create_task(self._run(claim, worker), name=f"follow {claim.series}")
        self._working[claim.series_id] = (worker, task)

    async def stop(self, series_ids: Iterable[int]) -> None:
        """Follow these no longer, and wait until their upstreams are let go."""
        gone = [self._working.pop(series_id) for series_id in series_ids if series_id in self._working]
        for worker, task in gone:
            self._reconnects += worker.reconnects
            self._heals += worker.heals
            task.cancel()
        if gone:
            _, stuck = await asyncio.wait([task for _, task in gone], timeout=STOP_S)
            for task in stuck:
                log.error("%s did not end in time", task.get_name())

    async def _run(self, claim: FeedClaim, worker: Follower) -> None:
        try:
            await worker.run()
        except Exception:
            log.exception("%s is followed no longer", claim.series)
        working = self._working.get(claim.series_id)
        if working is not None and working[0] is worker:
            del self._working[claim.series_id]
            self._reconnects += worker.reconnects
            self._heals += worker.heals
