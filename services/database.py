"""The port through which services reach PostgreSQL. Instants go in and come out as UTC epoch milliseconds."""

from collections.abc import AsyncIterable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from domain.errors import CandleryError


class FencedError(CandleryError):
    """What this was to be written under a claim of was given to another meanwhile."""


class Connection(Protocol):
    """What is used of an asyncpg connection."""

    async def fetch(self, query: str, *args: object) -> Sequence[Any]:
        """All rows."""
        ...

    async def fetchrow(self, query: str, *args: object) -> Any:
        """The first row, or None."""
        ...

    async def fetchval(self, query: str, *args: object) -> Any:
        """The first column of the first row, or None."""
        ...

    async def execute(self, query: str, *args: object) -> str:
        """Run a command."""
        ...

    async def copy_records_to_table(
        self, table_name: str, *, records: Iterable[Sequence[object]], columns: Sequence[str]
    ) -> str:
        """Append rows to a table by COPY."""
        ...

    async def copy_to_table(
        self,
        table_name: str,
        *,
        source: AsyncIterable[bytes],
        columns: Sequence[str],
        format: str,  # noqa: A002 - as the driver has it
    ) -> str:
        """Append rows to a table by COPY that are in one of its formats already."""
        ...


class Database(Protocol):
    """A pool of connections; what it raises when the server is out of reach is `DatabaseUnavailableError`."""

    def connection(self) -> AbstractAsyncContextManager[Connection]:
        """A connection outside any transaction."""
        ...

    def transaction(self) -> AbstractAsyncContextManager[Connection]:
        """A connection in a transaction that commits at the end of the block, or rolls back on an error."""
        ...
