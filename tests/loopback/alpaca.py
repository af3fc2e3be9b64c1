"""An Alpaca of one's own: its data host and its trading host in one, with faults on demand. It knows only HTTP."""

import asyncio
import base64
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Self
from zoneinfo import ZoneInfo

import msgspec
from aiohttp import web

from domain.bar import Bar, fold
from domain.timeframe import Timeframe

NEW_YORK = ZoneInfo("America/New_York")
KEY, SECRET = "AKLOOPBACK", "loopback-secret"
TIMEFRAMES = {
    "1Min": Timeframe.M1,
    "5Min": Timeframe.M5,
    "15Min": Timeframe.M15,
    "30Min": Timeframe.M30,
    "1Hour": Timeframe.H1,
    "1Day": Timeframe.D1,
}

#: Answers in place of the venue; None lets the call through.
Fault = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


class AlpacaLoopback:
    """Serves minutes by symbol, folded as asked; `daily` holds official daily bars of stocks by session date."""

    def __init__(
        self,
        *,
        stocks: Mapping[str, Sequence[Bar]] | None = None,
        crypto: Mapping[str, Sequence[Bar]] | None = None,
        daily: Mapping[str, Sequence[Bar]] | None = None,
    ) -> None:
        self.stocks = dict(stocks or {})
        self.crypto = dict(crypto or {})
        self.daily = dict(daily or {})
        #: Rows in a page at most, whatever `limit` says.
        self.page_rows = 10_000
        #: One for each call to come.
        self.faults: deque[Fault] = deque()
        #: Path and parameters of each call.
        self.calls: list[tuple[str, dict[str, str]]] = []
        #: What the `Date` header says; None: the truth.
        self.now_ms: int | None = None
        self.assets: object = None
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._middleware])
        app.router.add_get("/v2/stocks/bars", self._stock_bars)
        app.router.add_get("/v1beta3/crypto/us/bars", self._crypto_bars)
        app.router.add_get("/v2/assets", self._assets)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def options(self) -> dict[str, object]:
        """The plugin's options that lead here."""
        return {"data_url": self.url, "trading_url": self.url}

    @web.middleware
    async def _middleware(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        self.calls.append((request.path, dict(request.query)))
        response = await self.faults.popleft()(request) if self.faults else None
        if response is None:
            wanted = (request.headers.get("APCA-API-KEY-ID"), request.headers.get("APCA-API-SECRET-KEY"))
            response = await handler(request) if wanted == (KEY, SECRET) else refusal(403, "forbidden.")
        if self.now_ms is not None:
            response.headers["Date"] = formatdate(self.now_ms / 1000, usegmt=True)
        return response

    async def _stock_bars(self, request: web.Request) -> web.Response:
        if {"adjustment": "raw", "sort": "asc"}.items() - request.query.items() or "feed" not in request.query:
            return refusal(400, "wrong parameters")
        symbol, timeframe = request.query["symbols"], TIMEFRAMES[request.query["timeframe"]]
        if ":" in symbol:
            return refusal(400, f"invalid symbol: {symbol}")
        if timeframe is not Timeframe.D1:
            return self._page(request, symbol, fold(self.stocks.get(symbol, ()), timeframe))
        days = [msgspec.structs.replace(bar, ts=midnight_in_new_york(bar.ts)) for bar in self.daily.get(symbol, ())]
        return self._page(request, symbol, days)

    async def _crypto_bars(self, request: web.Request) -> web.Response:
        if "feed" in request.query or "adjustment" in request.query:
            return refusal(400, "wrong parameters")
        symbol = request.query["symbols"]
        return self._page(request, symbol, fold(self.crypto.get(symbol, ()), TIMEFRAMES[request.query["timeframe"]]))

    def _page(self, request: web.Request, symbol: str, bars: Sequence[Bar]) -> web.Response:
        query = request.query
        # Both ends are inclusive.
        found = [row(bar) for bar in bars if ms_of(query["start"]) <= bar.ts <= ms_of(query["end"])]
        first = int(base64.b64decode(query["page_token"])) if "page_token" in query else 0
        size = min(int(query["limit"]), self.page_rows)
        token = base64.b64encode(str(first + size).encode()).decode() if first + size < len(found) else None
        rows = found[first : first + size]
        return answer({"bars": {symbol: rows} if rows else {}, "next_page_token": token})

    async def _assets(self, request: web.Request) -> web.Response:
        if request.query.get("status") != "active":
            return refusal(400, "wrong parameters")
        if self.assets is not None:
            return answer(self.assets)
        kind = request.query["asset_class"]
        symbols = self.crypto if kind == "crypto" else self.stocks.keys() | self.daily.keys()
        return answer([asset(symbol, kind) for symbol in sorted(symbols)])


def asset(symbol: str, kind: str = "us_equity") -> dict[str, object]:
    return {
        "id": f"id-{symbol}",
        "class": kind,
        "exchange": "CRYPTO" if kind == "crypto" else "ARCA",
        "symbol": symbol,
        "name": f"{symbol} of the loopback",
        "status": "active",
        "tradable": True,
    }


def row(bar: Bar) -> dict[str, object]:
    """A bar as Alpaca writes it, with nanoseconds now and then."""
    when = datetime.fromtimestamp(bar.ts / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = ".000000000" if bar.ts // 60_000 % 3 == 0 else ""
    prices = {"o": bar.open, "h": bar.high, "l": bar.low, "c": bar.close, "v": bar.volume}
    return {"t": f"{when}{fraction}Z", **prices, "n": 10, "vw": bar.close}


def ms_of(stamp: str) -> int:
    return round(datetime.fromisoformat(stamp).timestamp() * 1000)


def midnight_in_new_york(date_ms: int) -> int:
    day = datetime.fromtimestamp(date_ms / 1000, UTC)
    return round(day.replace(tzinfo=NEW_YORK).timestamp() * 1000)


def answer(body: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")


def refusal(status: int, message: str) -> web.Response:
    return web.json_response({"message": message}, status=status)


def says(status: int, body: object = b"", *, headers: Mapping[str, str] | None = None) -> Fault:
    """This status, with a body of bytes, text or JSON."""
    content = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else msgspec.json.encode(body)

    async def fault(request: web.Request) -> web.Response:
        return web.Response(status=status, body=content, headers=headers)

    return fault


async def hangs(request: web.Request) -> None:
    """No answer as long as anybody waits for it."""
    await asyncio.Event().wait()


async def drops(request: web.Request) -> web.Response:
    """The connection is gone."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def drops_within_the_body(request: web.Request) -> web.StreamResponse:
    """The connection is gone after the first bytes."""
    response = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(b'{"bars": {')
    assert request.transport is not None
    request.transport.abort()
    return response


async def passes(request: web.Request) -> None:
    """Nothing is wrong with this call."""
