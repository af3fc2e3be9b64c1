"""Answers a second to 32 connections that ask for 1,000 bars at random, out of a year of four symbols in the cache.

No answer is asked for twice. The cache, in memory or in a Redis, is large enough for all of it, and was filled by
asking for every minute once. Control: a bare Quart route on the same web server, which answers the same requests with
as many bytes.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bench.history import SYMBOLS, YEAR_DAYS, days_of, history, pages_of_year, window_target, windows
from bench.outcome import Outcome, Profile, Row, Task
from bench.reading import Contest, Reader, check_kept, fetched, held, serving, typical_size
from bench.servers import Server
from config import BaseConfig
from domain.timeframe import DAY_MS, MINUTE_MS
from tests.services.redis_server import start_redis

_ROOM = {"CANDLERY_CACHE_BYTES": str(512 << 20)}
#: Targets of one load: more than can be answered in its time.
_TARGETS, _QUICK_TARGETS = 20_000, 6_000
_SAMPLE = 20


async def run(task: Task) -> Outcome:
    """Measure on the web server that is the default."""
    reader = Reader(task)
    rows: list[Row] = []
    profiles: list[Profile] = []
    async with history(task.shared, quick=task.quick) as url, _redis(task) as redis_url:
        for cache, settings in {"memory": _ROOM, "Redis": {"CANDLERY_REDIS_URL": redis_url}}.items():
            async with serving(task, url, settings) as server:
                row, found = await _from(cache, task, reader, server)
            rows.append(row)
            profiles += found
    return Outcome(rows, reader.notes(), profiles=profiles)


async def _from(cache: str, task: Task, reader: Reader, server: Server) -> tuple[Row, list[Profile]]:
    """Fill the cache, and ask."""
    days = min(days_of(quick=task.quick), YEAR_DAYS)
    count = _QUICK_TARGETS if task.quick else _TARGETS
    unasked = iter(windows(SYMBOLS, days * DAY_MS // MINUTE_MS, _SAMPLE + count * (task.rounds + 2), seed=2))

    def targets(wanted: int = count) -> list[str]:
        return [window_target(*next(unasked)) for _ in range(wanted)]

    for page in pages_of_year(days):
        await fetched(server, page)
    contest = Contest(
        f"1,000 bars at random from {cache}",
        BaseConfig.server,
        "quart",
        b"0" * await typical_size(server, targets(_SAMPLE)),
        targets=targets,
        check=lambda done: check_kept(done, source="cache"),
        wanted="ratio at least 0.5" if cache == "memory" else "",
        slack=0.1,
    )
    return await held(contest, server, reader, task)


@asynccontextmanager
async def _redis(task: Task) -> AsyncIterator[str]:
    """A Redis for the block; its URL."""
    server = start_redis(task.scratch)
    try:
        yield server.url
    finally:
        await asyncio.to_thread(server.stop)
