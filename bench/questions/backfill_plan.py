"""Milliseconds to plan ten years of a symbol whose ledger has 10,000 fragments, a hole behind each.

Through the manager, as a dry run does it: the ledger read, what is missing, and its chunks. Control: the bare query
that reads the fragments. A value is the median of 15 goes, after two that do not count.
"""

import time
from collections.abc import Awaitable, Callable
from statistics import median

from app_extensions.wiring import Services
from bench.outcome import Outcome, Row, Task, WrongResultError, side_by_side
from bench.product import candlery, embedded_server, versions
from bench.provider import BEGAN_MS, MARKET, PROVIDER, SYMBOLS, installed
from domain.series import Series
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, MINUTE_MS, Timeframe
from services.backfills import BackfillRequest

_FRAGMENTS = 10_000
_SPAN = TimeRange(BEGAN_MS - 3_652 * DAY_MS, BEGAN_MS)
_STEP_MS = _SPAN.length_ms // _FRAGMENTS // MINUTE_MS * MINUTE_MS
_HOLE_MS = 5 * MINUTE_MS
_GOES, _WARM_UP = 15, 2
_FRAGMENTS_OF = """
SELECT array_agg(lower(part)), array_agg(upper(part))
FROM coverage, unnest(ranges) AS part WHERE series_id = $1 AND timeframe = '1m' AND state = 'answered'
"""


async def run(task: Task) -> Outcome:
    """Lay the fragments, then plan around them again and again."""
    with installed(task.scratch):
        async with embedded_server(task.scratch) as url, candlery(url) as services:
            series_id = await _fragmented(services)
            request = BackfillRequest(MARKET, PROVIDER, SYMBOLS[:1], _SPAN)

            async def read() -> None:
                async with services.database.connection() as db:
                    starts, _ = await db.fetchrow(_FRAGMENTS_OF, series_id)
                _expect(len(starts), _FRAGMENTS)

            async def plan() -> None:
                planned = await services.backfills.plan(request)
                _expect(len(planned.symbols[0].gaps.ranges), _FRAGMENTS)

            controls, figures = await side_by_side(task.rounds, lambda: _typical_ms(read), lambda: _typical_ms(plan))
            found = await versions(services)
    row = Row("plan of ten years, 10,000 fragments", "ms", figures, controls, target="under 50", decimals=1)
    return Outcome([row], [], found)


async def _fragmented(services: Services) -> int:
    """A series known but for a hole at the end of each step; its number."""
    stored = await services.store.ensure_series(Series(MARKET, PROVIDER, SYMBOLS[0]))
    starts = range(_SPAN.start_ms, _SPAN.start_ms + _FRAGMENTS * _STEP_MS, _STEP_MS)
    known = [(start, start + _STEP_MS - _HOLE_MS) for start in starts]
    known[-1] = (known[-1][0], _SPAN.end_ms - _HOLE_MS)
    await services.store.record(stored.id, Timeframe.M1, bars=(), answered=RangeSet(known), was_asked=False)
    return stored.id


def _expect(found: int, wanted: int) -> None:
    if found != wanted:
        raise WrongResultError(f"{found} fragments where there are {wanted}")


async def _typical_ms(work: Callable[[], Awaitable[None]]) -> float:
    spent: list[float] = []
    for _ in range(_WARM_UP + _GOES):
        began_s = time.perf_counter()
        await work()
        spent.append((time.perf_counter() - began_s) * 1000)
    return median(spent[_WARM_UP:])
