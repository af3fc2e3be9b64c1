"""Forgetting old minutes: bars, aggregates and coverage go together, so that nothing forgotten looks like no trade."""

from domain.clock import Clock
from domain.timeframe import DAY_MS, Timeframe
from services.database import Database
from services.rollups import Rollups
from services.sql import load_queries


def kept_from_ms(now_ms: int, days: int) -> int:
    """From when on minutes are kept; 0 days keep all."""
    return Timeframe.D1.floor(now_ms - days * DAY_MS) if days else 0


class Retention:
    """Drops minutes older than so many days; the provider's own bars of other timeframes stay."""

    def __init__(self, database: Database, rollups: Rollups, clock: Clock, *, days: int) -> None:
        """Take how many days of minutes are kept; 0 keeps all."""
        self._database = database
        self._rollups = rollups
        self._clock = clock
        self._days = days
        self._sql = load_queries("retention")

    async def run(self) -> int:
        """Forget what is too old, all or nothing; return how many minutes with a bar went."""
        if self._days == 0:
            return 0
        cutoff = kept_from_ms(self._clock.now_ms(), self._days)
        async with self._database.transaction() as db:
            await db.execute(self._sql["lock_series"])
            for query in ("forget_coverage", "forget_checks", "clip_checks"):
                await db.execute(self._sql[query], cutoff)
            gone = await db.fetchval(self._sql["delete_minutes"], cutoff)
            await self._rollups.forgotten(db, cutoff)
        return int(gone)
