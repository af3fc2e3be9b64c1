"""Kilobytes of memory that an idle WebSocket client takes, of 5,000 that have subscribed to a series.

Resident memory of the server's process with the clients, less that with one client, a client. Control: the bare ASGI
application on Hypercorn, whose clients subscribe to nothing.
"""

import asyncio
from pathlib import Path

from bench.flock import flock
from bench.outcome import Outcome, Row, Task
from bench.stream_server import HELLO, PATH, allow_many_files, running

_CLIENTS = 5_000


async def run(task: Task) -> Outcome:
    """Measure with fresh servers and clients each round."""
    allow_many_files()
    clients = 500 if task.quick else _CLIENTS
    rounds = iter(range(1_000))

    async def each(kind: str) -> float:
        return await _each(kind, task.scratch / str(next(rounds)), clients)

    # Both at once: they take no memory from one another.
    pairs = [await asyncio.gather(each("bare"), each("candlery")) for _ in range(task.rounds)]
    controls, figures = [bare for bare, _ in pairs], [candlery for _, candlery in pairs]
    return Outcome([Row(f"an idle client of {clients:,}", "KB", figures, controls, "under 40", decimals=1)])


async def _each(kind: str, scratch: Path, clients: int) -> float:
    hello = HELLO if kind == "candlery" else None
    async with (
        running(kind, scratch) as server,
        flock(server.address, PATH, 1, hello=hello, wanted=_nothing) as first,
    ):
        if hello is not None:
            await first.until_live()
        before = (await server.order()).resident
        async with flock(server.address, PATH, clients, hello=hello, wanted=_nothing) as crowd:
            if hello is not None:
                await crowd.until_live()
            return ((await server.order()).resident - before) / clients / 1024


def _nothing(_text: bytes) -> bool:
    """No frame counts."""
    return False
