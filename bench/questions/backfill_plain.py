"""Minutes a second that a backfill job brings from a provider in memory into PostgreSQL.

The provider answers at once, in pages of 1,000 bars. The job goes through the manager and its workers in one process,
with ledger and roll-ups, from asking for it until it is done. Control: the same rows upserted by a bare asyncpg loop,
5,000 a statement, into a table of the same shape on the same server.
"""

from itertools import count

from bench.outcome import Outcome, Row, Task, side_by_side
from bench.product import (
    backfilled,
    bare_upsert,
    candlery,
    check_stored,
    embedded_server,
    fresh_database,
    minutes_of,
    request_for,
    versions,
)
from bench.provider import installed


async def run(task: Task) -> Outcome:
    """Measure on a fresh database each round."""
    request = request_for(symbols=2, days=2) if task.quick else request_for(symbols=10, days=35)
    number = count()
    found: dict[str, str] = {}
    with installed(task.scratch):
        async with embedded_server(task.scratch) as server_url:

            async def control() -> float:
                async with fresh_database(server_url, f"control_{next(number)}") as url, candlery(url) as services:
                    found.update(await versions(services))
                    return await bare_upsert(services, request)

            async def figure() -> float:
                async with fresh_database(server_url, f"figure_{next(number)}") as url, candlery(url) as services:
                    _, seconds = await backfilled(services, request)
                    await check_stored(services, minutes_of(request))
                    return minutes_of(request) / seconds

            controls, figures = await side_by_side(task.rounds, control, figure)
    row = Row("into plain PostgreSQL", "bars/s", figures, controls, target="at least 60,000")
    return Outcome([row], [f"{minutes_of(request):,} bars a round."], found)
