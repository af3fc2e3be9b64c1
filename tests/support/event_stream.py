"""Server-sent events as a client reads them."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from quart.typing import TestClientProtocol, TestHTTPConnectionProtocol


class EventStream:
    """The events of one connection."""

    def __init__(self, connection: TestHTTPConnectionProtocol, timeout_s: float) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._rest = b""

    async def block(self) -> list[str]:
        """The lines of the next block."""
        async with asyncio.timeout(self._timeout_s):
            while b"\n\n" not in self._rest:
                self._rest += await self._connection.receive()
        text, _, self._rest = self._rest.partition(b"\n\n")
        return text.decode().split("\n")

    async def event(self) -> tuple[str, int, dict[str, Any]]:
        """The next event: its name, its number and its data."""
        fields: dict[str, str] = {}
        while "event" not in fields:
            fields = dict(line.split(": ", 1) for line in await self.block() if not line.startswith(":"))
        return fields["event"], int(fields["id"]), json.loads(fields["data"])

    async def until(self, name: str) -> list[tuple[str, int, dict[str, Any]]]:
        """Every event up to the next of this name."""
        found = [await self.event()]
        while found[-1][0] != name:
            found.append(await self.event())
        return found

    @property
    def headers(self) -> Any:
        """Of the answer, once something came."""
        return self._connection.headers


@asynccontextmanager
async def follow(client: TestClientProtocol, url: str, *, timeout_s: float = 30) -> AsyncIterator[EventStream]:
    """The events at an address; the client goes away at the end of the block. Each must come in time."""
    async with client.request(url) as connection:
        await connection.send_complete()
        yield EventStream(connection, timeout_s)
        await connection.disconnect()
