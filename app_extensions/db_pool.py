"""The pool of PostgreSQL connections. Instants cross it as UTC epoch milliseconds."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from domain.errors import DatabaseUnavailableError

#: PostgreSQL counts microseconds from 2000-01-01.
_EPOCH_US = 946_684_800_000_000

#: What asyncpg raises when the server is gone, going, full, or not there yet.
_UNREACHABLE = (
    OSError,
    asyncio.TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    # A query on a connection that the server has just cut.
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
)


def _encode_ms(ts_ms: int) -> tuple[int]:
    return (ts_ms * 1000 - _EPOCH_US,)


def _decode_ms(value: tuple[int]) -> int:
    return (value[0] + _EPOCH_US) // 1000


async def prepare_connection(connection: Any) -> None:
    """Make instants (alone, in arrays and in ranges) come and go as UTC epoch milliseconds."""
    await connection.set_type_codec(
        "timestamptz", schema="pg_catalog", format="tuple", encoder=_encode_ms, decoder=_decode_ms
    )


class DatabasePool:
    """Connections to one database. The constructor stores; `open()` connects; `close()` releases."""

    def __init__(
        self,
        dsn: str,
        *,
        min_size: int = 1,
        max_size: int = 10,
        timeout_s: float = 30,
        connect_timeout_s: float = 5,
        idle_in_transaction_s: float = 20,
    ) -> None:
        """Take where to connect; `timeout_s` bounds each command, `connect_timeout_s` each wait for a connection.

        `idle_in_transaction_s`: a transaction in which nothing happens for so long is ended by the server, since its
        process is frozen, and others may wait for its locks.
        """
        self._idle_in_transaction_s = idle_in_transaction_s
        self._dsn = dsn
        self._min_size = min_size
        self._max_size = max_size
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._pool: Any = None
        #: Server processes of connections whose last use ended in an error, and that may hold something of it.
        self._soiled: set[int] = set()

    async def open(self) -> None:
        """Connect."""
        try:
            self._pool = await asyncpg.create_pool(
                self._dsn,
                min_size=self._min_size,
                max_size=self._max_size,
                command_timeout=self._timeout_s,
                timeout=self._connect_timeout_s,
                init=prepare_connection,
                reset=self._reset,
                server_settings={
                    "application_name": "candlery",
                    "timezone": "UTC",
                    "idle_in_transaction_session_timeout": f"{int(self._idle_in_transaction_s * 1000)}ms",
                },
            )
        except (*_UNREACHABLE, asyncpg.PostgresError) as exc:
            raise DatabaseUnavailableError(f"The database cannot be reached: {exc or type(exc).__name__}") from exc

    async def close(self, *, timeout_s: float = 2) -> None:
        """Give every connection back, or cut those that do not come back in time."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            await asyncio.wait_for(pool.close(), timeout_s)
        except TimeoutError:
            pool.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """A connection outside any transaction."""
        if self._pool is None:
            raise DatabaseUnavailableError("The database is not open.")
        try:
            async with self._pool.acquire(timeout=self._connect_timeout_s) as connection:
                try:
                    yield connection
                except BaseException:
                    if not connection.is_closed():
                        self._soiled.add(connection.get_server_pid())
                    raise
        except _UNREACHABLE as exc:
            raise DatabaseUnavailableError(f"The database cannot be reached: {exc or type(exc).__name__}") from exc

    @property
    def is_shareable(self) -> bool:
        """Whether a connection besides the pool's own may be made."""
        return self._max_size > 1

    @asynccontextmanager
    async def lone_connection(self) -> AsyncIterator[Any]:
        """A connection that is none of the pool's, for as long as the block lasts."""
        try:
            connection = await asyncpg.connect(
                self._dsn,
                timeout=self._connect_timeout_s,
                command_timeout=self._timeout_s,
                server_settings={"application_name": "candlery"},
            )
            try:
                yield connection
            finally:
                connection.terminate()
        except _UNREACHABLE as exc:
            raise DatabaseUnavailableError(f"The database cannot be reached: {exc or type(exc).__name__}") from exc

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """A connection in a transaction that commits at the end of the block, or rolls back on an error."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def _reset(self, connection: Any) -> None:
        """Free what an error may have left locked or set. After a use that went well a round trip is saved."""
        pid = connection.get_server_pid()
        if pid in self._soiled:
            self._soiled.discard(pid)
            await connection.execute(connection.get_reset_query())

    @property
    def usage(self) -> tuple[int, int]:
        """Connections in use, and connections open."""
        if self._pool is None:
            return 0, 0
        size = self._pool.get_size()
        return size - self._pool.get_idle_size(), size

    async def ping(self) -> None:
        """Raise `DatabaseUnavailableError` where no query can be answered."""
        async with self.connection() as connection:
            await connection.fetchval("SELECT 1")
