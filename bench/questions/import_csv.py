"""Rows a second that `candlery import` brings from a CSV file with a year of minutes into an empty database.

From the start of the command to its end, with ledger and aggregates. Control: COPY of the same rows from CSV text, into
a table of the same shape, by bare asyncpg; of that only the one statement counts.
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import asyncpg

from bench.history import MARKET, PROVIDER, SYMBOLS, YEAR_DAYS, days_of, history
from bench.outcome import Outcome, Row, Task, side_by_side
from bench.processes import finished
from bench.product import candlery, check_stored, fresh_database
from bench.profile import profile_command
from bench.servers import environment
from domain.timeframe import DAY_MS, MINUTE_MS

_FILE = """
SELECT (extract(epoch FROM ts) * 1000)::bigint AS ts_ms, open, high, low, close, volume
FROM bars_1m WHERE series_id = 1 ORDER BY ts LIMIT $1
"""
_ROWS = "SELECT series_id, ts, open, high, low, close, volume FROM bars_1m WHERE series_id = 1 ORDER BY ts LIMIT $1"
_TIMEOUT_S = 120


async def run(task: Task) -> Outcome:
    """Measure on a fresh database each round."""
    rows = min(YEAR_DAYS, days_of(quick=task.quick)) * DAY_MS // MINUTE_MS
    number = count()
    async with history(task.shared, quick=task.quick) as url:
        import_of, copy_of, tiny = await _files(url, rows, task.scratch)

        async def control() -> float:
            async with fresh_database(url, f"copied_{next(number)}") as fresh:
                async with candlery(fresh, as_server=False):
                    pass
                return rows / await _copied_s(fresh, copy_of)

        async def imported_s(path: Path, rows: int) -> float:
            async with fresh_database(url, f"imported_{next(number)}") as fresh:
                async with candlery(fresh, as_server=False):
                    pass
                began_s = time.perf_counter()
                await _finish(_command(path), fresh, task.scratch)
                took_s = time.perf_counter() - began_s
                async with candlery(fresh, as_server=False) as services:
                    await check_stored(services, rows)
                return took_s

        async def figure() -> float:
            return rows / await imported_s(import_of, rows)

        controls, figures = await side_by_side(task.rounds, control, figure)
        tiny_s = await imported_s(tiny, 1)
        profiles = []
        if not task.quick:
            async with fresh_database(url, "profiled") as fresh:
                async with candlery(fresh, as_server=False):
                    pass
                variables = environment({"CANDLERY_DATABASE_URL": fresh})
                profiles = [await profile_command("The command", _command(import_of), task.scratch, variables)]
    row = Row("a year of minutes from CSV", "rows/s", figures, controls, "ratio at least 0.3")
    notes = [f"{rows:,} rows a round. The command takes {tiny_s:.1f} s for a file of one row."]
    return Outcome([row], notes, profiles=profiles)


async def _files(url: str, rows: int, folder: Path) -> tuple[Path, Path, Path]:
    """The rows for the import and for COPY, and a file of one row."""
    paths = folder / "minutes.csv", folder / "rows.csv", folder / "one.csv"
    db = await asyncpg.connect(url)
    try:
        for path, query, limit in zip(paths, (_FILE, _ROWS, _FILE), (rows, rows, 1), strict=True):
            header = query is _FILE
            await db.copy_from_query(query, limit, output=path, format="csv", header=header)
    finally:
        await db.close()
    return paths


async def _copied_s(url: str, path: Path) -> float:
    db = await asyncpg.connect(url)
    try:
        await db.execute("CREATE TABLE bench_copy (LIKE bars_1m INCLUDING ALL)")
        began_s = time.perf_counter()
        await db.copy_to_table("bench_copy", source=path, format="csv", timeout=_TIMEOUT_S)
        return time.perf_counter() - began_s
    finally:
        await db.close()


def _command(path: Path) -> list[str]:
    series = ("--market", MARKET, "--provider", PROVIDER, "--symbol", SYMBOLS[0], "--timeframe", "1m")
    return [sys.executable, "-m", "cli", "import", str(path), *series]


async def _finish(command: Sequence[str], url: str, folder: Path) -> None:
    """Run a command to its end.

    Raises:
        WrongResultError: it did not end well.
    """
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=environment({"CANDLERY_DATABASE_URL": url}), stdout=pipe, stderr=pipe
    )
    await finished(process, "the import", _TIMEOUT_S)
