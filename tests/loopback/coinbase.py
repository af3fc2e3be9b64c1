"""A Coinbase Exchange of one's own: newest first, 300 at most, and a wider range is refused."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from aiohttp import web

from domain.bar import Bar
from domain.clock import Clock
from domain.timeframe import Timeframe
from tests.loopback.exchange import Listed, LoopbackExchange, RefusalError, listed
from tests.loopback.faults import Rows

PAIRS = ("BTC/USD", "ETH/USD", "LTC/USD")
_MOST = 300
_TIMEFRAMES = {60: Timeframe.M1, 300: Timeframe.M5, 900: Timeframe.M15, 3600: Timeframe.H1, 21600: Timeframe.H6}
_TIMEFRAMES[86400] = Timeframe.D1


class CoinbaseLoopback(LoopbackExchange):
    """Rows are `[time_s, low, high, open, close, volume]`, numbers, newest first; both ends are inclusive."""

    def __init__(
        self, bars: Mapping[str, Sequence[Bar]], *, symbols: Sequence[Listed] | None = None, clock: Clock | None = None
    ) -> None:
        super().__init__(bars, symbols=symbols or listed(*PAIRS, separator="-"), clock=clock)

    @property
    def provider(self) -> str:
        return "coinbaseexchange"

    @property
    def ccxt_urls(self) -> dict[str, object]:
        return {"urls": {"api": {"public": self.url}}}

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get("/products", self._products)
        router.add_get("/products/{id}/candles", self._candles)

    async def _products(self, request: web.Request) -> web.StreamResponse:
        return await self.answer_listing(request, [_product(one) for one in self.listed.values()])

    async def _candles(self, request: web.Request) -> web.StreamResponse:
        id_, query = request.match_info["id"], request.query
        if id_ not in self.listed:
            raise RefusalError(404, {"message": "NotFound"})
        seconds = int(query.get("granularity", 60))
        if seconds not in _TIMEFRAMES:
            raise RefusalError(400, {"message": "Unsupported granularity"})
        bars = self.bars(id_, _TIMEFRAMES[seconds])[::-1]
        if "start" in query:
            start_ms, end_ms = _ms(query["start"]), _ms(query["end"])
            if (end_ms - start_ms) // (seconds * 1000) + 1 > _MOST:
                text = "granularity too small for the requested time range. Count of aggregations requested exceeds 300"
                raise RefusalError(400, {"message": text})
            bars = [bar for bar in bars if start_ms <= bar.ts <= end_ms]
        return await self.answer_bars(request, bars[:_MOST], _rows)


def _ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def _rows(rows: Rows) -> object:
    return [
        [_seconds(ts), *map(_number, (low, high, open_, close, volume))] for ts, open_, high, low, close, volume in rows
    ]


def _number(value: object) -> object:
    """JSON has no NaN: a venue can only send it as text."""
    return "NaN" if value != value else value  # noqa: PLR0124


def _seconds(ts: object) -> object:
    return ts // 1000 if isinstance(ts, int) else ts


def _product(one: Listed) -> dict[str, object]:
    return {
        "id": one.id,
        "base_currency": one.base,
        "quote_currency": one.quote,
        "quote_increment": "0.01",
        "base_increment": "0.00000001",
        "min_market_funds": "1",
        "margin_enabled": False,
        "status": "online",
        "trading_disabled": False,
    }
