"""Answers a second to 32 connections that ask for 1,000 bars at random, straight from the database.

As `read_windows`, but with caches off: the same rows come from PostgreSQL each time, with what the ledger says of them.
Control: bare asyncpg in one process that fetches the same rows, 32 at once over a pool of the same size, and makes
nothing of them.
"""

from bench.history import SYMBOLS, YEAR_DAYS, days_of, history, series_ids, window_target, windows
from bench.outcome import Outcome, Row, Task, side_by_side
from bench.reading import NO_CACHES, Reader, check_kept, serving, typical_size
from domain.timeframe import DAY_MS, MINUTE_MS

_WINDOW_MS = 1_000 * MINUTE_MS
_TARGETS, _QUICK_TARGETS = 20_000, 6_000
_SAMPLE = 20


async def run(task: Task) -> Outcome:
    """Measure on one server and one database."""
    reader = Reader(task)
    days = min(days_of(quick=task.quick), YEAR_DAYS)
    count = _QUICK_TARGETS if task.quick else _TARGETS
    unasked = iter(windows(SYMBOLS, days * DAY_MS // MINUTE_MS, _SAMPLE + count * (task.rounds + 1), seed=3))
    async with history(task.shared, quick=task.quick) as url, serving(task, url, NO_CACHES) as server:
        ids = await series_ids(url)
        size = await typical_size(server, [window_target(*next(unasked)) for _ in range(_SAMPLE)])
        least, most = int(size * 0.9), int(size * 1.1)
        asked: list[tuple[str, int]] = []

        async def control() -> float:
            asked[:] = [next(unasked) for _ in range(count)]
            stretches = [(ids[symbol], start_ms, start_ms + _WINDOW_MS) for symbol, start_ms in asked]
            return (await reader.bare(url, "bars_1m", stretches, rows=1_000)).rate

        async def figure() -> float:
            targets = [window_target(*window) for window in asked]
            done = await reader.load(server, targets, least=least, most=most)
            check_kept(done, source="database")
            return done.rate

        controls, figures = await side_by_side(task.rounds, control, figure)
        rest = [window_target(*window) for window in unasked]
        profiles = await reader.profiled("The server", server, rest, least=least, most=most)
    row = Row("1,000 bars at random from the database", "answers/s", figures, controls, "ratio at least 0.6")
    return Outcome([row], reader.notes(), profiles=profiles)
