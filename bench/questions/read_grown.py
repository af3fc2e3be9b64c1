"""How much longer a read of 1,000 bars takes when 50 million rows are stored, where it was one million.

As `read_database`, with windows at random out of all that is stored: two symbols, or a hundred, with 500,000 minutes
each. The control is the database with the million; both are on one server process each, asked in turns. Ledger and
minutes are as ever; the aggregates are left out, since none is read.
"""

import shutil
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from statistics import median

from bench.history import lay_many, window_target, windows
from bench.load import Load
from bench.outcome import Outcome, Row, Task
from bench.product import candlery, embedded_server, fresh_database
from bench.reading import NO_CACHES, Reader, check_kept, serving, typical_size

_MINUTES, _QUICK_MINUTES = 500_000, 10_000
_FEW, _MANY, _QUICK_MANY = 2, 100, 8
#: So much the large one takes, and the run a little besides.
_NEEDED_BYTES = 9 << 30
_TARGETS, _QUICK_TARGETS = 20_000, 4_000
_SAMPLE = 20
#: Longer than other reads, for the sake of the rare late answers.
_SECONDS = 2.5


async def run(task: Task) -> Outcome:
    """Measure in turns."""
    minutes, many = (_QUICK_MINUTES, _QUICK_MANY) if task.quick else (_MINUTES, _MANY)
    if not task.quick and shutil.disk_usage(task.scratch).free < _NEEDED_BYTES:
        return Outcome([], [f"Not measured: it takes {_NEEDED_BYTES >> 30} GB of disk, and there is less."])
    reader = Reader(task)
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(embedded_server(task.scratch))
        small = await _asked(task, reader, stack, url, symbols=_FEW, minutes=minutes)
        large = await _asked(task, reader, stack, url, symbols=many, minutes=minutes)
        loads = [(await small(), await large()) for _ in range(task.rounds)]
    few, much = [pair[0] for pair in loads], [pair[1] for pair in loads]
    rows = [
        Row(
            f"{name} of {many * minutes:,} rows",
            "ms",
            [getattr(load, field) for load in much],
            [getattr(load, field) for load in few],
            "ratio at most 1.3",
            decimals=1,
        )
        for name, field in (("p50", "p50_ms"), ("p99", "p99_ms"))
    ]
    rates = (f"{median(load.rate for load in loads):,.0f}" for loads in (much, few))
    note = "{} answers/s; with the fewer rows {}.".format(*rates)
    return Outcome(rows, [note, *reader.notes()])


async def _asked(
    task: Task, reader: Reader, stack: AsyncExitStack, server_url: str, *, symbols: int, minutes: int
) -> Callable[[], Awaitable[Load]]:
    """Lay a database, start a server on it, and say how it is asked."""
    names = [f"S{number:03}/USDT" for number in range(symbols)]
    url = await stack.enter_async_context(fresh_database(server_url, f"rows_of_{symbols}"))
    async with candlery(url, as_server=False) as services:
        await lay_many(services, names, minutes=minutes)
    server = await stack.enter_async_context(serving(task, url, NO_CACHES))
    seconds = 1.0 if task.quick else _SECONDS
    count = _QUICK_TARGETS if task.quick else _TARGETS
    unasked = iter(windows(names, minutes, _SAMPLE + count * task.rounds, seed=symbols))
    size = await typical_size(server, [window_target(*next(unasked)) for _ in range(_SAMPLE)])

    async def ask() -> Load:
        targets = [window_target(*next(unasked)) for _ in range(count)]
        done = await reader.load(server, targets, least=int(size * 0.9), most=int(size * 1.1), seconds=seconds)
        check_kept(done, source="database")
        return done

    return ask
