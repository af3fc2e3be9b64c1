"""Megabytes that a server takes, without its database: idle, and with 100 live series.

Resident memory of the one process: `candlery serve` with the embedded database, some seconds after its start; and the
same with a Binance on the loopback that tells 100 symbols as they form, all of them subscribed to by one client. There,
a minute takes five seconds by the clocks of the exchange and the server, and one of each has closed. There is no
control.
"""

import asyncio

from bench.clock import SteppingClock
from bench.exchange import live_symbols, running_exchange
from bench.flock import flock, subscribed
from bench.machine import resident_mb
from bench.outcome import Outcome, Row, Task
from bench.product import ccxt_settings
from bench.servers import candlery_serve
from bench.stream_server import PATH, running

_SERIES, _QUICK_SERIES = 100, 20
_IDLE_S, _QUICK_IDLE_S = 4.0, 1.0
_MINUTE_S = 5.0


async def run(task: Task) -> Outcome:
    """Start as many servers as there are rounds."""
    if resident_mb() is None:
        return Outcome([], ["Not measured: this system does not tell the resident memory of a process."])
    series = _QUICK_SERIES if task.quick else _SERIES
    # These at once: they take no memory from one another, and have nothing to do.
    idle = await asyncio.gather(*(_idle_mb(task, number) for number in range(task.rounds)))
    live = [await _live_mb(task, number, series) for number in range(task.rounds)]
    return Outcome(
        [
            Row("idle", "MB", [*idle], target="under 120"),
            Row(f"with {series} live series", "MB", live, target="under 200"),
        ]
    )


async def _idle_mb(task: Task, number: int) -> float:
    settings = {"CANDLERY_DATA_DIR": str(task.scratch / f"idle{number}")}
    async with candlery_serve(task.scratch, settings) as server:
        await asyncio.sleep(_QUICK_IDLE_S if task.quick else _IDLE_S)
        return resident_mb(server.pid) or 0.0


async def _live_mb(task: Task, number: int, series: int) -> float:
    symbols = live_symbols(series)
    clock = SteppingClock.from_yesterday(_MINUTE_S)
    async with (
        running_exchange(symbols, clock=clock) as options,
        running(
            "candlery", task.scratch / f"live{number}", ccxt_settings("binance", options) | clock.environment()
        ) as server,
        flock(server.address, PATH, 1, hello=None, wanted=lambda text: b'"closed"' in text) as crowd,
    ):
        await subscribed(crowd, symbols)
        await crowd.until(series)
        return resident_mb(server.pid) or 0.0
