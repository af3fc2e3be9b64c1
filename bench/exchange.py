"""A Binance on the loopback with minutes made as they are asked for: `python -m bench.exchange [SYMBOL ...]`.

It tells the minutes of these symbols in its stream as they form, by the clock that it is given; without any, it has a
few that it is silent about. One JSON line on stdout says what leads CCXT to it. It ends when its stdin closes, and so
never outlives a benchmark.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiohttp import web

from bench.clock import SteppingClock, clock_of_environment
from bench.processes import gone
from bench.provider import BEGAN_MS, minute_bars
from domain.timeframe import MINUTE_MS
from tests.loopback.binance import PAIRS, BinanceLoopback
from tests.loopback.exchange import decimal, forming, listed

SYMBOLS = PAIRS
_MOST = 1_000
#: How often Binance tells a minute that forms, seconds; and how finely the symbols are spread over that time.
_TOLD_EVERY_S, _TELL_STEP_S = 2.0, 0.02
_START_TIMEOUT_S = 30.0


class QuickBinance(BinanceLoopback):
    """Answers for one-minute bars without looking through all others, and keeps no log of calls."""

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Its own answer for bars; the rest as in the tests."""
        router.add_get("/api/v3/klines", self._minutes)
        router.add_get("/api/v3/exchangeInfo", self._exchange_info)
        router.add_get("/stream/ws/{number}", self.stream.serve)

    async def tell(self) -> None:
        """Tell each minute of each symbol now and then as it forms, and when it is closed, by the clock."""
        ids = list(self.listed)
        minute_ms, told = self.clock.now_ms() // MINUTE_MS * MINUTE_MS, 0.0
        while True:
            now_ms = self.clock.now_ms()
            if now_ms >= minute_ms + MINUTE_MS:
                await self._say(ids, minute_ms, closed=True)
                minute_ms += MINUTE_MS
            else:
                first, told = int(told), told + len(ids) * _TELL_STEP_S / _TOLD_EVERY_S
                await self._say([ids[n % len(ids)] for n in range(first, int(told))], minute_ms, closed=False)
            await asyncio.sleep(_TELL_STEP_S)

    async def _say(self, ids: Iterable[str], minute_ms: int, *, closed: bool) -> None:
        [bar] = minute_bars(minute_ms, minute_ms + MINUTE_MS)
        if not closed:
            grown = (self.clock.now_ms() - minute_ms) / MINUTE_MS * bar.volume
            bar = msgspec.structs.replace(forming(bar), volume=grown)
        for id_ in ids:
            await self.stream.say(id_, bar, closed=closed)

    async def _minutes(self, request: web.Request) -> web.Response:
        self.calls.clear()
        query = request.query
        limit = min(int(query["limit"]), _MOST)
        start_ms = max(int(query["startTime"]), BEGAN_MS)
        end_ms = min(start_ms + limit * MINUTE_MS, int(query.get("endTime", sys.maxsize - 1)) + 1, self.clock.now_ms())
        rows = [
            [bar.ts, *map(decimal, (bar.open, bar.high, bar.low, bar.close, bar.volume)), bar.ts + MINUTE_MS - 1]
            for bar in minute_bars(start_ms, end_ms)
        ]
        return web.Response(body=json.dumps(rows, separators=(",", ":")).encode(), content_type="application/json")


async def serve(live: Sequence[str]) -> None:
    """Serve until stdin closes; `live`: symbols told in the stream."""
    symbols = listed(*live) if live else None
    async with QuickBinance({}, symbols=symbols, clock=clock_of_environment()) as exchange:
        telling = asyncio.create_task(exchange.tell(), name="tell") if live else None
        sys.stdout.write(json.dumps(exchange.ccxt_options) + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(os.read, 0, 1)
        if telling is not None:
            telling.cancel()


def live_symbols(count: int) -> list[str]:
    """Names of symbols."""
    return [f"S{number:03}/USDT" for number in range(count)]


@asynccontextmanager
async def running_exchange(
    live: Sequence[str] = (), *, clock: SteppingClock | None = None
) -> AsyncIterator[dict[str, Any]]:
    """One in a process of its own for the block; options for CCXT that lead to it. `live` as in `serve`."""
    pipe = asyncio.subprocess.PIPE
    environ = {**os.environ, **(clock.environment() if clock else {})}
    command = [sys.executable, "-m", "bench.exchange", *live]
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, env=environ)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            line = await process.stdout.readline()
        options: dict[str, Any] = json.loads(line)
        yield options
    finally:
        process.stdin.close()
        await gone(process)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1:]))
