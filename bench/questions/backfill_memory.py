"""How much the process grows while a backfill job brings a year of minutes of 10 symbols into PostgreSQL.

Resident memory of the process that works the job, without the database's, looked at ten times a second. The first tenth
of the time is the warm-up. The middle values of the second tenth, of the last one and of two between them are
compared: three steps, one after the other in the same job. There is no control: what is wanted is no growth.
"""

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from bench.machine import resident_mb
from bench.outcome import Outcome, Row, Task
from bench.product import (
    backfilled,
    candlery,
    check_stored,
    embedded_server,
    minutes_of,
    request_for,
    versions,
)
from bench.provider import installed

_LOOK_S = 0.1
#: Where in the job, in tenths, its memory is compared: from here to a tenth later.
_TENTHS = (1.0, 3.7, 6.3, 9.0)


async def run(task: Task) -> Outcome:
    """Look while one job runs."""
    if resident_mb() is None:
        return Outcome([], ["Not measured: this system does not tell a process its resident memory."])
    request = request_for(symbols=10, days=10 if task.quick else 365)
    samples: list[float] = []
    with installed(task.scratch):
        async with embedded_server(task.scratch) as url, candlery(url) as services:
            looking = asyncio.create_task(_look(samples), name="look at memory")
            try:
                _, seconds = await backfilled(services, request)
            finally:
                looking.cancel()
            await check_stored(services, minutes_of(request))
            found = await versions(services)
    note = f"{minutes_of(request):,} bars in {seconds:.0f} s, {minutes_of(request) / seconds:,.0f} bars/s."
    return Outcome(_rows(samples), [note], found)


async def _look(samples: list[float]) -> None:
    while True:
        samples.append(resident_mb() or 0.0)
        await asyncio.sleep(_LOOK_S)


def _rows(samples: Sequence[float]) -> list[Row]:
    levels = [_level(samples, tenth) for tenth in _TENTHS]
    steps = [later - earlier for earlier, later in pairwise(levels)]
    return [
        Row("growth in a step of the job", "MB", steps, target="flat", decimals=1),
        Row("growth from the warm-up to the end", "MB", [levels[-1] - levels[0]], target="flat", decimals=1),
        Row("resident, from the warm-up on", "MB", levels, decimals=1),
    ]


def _level(samples: Sequence[float], tenth: float) -> float:
    first, last = (int(len(samples) * at / 10) for at in (tenth, tenth + 1))
    return median(samples[first : max(last, first + 1)])
