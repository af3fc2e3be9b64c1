"""A Binance on the loopback with minutes made as they are asked for: `python -m bench.exchange`.

One JSON line on stdout says what leads CCXT to it. It ends when its stdin closes, and so never outlives a benchmark.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from bench.provider import BEGAN_MS, minute_bars
from domain.timeframe import MINUTE_MS
from tests.loopback.binance import PAIRS, BinanceLoopback
from tests.loopback.exchange import decimal

SYMBOLS = PAIRS
_MOST = 1_000
_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 5.0


class QuickBinance(BinanceLoopback):
    """Answers for one-minute bars without looking through all others, and keeps no log of calls."""

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Its own answer for bars; the rest as in the tests."""
        router.add_get("/api/v3/klines", self._minutes)
        router.add_get("/api/v3/exchangeInfo", self._exchange_info)

    async def _minutes(self, request: web.Request) -> web.Response:
        self.calls.clear()
        query = request.query
        limit = min(int(query["limit"]), _MOST)
        start_ms = max(int(query["startTime"]), BEGAN_MS)
        end_ms = min(start_ms + limit * MINUTE_MS, int(query.get("endTime", sys.maxsize - 1)) + 1)
        rows = [
            [bar.ts, *map(decimal, (bar.open, bar.high, bar.low, bar.close, bar.volume)), bar.ts + MINUTE_MS - 1]
            for bar in minute_bars(start_ms, end_ms)
        ]
        return web.Response(body=json.dumps(rows, separators=(",", ":")).encode(), content_type="application/json")


async def serve() -> None:
    """Serve until stdin closes."""
    async with QuickBinance({}) as exchange:
        sys.stdout.write(json.dumps(exchange.ccxt_options) + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(os.read, 0, 1)


@asynccontextmanager
async def running_exchange() -> AsyncIterator[dict[str, Any]]:
    """One in a process of its own for the block; options for CCXT that lead to it."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", __name__, stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            line = await process.stdout.readline()
        options: dict[str, Any] = json.loads(line)
        yield options
    finally:
        process.stdin.close()
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


if __name__ == "__main__":
    asyncio.run(serve())
