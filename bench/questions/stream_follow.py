"""Share of a core that a server takes to follow 500 series of an exchange at once.

A Binance on the loopback tells each minute every two seconds while it forms, as the real one does, and when it is
closed: 500 minutes then close at one instant, and are stored with ledger and aggregates. The real CCXT Pro client
hears them; one WebSocket client has subscribed to all. By the clocks of the exchange and the server a minute closes
every 10 seconds: six times as often as in life, while what forms is told as often. A value is the processor time of
the server, without its database's, over one such minute. There is no control: what is wanted is a share of the machine.
"""

import asyncio
import time

from bench.clock import SteppingClock
from bench.exchange import live_symbols, running_exchange
from bench.flock import Flock, flock, subscribed
from bench.outcome import Outcome, Row, Task, WrongResultError
from bench.product import ccxt_settings
from bench.stream_server import PATH, Remote, allow_many_files, running

_SERIES = 500
_MINUTE_S = 10.0
_JOIN_S = 120.0


async def run(task: Task) -> Outcome:
    """Measure minute after minute."""
    allow_many_files()
    series, minute_s = (50, 5.0) if task.quick else (_SERIES, _MINUTE_S)
    clock = SteppingClock.from_yesterday(minute_s)
    async with (
        running_exchange(live_symbols(series), clock=clock) as options,
        running("candlery", task.scratch, ccxt_settings("binance", options) | clock.environment()) as server,
        flock(server.address, PATH, 1, hello=None, wanted=lambda text: b'"state"' in text) as crowd,
    ):
        await subscribed(crowd, live_symbols(series))
        await crowd.until(4 * series, timeout_s=_JOIN_S)
        shares = [await _share(server, crowd, minute_s, series) for _ in range(task.rounds)]
        resident = (await server.order()).resident
    row = Row(f"following {series} series", "cores", shares, target="under 0.5", decimals=2)
    return Outcome([row], [f"{resident / 1e6:.0f} MB resident at the end."])


async def _share(server: Remote, crowd: Flock, seconds: float, series: int) -> float:
    """Processor seconds a second.

    Raises:
        WrongResultError: less was told than the exchange tells.
    """
    crowd.forget()
    before, began_s = await server.order(), time.perf_counter()
    await asyncio.sleep(seconds)
    after, took_s = await server.order(), time.perf_counter() - began_s
    told = len(crowd.clients[0].arrivals)
    if told < series * seconds / 2 * 0.8:
        raise WrongResultError(f"Only {told} bars of {series} series were told in {took_s:.0f} s.")
    return (after.cpu_s - before.cpu_s) / took_s
