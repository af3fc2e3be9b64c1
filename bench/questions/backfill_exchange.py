"""Minutes a second that a backfill job brings through the real CCXT client from a Binance on the loopback.

The exchange is a process of its own that speaks HTTP; the job stores into PostgreSQL, as in `backfill_plain`. Control:
the CCXT client alone, fetching the same pages one after the other and storing nothing. For information.
"""

import time
from collections.abc import Mapping
from itertools import count
from typing import Any

import ccxt.async_support

from bench.exchange import SYMBOLS, running_exchange
from bench.outcome import Outcome, Row, Task, WrongResultError, side_by_side
from bench.product import (
    backfilled,
    candlery,
    ccxt_settings,
    check_stored,
    embedded_server,
    fresh_database,
    minutes_of,
    versions,
)
from bench.provider import BEGAN_MS, PAGE
from domain.time_range import TimeRange
from domain.timeframe import DAY_MS, MINUTE_MS
from services.backfills import BackfillRequest

_EXCHANGE = "binance"


async def run(task: Task) -> Outcome:
    """Measure on a fresh database each round."""
    window = TimeRange(BEGAN_MS, BEGAN_MS + (2 if task.quick else 12) * DAY_MS)
    request = BackfillRequest("crypto", _EXCHANGE, SYMBOLS, window)
    number = count()
    found: dict[str, str] = {}
    async with running_exchange() as options, embedded_server(task.scratch) as server_url:

        async def control() -> float:
            return await _bare_client(options, request)

        async def figure() -> float:
            async with (
                fresh_database(server_url, f"figure_{next(number)}") as url,
                candlery(url, ccxt_settings(_EXCHANGE, options)) as services,
            ):
                found.update(await versions(services))
                _, seconds = await backfilled(services, request)
                await check_stored(services, minutes_of(request))
                return minutes_of(request) / seconds

        controls, figures = await side_by_side(task.rounds, control, figure)
    row = Row("through CCXT from an exchange on the loopback", "bars/s", figures, controls)
    return Outcome([row], [f"{minutes_of(request):,} bars a round."], found | {"CCXT": ccxt.async_support.__version__})


async def _bare_client(options: Mapping[str, Any], request: BackfillRequest) -> float:
    """The control; bars a second."""
    client = getattr(ccxt.async_support, _EXCHANGE)(dict(options))
    try:
        await client.load_markets()
        began_s = time.perf_counter()
        for symbol in request.symbols:
            await _fetch_all(client, symbol, request.range)
        return minutes_of(request) / (time.perf_counter() - began_s)
    finally:
        await client.close()


async def _fetch_all(client: Any, symbol: str, window: TimeRange) -> None:
    for start_ms in range(*window, PAGE * MINUTE_MS):
        wanted = min(PAGE, (window.end_ms - start_ms) // MINUTE_MS)
        rows = await client.fetch_ohlcv(symbol, "1m", since=start_ms, limit=wanted)
        if len(rows) != wanted:
            raise WrongResultError(f"{len(rows)} bars where there are {wanted}")
