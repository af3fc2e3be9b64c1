"""Answers a second to 32 connections that ask for the last 1,000 bars of a series while a bar arrives every 100 ms.

The bars come as they always do: a Binance on the loopback tells in its stream that a minute is closed, the follower
stores it with ledger and aggregates, and the last 1,000 bars are others from then on. So that a bar can close every
100 ms, a minute takes that long by the clocks of the exchange and of the server: at each step of them the next minute
begins. Control: as for `read_windows`.
"""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec

from bench.clock import SteppingClock
from bench.exchange import running_exchange
from bench.flock import flock, subscribed
from bench.history import BEGAN_MS, SYMBOLS, WINDOW, days_of, history, target
from bench.load import Load
from bench.outcome import Outcome, Task, WrongResultError
from bench.product import ccxt_settings, fresh_database
from bench.reading import Contest, Reader, check_kept, fetched, held
from bench.servers import Server
from bench.stream_server import PATH, running
from config import BaseConfig
from domain.timeframe import DAY_MS, MINUTE_MS

_SYMBOL = SYMBOLS[0]
_TARGET = target(_SYMBOL, limit=WINDOW)
_STEP_S = 0.1
#: Bars of the whole time that were told before the last answer that was looked at, at least; some are on their way.
_TOLD = 0.6


async def run(task: Task) -> Outcome:
    """Measure on the web server that is the default."""
    reader = Reader(task)
    async with _live_server(task) as server:
        contest = Contest(
            "the last 1,000 bars, a new one every 100 ms",
            BaseConfig.server,
            "quart",
            b"0" * len(await fetched(server, _TARGET)),
            targets=lambda: [_TARGET],
            check=_check,
            wanted="ratio at least 0.5",
            again=True,
            slack=0.1,
        )
        row, profiles = await held(contest, server, reader, task)
    return Outcome([row], reader.notes(), profiles=profiles)


@asynccontextmanager
async def _live_server(task: Task) -> AsyncIterator[Server]:
    """Where the history ends, the stream goes on; what it tells is stored in a copy."""
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(history(task.shared, quick=task.quick))
        copy = await stack.enter_async_context(fresh_database(url, "latest", template="history"))
        clock = SteppingClock(time.time(), BEGAN_MS + days_of(quick=task.quick) * DAY_MS, _STEP_S)
        options = await stack.enter_async_context(running_exchange([_SYMBOL], clock=clock))
        settings = {"CANDLERY_DATABASE_URL": copy, **clock.environment(), **ccxt_settings("binance", options)}
        remote = await stack.enter_async_context(running("candlery", task.scratch, settings))
        crowd = await stack.enter_async_context(
            flock(remote.address, PATH, 1, hello=None, wanted=lambda text: b'"closed"' in text)
        )
        await subscribed(crowd, [_SYMBOL])
        await crowd.until(10)
        yield Server(remote.address, remote.pid)


def _check(done: Load) -> None:
    """Each answer holds 1,000 bars, and the bars went on all the time.

    Raises:
        WrongResultError: they do not.
    """
    check_kept(done, bars=WINDOW)
    last = [msgspec.json.decode(body)["bars"][-1][0] for _, body in done.kept]
    came = (last[-1] - last[0]) // MINUTE_MS
    if came < _TOLD * done.seconds / _STEP_S:
        raise WrongResultError(f"Only {came} bars came in {done.seconds:.0f} s.")
