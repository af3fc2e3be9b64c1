"""Trading sessions in the database, so that the calendar library is asked once and not by the server's process."""

from collections.abc import Sequence

from services.database import Database
from services.sessions import Session, StoredSessions
from services.sql import load_queries


class StoredSessionRepository:
    """Keeps the sessions of each calendar in tables."""

    def __init__(self, database: Database) -> None:
        """Take the database; do no I/O."""
        self._database = database
        self._sql = load_queries("sessions")

    async def load(self, calendar: str) -> StoredSessions | None:
        """The sessions of a calendar and the bounds within which it is known; None where it never was stored."""
        async with self._database.connection() as db:
            bounds = await db.fetchrow(self._sql["bounds"], calendar)
            if bounds is None:
                return None
            rows = await db.fetch(self._sql["read"], calendar)
        return StoredSessions(tuple(Session(*row) for row in rows), bounds["starts"], bounds["ends"])

    async def save(self, calendar: str, sessions: Sequence[Session], first_ms: int, last_ms: int) -> None:
        """Put the calendar in the place of what was stored of it."""
        columns = [list(column) for column in zip(*sessions, strict=True)] or [[] for _ in Session._fields]
        async with self._database.transaction() as db:
            await db.execute(self._sql["put_calendar"], calendar, first_ms, last_ms)
            await db.execute(self._sql["clear"], calendar)
            await db.execute(self._sql["put"], calendar, *columns)
