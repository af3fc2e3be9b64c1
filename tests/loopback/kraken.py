"""A Kraken of one's own: only the newest 720 bars whatever is asked, and errors with status 200."""

from collections.abc import Mapping, Sequence

from aiohttp import web

from domain.bar import Bar
from domain.clock import Clock
from domain.timeframe import Timeframe
from tests.loopback.exchange import Listed, LoopbackExchange, RefusalError, decimal, listed
from tests.loopback.faults import Rows

PAIRS = ("BTC/USD", "ETH/USD", "LTC/USD")
MOST = 720
_TIMEFRAMES = {
    "1": Timeframe.M1,
    "5": Timeframe.M5,
    "15": Timeframe.M15,
    "30": Timeframe.M30,
    "60": Timeframe.H1,
    "240": Timeframe.H4,
    "1440": Timeframe.D1,
}


class KrakenLoopback(LoopbackExchange):
    """Rows are `[time_s, open, high, low, close, vwap, volume, count]`, ascending; `since` itself is left out."""

    def __init__(
        self, bars: Mapping[str, Sequence[Bar]], *, symbols: Sequence[Listed] | None = None, clock: Clock | None = None
    ) -> None:
        super().__init__(bars, symbols=symbols or listed(*PAIRS), clock=clock)

    @property
    def provider(self) -> str:
        return "kraken"

    @property
    def ccxt_urls(self) -> dict[str, object]:
        # There is no stream; a client that wants one is refused here and asks nobody else.
        stream = f"{self.url.replace('http', 'ws', 1)}/none"
        return {"urls": {"api": {"public": self.url, "ws": {"public": stream, "publicV2": stream}}}}

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get("/0/public/AssetPairs", self._pairs)
        router.add_get("/0/public/OHLC", self._ohlc)

    async def _pairs(self, request: web.Request) -> web.StreamResponse:
        pairs = {one.id: _pair(one) for one in self.listed.values()}
        return await self.answer_listing(request, {"error": [], "result": pairs})

    async def _ohlc(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        id_ = query.get("pair", "")
        if id_ not in self.listed:
            raise RefusalError(200, {"error": ["EQuery:Unknown asset pair"]})
        if query.get("interval", "1") not in _TIMEFRAMES:
            raise RefusalError(200, {"error": ["EGeneral:Invalid arguments"]})
        newest = self.bars(id_, _TIMEFRAMES[query.get("interval", "1")])[-MOST:]
        since_ms = int(query.get("since", 0)) * 1000
        page = [bar for bar in newest if bar.ts > since_ms]
        return await self.answer_bars(request, page, lambda rows: _answer(id_, rows))


def _answer(id_: str, rows: Rows) -> object:
    last = rows[-2][0] if len(rows) > 1 else None
    return {"error": [], "result": {id_: [_row(row) for row in rows], "last": _seconds(last)}}


def _row(row: list[object]) -> list[object]:
    ts, open_, high, low, close, volume = row
    return [_seconds(ts), *map(decimal, (open_, high, low, close, close, volume)), 1]


def _seconds(ts: object) -> object:
    return ts // 1000 if isinstance(ts, int) else ts


def _pair(one: Listed) -> dict[str, object]:
    return {
        "altname": one.id,
        "wsname": one.unified,
        "aclass_base": "currency",
        "base": one.base,
        "aclass_quote": "currency",
        "quote": one.quote,
        "lot": "unit",
        "pair_decimals": 2,
        "lot_decimals": 8,
        "leverage_buy": [],
        "leverage_sell": [],
        "fees": [[0, 0.26]],
        "fees_maker": [[0, 0.16]],
        "ordermin": "0.0001",
        "costmin": "0.5",
        "tick_size": "0.01",
        "status": "online",
    }
