"""Crypto exchanges through CCXT: any of its ids, one exchange an instance."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from domain.time_range import TimeRange
from domain.timeframe import Timeframe
from plugins.base import (
    Capabilities,
    LiveBars,
    MarketPlugin,
    Page,
    PluginConfig,
    PluginError,
    PluginFeatureNotSupportedError,
    ProviderInfo,
    SymbolInfo,
    SymbolNotFoundPluginError,
)
from plugins.ccxt_client import Answer, make_exchange, watched
from plugins.ccxt_errors import translate, venue_ms
from plugins.ccxt_live import Streams
from plugins.ccxt_markets import MarketMap
from plugins.ccxt_paging import Ask, plan, read_page
from plugins.ccxt_rules import (
    DEFAULT_EXCHANGES,
    Reach,
    VenueRules,
    check_exchange,
    display_name,
    rules_of,
    usable_timeframes,
)
from plugins.ccxt_stream import make_stream

#: How long after its end a bar may still change.
_SETTLE_MS = 2_000
#: Where the operator has switched CCXT's rate limiting off, the services need not limit either.
_UNLIMITED_PER_S = 1_000.0


class CryptoPlugin(MarketPlugin):
    """One exchange of CCXT. `PluginConfig.options` are merged deeply into its constructor's settings.

    Two limiters do not fight: the services' budget allows what CCXT's own limiter does, so that this one hardly ever
    has to wait; `enableRateLimit: false` among the options switches both off.
    """

    def __init__(self, config: PluginConfig) -> None:
        """Store what the instance is made with."""
        super().__init__(config)
        self._turn = asyncio.Lock()
        self._rules = rules_of(config.provider)
        self._exchange: Any = None
        self._markets: MarketMap | None = None
        self._capabilities: Capabilities | None = None
        self._streams: Streams | None = None
        #: Time of the latest bar seen by symbol and timeframe: an answer that denies it is wrong.
        self._latest_ms: dict[tuple[str, Timeframe], int] = {}

    @classmethod
    def get_plugin_key(cls) -> str:
        """`crypto`."""
        return "crypto"

    @classmethod
    def get_supported_markets(cls) -> Sequence[str]:
        """`crypto`."""
        return ("crypto",)

    @classmethod
    def list_configurable_providers(cls, options: Mapping[str, object]) -> Sequence[ProviderInfo]:
        """The exchanges that `options["exchanges"]` names, or the usual ones. Does not import CCXT.

        Raises:
            PluginFeatureNotSupportedError: one of them is no exchange of CCXT.
        """
        named = options.get("exchanges") or DEFAULT_EXCHANGES
        if isinstance(named, str) or not isinstance(named, Sequence):
            raise PluginError(f"the option exchanges is {named!r}, not a list of CCXT exchange ids")
        ids = dict.fromkeys(check_exchange(str(one)) for one in named)
        return [ProviderInfo(one, display_name(one)) for one in ids]

    @property
    def capabilities(self) -> Capabilities:
        """What CCXT says of the exchange, and what is known of how it pages."""
        if self._capabilities is None:
            raise PluginError(f"{self.config.provider} is not open")
        return self._capabilities

    async def open(self) -> None:
        """Import the exchange, which takes a tenth of a second or two, and set it up. Calls nobody."""
        check_exchange(self.config.provider)
        async with self._turn:
            if self._exchange is not None:
                return
            try:
                exchange = await asyncio.to_thread(make_exchange, self.config)
                streams = await asyncio.to_thread(make_stream, self.config) is not None
            except Exception as exc:
                raise _setup_error(self.config.provider, exc) from exc
            self._exchange = exchange
            self._markets = MarketMap(exchange, self._fetch_markets)
            self._capabilities = _capabilities(exchange, self._rules, streams=streams)
            self._streams = Streams(self.config)

    async def close(self) -> None:
        """Close the exchange's connections; whoever listens to a stream gets an error."""
        async with self._turn:
            exchange, self._exchange, self._markets = self._exchange, None, None
            streams, self._streams = self._streams, None
            if streams is not None:
                await streams.close()
            if exchange is not None:
                await exchange.close()

    async def fetch_symbols(self) -> Mapping[str, SymbolInfo]:
        """The exchange's markets by unified symbol (`BTC/USDT`, `BTC/USDT:USDT`), at most an hour old."""
        if self._markets is None:
            raise PluginError(f"{self.config.provider} is not open")
        return await self._markets.symbols()

    async def fetch_page(self, symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Page:
        """Ask once, for the beginning of the range; the first call of all loads the markets before."""
        if symbol not in await self.fetch_symbols():
            raise SymbolNotFoundPluginError(f"{self.config.provider} has no symbol {symbol!r}")
        if timeframe not in self.capabilities.timeframes:
            raise PluginFeatureNotSupportedError(f"{self.config.provider} has no bars of {timeframe.value}")
        ask = self._plan(symbol, timeframe, wanted)
        async with self._calling() as (exchange, answer):
            since_ms, params = ask.window.start_ms, self._params(ask)
            rows = await exchange.fetch_ohlcv(symbol, timeframe.value, since_ms, ask.limit, params)
        return self._page(symbol, ask, rows, answer)

    async def live_minutes(self, symbol: str) -> AsyncGenerator[LiveBars, None]:
        """Minutes of a symbol as they form; all symbols share one connection, where the exchange lets them."""
        if symbol not in await self.fetch_symbols():
            raise SymbolNotFoundPluginError(f"{self.config.provider} has no symbol {symbol!r}")
        if self.capabilities.live != "stream":
            raise PluginFeatureNotSupportedError(f"{self.config.provider} has no stream of minutes")
        if self._streams is None:
            raise PluginError(f"{self.config.provider} is not open")
        async with aclosing(self._streams.minutes(symbol, self._exchange)) as minutes:
            async for told in minutes:
                yield told

    def doubt(self, symbol: str) -> None:
        """Give up a connection that is mute for several symbols."""
        if self._streams is not None:
            self._streams.doubt(symbol)

    def _plan(self, symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Ask:
        market = self._exchange.markets[symbol]
        # CCXT bounds the stretch for Binance's inverse contracts.
        bounded = market.get("inverse") is True and self._rules.reach is Reach.SINCE
        reach = Reach.WINDOW if bounded else self._rules.reach
        cap = min(self._rules.cap, _documented_cap(self._exchange, market) or self._rules.cap)
        return plan(timeframe, wanted, reach=reach, cap=cap)

    def _params(self, ask: Ask) -> dict[str, object]:
        return {"until": ask.window.end_ms - 1} if self._rules.until else {}

    def _page(self, symbol: str, ask: Ask, rows: object, answer: Answer) -> Page:
        told_ms = venue_ms(answer.headers)
        now_ms = max(told_ms or 0, time.time_ns() // 1_000_000)
        key = (symbol, ask.timeframe)
        page = read_page(ask, rows if isinstance(rows, list) else [], now_ms=now_ms, known_ms=self._latest_ms.get(key))
        if page.bars:
            self._latest_ms[key] = max(page.bars[-1].ts, self._latest_ms.get(key, 0))
        return Page(page.bars, page.covered, page.rejected, told_ms)

    async def _fetch_markets(self) -> object:
        async with self._calling() as (exchange, _):
            return await exchange.fetch_markets()

    @asynccontextmanager
    async def _calling(self) -> AsyncIterator[tuple[Any, Answer]]:
        """Call the exchange within; whatever goes wrong there comes out as a plugin error."""
        if self._exchange is None:
            raise PluginError(f"{self.config.provider} is not open")
        with watched() as answer:
            try:
                yield self._exchange, answer
            except PluginError:
                raise
            except Exception as exc:
                raise translate(exc, status=answer.status, headers=answer.headers) from exc


def _setup_error(provider: str, exc: Exception) -> PluginError:
    error = translate(exc, status=None, headers={})
    return error if type(error) is PluginFeatureNotSupportedError else PluginError(f"{provider}: {error.detail}")


def _capabilities(exchange: Any, rules: VenueRules, *, streams: bool) -> Capabilities:
    has_bars = exchange.has.get("fetchOHLCV") is True
    cap = min(rules.cap, _documented_cap(exchange, {"spot": True}) or rules.cap)
    limited = bool(exchange.enableRateLimit) and exchange.rateLimit > 0
    return Capabilities(
        timeframes=usable_timeframes(exchange.timeframes or {}, rules) if has_bars else (),
        bars_per_call=cap,
        history_bars=rules.history_bars,
        settle_ms=_SETTLE_MS,
        calls_per_second=1000 / exchange.rateLimit if limited else _UNLIMITED_PER_S,
        live="stream" if streams else "poll",
    )


def _documented_cap(exchange: Any, market: Mapping[str, Any]) -> int | None:
    """Most bars in one answer by CCXT's `features`, where they say."""
    path = (
        ["spot"] if market.get("spot") else [str(market.get("type")), "inverse" if market.get("inverse") else "linear"]
    )
    features: Any = exchange.features
    for key in (*path, "fetchOHLCV", "limit"):
        features = features.get(key) if isinstance(features, dict) else None
    return features if isinstance(features, int) and features > 0 else None
