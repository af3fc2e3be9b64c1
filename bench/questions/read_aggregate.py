"""Answers a second to 32 connections that ask for a year of one-hour bars, 8,760 each, from the aggregate, cold.

The years begin at different hours, and caches are off. Control: as for `read_database`, on the rows of the aggregate.
"""

from itertools import cycle, islice

from bench.history import days_of, history, series_ids, target, years_of_hours
from bench.outcome import Outcome, Row, Task, side_by_side
from bench.reading import NO_CACHES, Reader, check_kept, serving, typical_size
from domain.time_range import TimeRange
from domain.timeframe import HOUR_MS

_MOST = 10_000
#: More than can be answered in the time of one load.
_TARGETS = 15_000


async def run(task: Task) -> Outcome:
    """Measure on one server and one database."""
    reader = Reader(task)
    years = years_of_hours(days_of(quick=task.quick), quick=task.quick, seed=4)
    hours = years[0][1].length_ms // HOUR_MS
    turns = cycle(years)
    async with history(task.shared, quick=task.quick) as url, serving(task, url, NO_CACHES) as server:
        ids = await series_ids(url)
        size = await typical_size(server, map(_target, islice(turns, 3)))
        least, most = int(size * 0.9), int(size * 1.1)
        asked: list[tuple[str, TimeRange]] = []

        async def control() -> float:
            asked[:] = islice(turns, _TARGETS)
            stretches = [(ids[symbol], start, end) for symbol, (start, end) in asked]
            return (await reader.bare(url, "bars_1h", stretches, rows=hours)).rate

        async def figure() -> float:
            done = await reader.load(server, map(_target, asked), least=least, most=most)
            check_kept(done, source="aggregate")
            return done.rate

        controls, figures = await side_by_side(task.rounds, control, figure)
        profiles = await reader.profiled(
            "The server", server, map(_target, islice(turns, _TARGETS)), least=least, most=most
        )
    row = Row(f"{hours:,} bars of 1h from the aggregate", "answers/s", figures, controls, "ratio at least 0.6")
    return Outcome([row], reader.notes(), profiles=profiles)


def _target(year: tuple[str, TimeRange]) -> str:
    symbol, (start_ms, end_ms) = year
    return target(symbol, timeframe="1h", start=start_ms, end=end_ms, limit=_MOST)
