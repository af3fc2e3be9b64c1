"""An exchange's market map: loaded once, renewed now and then, and never replaced by a worse one."""

import asyncio
import logging
import pickle
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from plugins.base import NetworkPluginError, PluginError, SymbolInfo

log = logging.getLogger(__name__)

#: How long a map is good for, and how long to wait after it could not be renewed; seconds.
RENEW_AFTER_S = 3600.0
RETRY_AFTER_S = 60.0
#: A new map with fewer than this share of the old one's symbols is taken for half an answer.
_LEAST_SHARE = 0.5


class MarketMap:
    """The markets of one exchange of CCXT, whose own reloading empties the map when the answer is rubbish."""

    def __init__(
        self, exchange: Any, fetch: Callable[[], Awaitable[object]], *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Take the exchange that needs the map, how to ask it for its markets, and a clock."""
        self._exchange = exchange
        self._fetch = fetch
        self._monotonic = monotonic
        self._turn = asyncio.Lock()
        self._symbols: Mapping[str, SymbolInfo] = {}
        self._due = 0.0

    async def symbols(self) -> Mapping[str, SymbolInfo]:
        """The symbols by name; concurrent first calls load them once, and an old map serves while it is renewed.

        Raises:
            PluginError: there is no map yet, and none could be had.
        """
        while not self._symbols or (self._monotonic() >= self._due and not self._turn.locked()):
            async with self._turn:
                if not self._symbols or self._monotonic() >= self._due:
                    await self._renew()
        return self._symbols

    async def _renew(self) -> None:
        try:
            await self._accept(await _compact(await self._fetch()))
        except PluginError as exc:
            self._due = self._monotonic() + RETRY_AFTER_S
            if not self._symbols:
                raise
            log.warning("the market map of %s stays as it was: %s", self._exchange.id, exc)

    async def _accept(self, markets: object) -> None:
        listed = [market for market in markets if _is_market(market)] if isinstance(markets, list) else []
        if not listed:
            raise NetworkPluginError(f"{self._exchange.id} listed no markets")
        if len(listed) < _LEAST_SHARE * len(self._symbols):
            raise NetworkPluginError(f"{self._exchange.id} listed {len(listed)} of {len(self._symbols)} markets")
        # CCXT builds its maps aside and puts them in place when they are whole; for Binance in a quarter of a second.
        await asyncio.to_thread(self._exchange.set_markets, listed)
        self._symbols = {symbol: _info(symbol, market) for symbol, market in self._exchange.markets.items()}
        self._due = self._monotonic() + RENEW_AFTER_S


def _is_market(market: object) -> bool:
    return isinstance(market, dict) and bool(market.get("symbol")) and bool(market.get("id"))


async def _compact(markets: object) -> object:
    """The markets in memory of their own, without the lists of what the exchange itself said of each.

    Those are orders' kinds, filters and permissions: nobody here trades. Binance's are most of 14 MB of JSON, and
    what stays of it would hold on to nearly all of the memory that it took, between the rest.
    """
    if not isinstance(markets, list):
        return markets
    packed = await asyncio.to_thread(_all_packed, markets)
    # Before the others take their place.
    del markets
    return await asyncio.to_thread(_unpacked, packed)


def _all_packed(markets: list[object]) -> list[bytes]:
    return [_packed(market) for market in markets]


def _unpacked(markets: list[bytes]) -> list[object]:
    return [pickle.loads(market) for market in markets]  # noqa: S301 - made above


def _packed(market: object) -> bytes:
    told = market.get("info") if isinstance(market, dict) else None
    if isinstance(market, dict) and isinstance(told, dict):
        market = market | {"info": {key: value for key, value in told.items() if not isinstance(value, list)}}
    return pickle.dumps(market, pickle.HIGHEST_PROTOCOL)


def _info(symbol: str, market: Mapping[str, Any]) -> SymbolInfo:
    created = market.get("created")
    return SymbolInfo(
        symbol,
        type=str(market.get("type") or ""),
        active=market.get("active") is not False,
        listed_ms=created if isinstance(created, int) and created > 0 else None,
    )
