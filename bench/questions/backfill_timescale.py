"""Minutes a second that a backfill job brings from a provider in memory into TimescaleDB, refresh included.

As `backfill_plain`, but into the TimescaleDB of the tests, a fresh one each time: PostgreSQL in WebAssembly, which
serves one session at a time, so that the pool has one connection. It is far slower than a native server. Control: the
same rows upserted by a bare asyncpg loop, 5,000 a statement, into a hypertable of the same shape there.
"""

from bench.outcome import Outcome, Row, Task, side_by_side
from bench.product import (
    backfilled,
    bare_upsert,
    candlery,
    check_stored,
    minutes_of,
    request_for,
    versions,
)
from bench.provider import installed
from tests.timescale.server import TimescaleServer, why_unavailable

_ONE_SESSION = {"CANDLERY_DB_POOL_MIN": "1", "CANDLERY_DB_POOL_MAX": "1", "CANDLERY_DB_TIMEOUT_S": "60"}


async def run(task: Task) -> Outcome:
    """Measure on a fresh server each round."""
    if (reason := why_unavailable()) is not None:
        return Outcome([], [f"Not measured: {reason}"])
    request = request_for(symbols=2, days=2) if task.quick else request_for(symbols=10, days=6)
    found: dict[str, str] = {}

    async def control() -> float:
        async with TimescaleServer() as server, candlery(server.dsn, _ONE_SESSION) as services:
            found.update(await versions(services))
            return await bare_upsert(services, request)

    async def figure() -> float:
        async with TimescaleServer() as server, candlery(server.dsn, _ONE_SESSION) as services:
            _, seconds = await backfilled(services, request)
            await check_stored(services, minutes_of(request))
            return minutes_of(request) / seconds

    with installed(task.scratch):
        controls, figures = await side_by_side(task.rounds, control, figure)
    row = Row("into TimescaleDB (WebAssembly)", "bars/s", figures, controls, target="at least 40,000")
    return Outcome(
        [row], [f"{minutes_of(request):,} bars a round."], {f"{name} (WebAssembly)": found[name] for name in found}
    )
