"""Answers a second when 32 connections ask for the same closed 1,000 bars again and again.

One server process, asked by a load generator in another, on connections that stay open. Control: a bare ASGI
application on the same web server with the same settings, which sends the same bytes from memory.
"""

from bench.history import SYMBOLS, days_of, history, window_target, windows
from bench.outcome import Outcome, Profile, Row, Task
from bench.reading import Contest, Reader, check_kept, fetched, held, serving
from bench.servers import offered
from domain.timeframe import DAY_MS, MINUTE_MS

#: Answers until nothing about them changes any more.
_FIRST = 3


async def run(task: Task) -> Outcome:
    """Measure on each web server that is offered."""
    reader = Reader(task)
    rows: list[Row] = []
    profiles: list[Profile] = []
    [window] = windows(SYMBOLS, days_of(quick=task.quick) * DAY_MS // MINUTE_MS, 1, seed=1)
    async with history(task.shared, quick=task.quick) as url:
        for name in offered():
            row, found = await _on(name, task, reader, url, window_target(*window))
            rows.append(row)
            profiles += found
    return Outcome(rows, reader.notes(), profiles=profiles)


async def _on(name: str, task: Task, reader: Reader, url: str, target: str) -> tuple[Row, list[Profile]]:
    async with serving(task, url, {"CANDLERY_SERVER": name}) as server:
        for _ in range(_FIRST):
            body = await fetched(server, target)
        contest = Contest(
            "the same 1,000 bars",
            name,
            "asgi",
            body,
            targets=lambda: [target],
            check=check_kept,
            wanted="ratio at least 0.7",
            again=True,
        )
        return await held(contest, server, reader, task)
