"""Listens in the database for changed series, and proves again and again that it hears."""

import asyncio
import logging
from time import monotonic
from typing import Any
from uuid import uuid4

from app_extensions.db_pool import DatabasePool
from domain.errors import DatabaseUnavailableError
from services.revisions import Revisions

log = logging.getLogger(__name__)

#: As the trigger in sql/timescale/migrations/0006_revisions.sql names it.
CHANNEL = "candlery_revisions"
#: A message to itself is sent so often, and must come back within so long.
BEAT_S = 1.0
PATIENCE_S = 2.0


class RevisionWatch:
    """Tells `Revisions` of every change, over a connection of its own.

    The messages to itself come the same way as the changes, and after those that were committed before them: when one
    comes back, none is missing. Behind a pooler that gives a connection away between statements none comes back, and
    nothing is remembered.
    """

    def __init__(self, pool: DatabasePool, revisions: Revisions) -> None:
        """Take whom to tell."""
        self._pool = pool
        self._revisions = revisions
        self._echo = asyncio.Event()
        self._me = uuid4().hex

    async def run(self) -> None:
        """Listen until the connection fails; to be called again then."""
        try:
            async with self._pool.lone_connection() as connection:
                connection.add_termination_listener(self._ended)
                await connection.add_listener(CHANNEL, self._hear)
                while True:
                    await self._beat(connection)
                    await asyncio.sleep(BEAT_S)
        except (DatabaseUnavailableError, TimeoutError) as exc:
            log.info("changes of series cannot be heard of, so answers are not kept: %s", exc or type(exc).__name__)
        finally:
            self._revisions.lost()

    async def _beat(self, connection: Any) -> None:
        self._echo.clear()
        sent_s = monotonic()
        async with asyncio.timeout(PATIENCE_S):
            await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, self._me)
            await self._echo.wait()
        self._revisions.vouch(sent_s + BEAT_S + 2 * PATIENCE_S)

    def _hear(self, _connection: Any, _pid: int, _channel: str, words: str) -> None:
        if words == self._me:
            self._echo.set()
            return
        series_id, _, revision = words.partition(" ")
        if revision:
            self._revisions.changed(int(series_id), int(revision))

    def _ended(self, _connection: Any) -> None:
        self._revisions.lost()
