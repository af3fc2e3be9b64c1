"""What Candlery's reading of the database is held against: bare asyncpg in a loop, `python -m bench.bare_reader FILE`.

It reads an `Errand` from stdin, fetches rows as many at once as it says, makes nothing of them but count them, and
writes a `Load` to the file.
"""

import asyncio
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import uvloop

from bench.load import Load, processor_s, summary

_QUERY = """
SELECT ts, open, high, low, close, volume FROM {table} WHERE series_id = $1 AND ts >= $2 AND ts < $3 ORDER BY ts
"""


class Errand(msgspec.Struct, frozen=True):
    """What to do.

    Attributes:
        dsn: of the database.
        table: of the bars.
        stretches: a file with JSON: series, start and end (epoch milliseconds) of each stretch, each fetched once.
        rows: in each.
        abreast: fetched at once, over connections of a pool of this size.
        seconds: that count.
        warm_up_s: before them.
    """

    dsn: str
    table: str
    stretches: str
    rows: int
    abreast: int
    pool_min: int
    pool_max: int
    seconds: float
    warm_up_s: float


class Loop:
    """Stretches that are fetched one after the other, by several at once."""

    def __init__(self, errand: Errand, pool: Any) -> None:
        """Nothing is fetched yet."""
        found = msgspec.json.decode(Path(errand.stretches).read_bytes(), type=list[tuple[int, int, int]])
        self._stretches = iter([(series_id, _instant(start), _instant(end)) for series_id, start, end in found])
        self._query = _QUERY.format(table=errand.table)
        self._errand = errand
        self._pool = pool
        self.times_s: list[float] = []
        self.faults: list[str] = []
        self._counts_from_s = time.perf_counter() + errand.warm_up_s
        self._ends_s = self._counts_from_s + errand.seconds

    async def work(self) -> None:
        """Fetch until the time is over."""
        while (asked_s := time.perf_counter()) < self._ends_s and not self.faults:
            stretch = next(self._stretches, None)
            if stretch is None:
                self.faults.append("there were not enough stretches")
                return
            async with self._pool.acquire() as db:
                rows = await db.fetch(self._query, *stretch)
            if len(rows) != self._errand.rows:
                self.faults.append(f"{len(rows)} rows where there are {self._errand.rows}")
            done_s = time.perf_counter()
            if self._counts_from_s <= done_s <= self._ends_s:
                self.times_s.append(done_s - asked_s)


async def fetch(errand: Errand) -> Load:
    """Go through with it."""
    sizes = {"min_size": errand.pool_min, "max_size": errand.pool_max}
    async with asyncpg.create_pool(errand.dsn, **sizes, reset=_no_reset) as pool:
        loop = Loop(errand, pool)
        began_s, busy_s = time.perf_counter(), processor_s()
        await asyncio.gather(*(loop.work() for _ in range(errand.abreast)))
        busy = (processor_s() - busy_s) / (time.perf_counter() - began_s)
    return summary(loop.times_s, errand.seconds, busy, [], loop.faults)


async def _no_reset(_connection: Any) -> None:
    """Nothing was set."""


def _instant(ts_ms: int) -> datetime:
    return datetime.fromtimestamp(ts_ms / 1000, UTC)


if __name__ == "__main__":
    done = uvloop.run(fetch(msgspec.json.decode(sys.stdin.buffer.read(), type=Errand)))
    Path(sys.argv[1]).write_bytes(msgspec.json.encode(done))
