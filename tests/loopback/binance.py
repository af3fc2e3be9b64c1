"""A Binance of one's own: spot REST with its caps, codes and columns, and its stream of minutes.

As a program it serves recorded minutes: `python -m tests.loopback.binance --csv FILE --symbol BTCBUSD --port 9000`.
"""

import argparse
import asyncio
import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from aiohttp import web

from domain.bar import Bar
from domain.clock import Clock
from domain.timeframe import DAY_MS, Timeframe
from tests.loopback.binance_stream import BinanceStream
from tests.loopback.exchange import Listed, LoopbackExchange, RefusalError, decimal, listed
from tests.loopback.faults import Rows

PAIRS = ("BTC/USDT", "ETH/USDT", "BTC/BUSD", "ETH/BTC", "LTC/USDT")
_QUOTES = ("USDT", "BUSD", "USDC", "BTC", "ETH", "EUR", "USD")
_DEFAULT_LIMIT, _MOST = 500, 1000
_UNKNOWN_SYMBOL = {"code": -1121, "msg": "Invalid symbol."}


class BinanceLoopback(LoopbackExchange):
    """Ascending bars from `startTime` on, 500 by default and 1000 at most, the rest cut without a word."""

    def __init__(
        self,
        bars: Mapping[str, Sequence[Bar]],
        *,
        symbols: Sequence[Listed] | None = None,
        exchange_info: Mapping[str, object] | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(bars, symbols=symbols or listed(*PAIRS), clock=clock)
        #: A recorded answer to serve instead of the small one made up here.
        self.exchange_info = exchange_info
        #: Its WebSocket.
        self.stream = BinanceStream(self)

    @property
    def provider(self) -> str:
        return "binance"

    @property
    def ccxt_urls(self) -> dict[str, object]:
        url = self.url
        # CCXT tells spot from futures by the path.
        stream = f"{url.replace('http', 'ws', 1)}/stream/ws"
        return {
            "urls": {
                "api": {
                    "public": f"{url}/api/v3",
                    "private": f"{url}/api/v3",
                    "v1": f"{url}/api/v1",
                    "sapi": f"{url}/sapi/v1",
                    "ws": {"spot": stream, "margin": stream},
                }
            },
            "options": {"defaultType": "spot", "fetchMarkets": {"types": ["spot"]}, "fetchCurrencies": False},
        }

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get("/api/v3/ping", self._ping)
        router.add_get("/api/v3/time", self._time)
        router.add_get("/api/v3/exchangeInfo", self._exchange_info)
        router.add_get("/api/v3/klines", self._klines)
        router.add_get("/api/v3/ticker/24hr", self._ticker)
        router.add_get("/stream/ws/{number}", self.stream.serve)

    async def _ping(self, request: web.Request) -> web.Response:
        return web.json_response({})

    async def _time(self, request: web.Request) -> web.Response:
        return web.json_response({"serverTime": self.clock.now_ms()})

    async def _exchange_info(self, request: web.Request) -> web.StreamResponse:
        if self.exchange_info is not None:
            return await self.answer_listing(request, self.exchange_info)
        listing = {
            "timezone": "UTC",
            "serverTime": self.clock.now_ms(),
            "rateLimits": [],
            "exchangeFilters": [],
            "symbols": [_symbol(one) for one in self.listed.values()],
        }
        return await self.answer_listing(request, listing)

    async def _klines(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        timeframe = _timeframe(query.get("interval", ""))
        bars = self.bars(self._known(query.get("symbol", "")), timeframe)
        limit = min(int(query.get("limit", _DEFAULT_LIMIT)), _MOST)
        if "endTime" in query:
            bars = [bar for bar in bars if bar.ts <= int(query["endTime"])]
        if "startTime" in query:
            page = [bar for bar in bars if bar.ts >= int(query["startTime"])][:limit]
        else:
            page = bars[-limit:]
        return await self.answer_bars(request, page, lambda rows: _klines(rows, timeframe))

    async def _ticker(self, request: web.Request) -> web.Response:
        symbol = self._known(request.query.get("symbol", ""))
        now_ms = self.clock.now_ms()
        day = [bar for bar in self.bars(symbol, Timeframe.M1) if bar.ts > now_ms - DAY_MS]
        if not day:
            raise RefusalError(400, _UNKNOWN_SYMBOL)
        first, last = day[0].open, day[-1].close
        ticker = {
            "symbol": symbol,
            "priceChange": decimal(last - first),
            "priceChangePercent": decimal(round((last - first) / first * 100, 3)),
            "openPrice": decimal(first),
            "highPrice": decimal(max(bar.high for bar in day)),
            "lowPrice": decimal(min(bar.low for bar in day)),
            "lastPrice": decimal(last),
            "volume": decimal(sum(bar.volume for bar in day)),
            "openTime": day[0].ts,
            "closeTime": now_ms,
        }
        return web.json_response(ticker)

    def _known(self, symbol: str) -> str:
        if symbol not in self.listed:
            raise RefusalError(400, _UNKNOWN_SYMBOL)
        return symbol


def _timeframe(interval: str) -> Timeframe:
    if interval not in {timeframe.value for timeframe in Timeframe}:
        raise RefusalError(400, {"code": -1120, "msg": "Invalid interval."})
    return Timeframe(interval)


def _klines(rows: Rows, timeframe: Timeframe) -> object:
    return [_kline(row, timeframe) for row in rows]


def _kline(row: list[object], timeframe: Timeframe) -> list[object]:
    ts, *values = row
    close_ms = timeframe.next(ts) - 1 if isinstance(ts, int) else None
    return [ts, *map(decimal, values), close_ms, "0.0", 1, "0.0", "0.0", "0"]


def _symbol(one: Listed) -> dict[str, object]:
    return {
        "symbol": one.id,
        "status": "TRADING",
        "baseAsset": one.base,
        "baseAssetPrecision": 8,
        "quoteAsset": one.quote,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "orderTypes": ["LIMIT", "MARKET"],
        "icebergAllowed": True,
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": False,
        "filters": [
            {"filterType": "PRICE_FILTER", "minPrice": "0.01", "maxPrice": "1000000.00", "tickSize": "0.01"},
            {"filterType": "LOT_SIZE", "minQty": "0.00001", "maxQty": "9000.0", "stepSize": "0.00001"},
        ],
        "permissions": ["SPOT"],
    }


def read_csv(path: Path) -> list[Bar]:
    """Bars of a recording: `ts_ms,open,high,low,close,volume`."""
    with path.open(newline="") as file:
        rows = csv.reader(file)
        next(rows)
        return [Bar(int(ts), *map(float, values)) for ts, *values in rows]


def pair_of(symbol: str) -> Listed:
    """`BTCBUSD` taken apart."""
    quote = next((quote for quote in _QUOTES if symbol.endswith(quote) and symbol != quote), None)
    if quote is None:
        raise SystemExit(f"{symbol}: ends with none of {', '.join(_QUOTES)}")
    return Listed(symbol, symbol.removesuffix(quote), quote)


async def serve(path: Path, symbol: str, port: int) -> None:
    exchange = BinanceLoopback({symbol: read_csv(path)}, symbols=[pair_of(symbol)])
    await exchange.start(port)
    print(f"CANDLERY_CCXT_OPTIONS='{json.dumps({'binance': exchange.ccxt_options})}'", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await exchange.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve recorded minutes as Binance would.")
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--symbol", required=True)
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    try:
        asyncio.run(serve(arguments.csv, arguments.symbol, arguments.port))
    except KeyboardInterrupt:
        print("stopped")


if __name__ == "__main__":
    main()
