"""Alpaca Market Data v2: bars of US stocks and of crypto pairs, over REST and as they are streamed.

Facts from outside, and where they are from:

* `start` and `end` are both inclusive; a page may hold fewer rows than `limit` though there are more, and only
  `next_page_token` tells (https://docs.alpaca.markets/reference/stockbars, .../cryptobars-1).
* Bars of several hours begin at multiples of that many hours in New York, not in UTC
  (https://forum.alpaca.markets/t/14632), so stocks have nothing between `1h` and `1d` here.
* Daily bars of stocks are stamped with midnight in New York. Those of crypto were stamped with midnight in Chicago
  until about July 2025, and in UTC since (https://github.com/alpacahq/alpaca-py/issues/169,
  https://github.com/Lumiwealth/lumibot/pull/826), so they are folded from hours instead.
* Trades may be reported 10 s late, and a bar is then sent anew half a minute after its end
  (https://forum.alpaca.markets/t/8947): minutes settle for 60 s.
* 200 calls a minute; `X-RateLimit-Reset` is in epoch seconds (https://forum.alpaca.markets/t/12029).
* 403 stands for a wrong key and for a missing subscription alike; only the message tells
  (https://docs.alpaca.markets/docs/market-data-faq); older answers to the latter were 422.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from domain.clock import SystemClock
from domain.time_range import TimeRange
from domain.timeframe import Timeframe
from plugins.alpaca_line import Access
from plugins.alpaca_live import AlpacaStream
from plugins.alpaca_rows import RowReader, new_york_midnight, rfc3339, to_session_time
from plugins.base import (
    AuthenticationPluginError,
    Capabilities,
    LiveBars,
    MarketPlugin,
    NetworkPluginError,
    Page,
    PluginConfig,
    PluginError,
    PluginFeatureNotSupportedError,
    ProviderInfo,
    RateLimitPluginError,
    SymbolInfo,
    SymbolNotFoundPluginError,
)

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger(__name__)

_NAMES = {
    Timeframe.M1: "1Min",
    Timeframe.M5: "5Min",
    Timeframe.M15: "15Min",
    Timeframe.M30: "30Min",
    Timeframe.H1: "1Hour",
    Timeframe.D1: "1Day",
}
_BARS_PER_CALL = 10_000
#: Rows read at a stretch, so that nobody waits for more than a few milliseconds.
_CHUNK = 1_000
#: A page may be empty though another one follows.
_EMPTY_PAGES = 5
_LONGEST_WAIT_S = 3_600.0
_KEYS = "CANDLERY_ALPACA_KEY_ID and CANDLERY_ALPACA_SECRET_KEY"
_QUOTES = ("USDT", "USDC", "USD", "BTC")
#: Feeds whose stream is not under `/v2` (https://docs.alpaca.markets/docs/real-time-stock-pricing-data).
_BETA_FEEDS = frozenset({"boats", "overnight"})


class _Market(NamedTuple):
    """What differs between the two markets."""

    bars_path: str
    asset_class: str
    symbol_type: str
    calendar: str | None
    capabilities: Capabilities


def _capabilities(timeframes: Sequence[Timeframe], folds_below: Timeframe | None) -> Capabilities:
    return Capabilities(
        timeframes=tuple(timeframes),
        bars_per_call=_BARS_PER_CALL,
        folds_below=folds_below,
        settle_ms=60_000,
        calls_per_second=200 / 60,
        live="stream",
        one_stream=True,
    )


_MARKETS = {
    "stocks": _Market("/v2/stocks/bars", "us_equity", "stock", "XNYS", _capabilities(list(_NAMES), Timeframe.D1)),
    "crypto": _Market("/v1beta3/crypto/us/bars", "crypto", "crypto", None, _capabilities(list(_NAMES)[:-1], None)),
}


class _Answer(NamedTuple):
    """A decoded answer and Alpaca's clock when it was given, in UTC epoch milliseconds."""

    body: object
    venue_ms: int | None


class AlpacaPlugin(MarketPlugin):
    """One market of Alpaca.

    Options: `market` (`stocks` or `crypto`), `data_url`, `trading_url`, `stream_url`, `feed` (stocks: `iex`, `sip`,
    `delayed_sip` ...).
    """

    def __init__(self, config: PluginConfig) -> None:
        """Store the settings."""
        super().__init__(config)
        market = config.options.get("market", "stocks")
        if not isinstance(market, str) or market not in _MARKETS:
            raise PluginError(f"Alpaca has no market {market!r}; its markets are {' and '.join(_MARKETS)}")
        self._market = _MARKETS[market]
        self._data_url = str(config.options.get("data_url") or "https://data.alpaca.markets").rstrip("/")
        self._trading_url = str(config.options.get("trading_url") or "https://paper-api.alpaca.markets").rstrip("/")
        self._feed = str(config.options.get("feed") or "iex")
        self._session: aiohttp.ClientSession | None = None
        access = Access(self._stream_url(), config.credentials, config.timeout_s, self._scrubbed)
        self._stream = AlpacaStream(access)

    @classmethod
    def get_plugin_key(cls) -> str:
        """`alpaca`."""
        return "alpaca"

    @classmethod
    def get_supported_markets(cls) -> Sequence[str]:
        """`stocks` and `crypto`."""
        return tuple(_MARKETS)

    @classmethod
    def list_configurable_providers(cls, options: Mapping[str, object]) -> Sequence[ProviderInfo]:  # noqa: ARG003
        """Alpaca, in both markets."""
        return (ProviderInfo("alpaca", "Alpaca", needs_credentials=True),)

    @classmethod
    def default_calendar(cls, market: str) -> str | None:
        """New York's for stocks."""
        return _MARKETS[market].calendar if market in _MARKETS else None

    @property
    def capabilities(self) -> Capabilities:
        """What the market offers."""
        return self._market.capabilities

    async def open(self) -> None:
        """Make the HTTP sessions; nothing is asked."""
        import aiohttp  # noqa: PLC0415 - a third of a second that only those pay who use it

        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=self.config.timeout_s)
            self._session = aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())
        self._stream.open()

    async def close(self) -> None:
        """End the stream, and close the HTTP sessions."""
        await self._stream.close()
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def fetch_symbols(self) -> Mapping[str, SymbolInfo]:
        """The active assets of the market's class."""
        params = {"status": "active", "asset_class": self._market.asset_class}
        answer = await self._request_api("GET", f"{self._trading_url}/v2/assets", params)
        if not isinstance(answer.body, list):
            raise NetworkPluginError("Alpaca's list of assets is no list")
        infos = [info for asset in answer.body if (info := self._symbol_info(asset)) is not None]
        if not infos:
            raise NetworkPluginError(f"Alpaca lists no {self._market.asset_class} assets")
        if len(infos) < len(answer.body):
            log.warning("Alpaca: %d assets could not be read", len(answer.body) - len(infos))
        return {info.symbol: info for info in infos}

    def _symbol_info(self, asset: object) -> SymbolInfo | None:
        if not isinstance(asset, dict) or asset.get("class", self._market.asset_class) != self._market.asset_class:
            return None
        symbol, name = asset.get("symbol"), asset.get("name")
        if not isinstance(symbol, str) or not symbol:
            return None
        return SymbolInfo(
            symbol if self._market.asset_class != "crypto" else _slashed(symbol),
            name if isinstance(name, str) else "",
            self._market.symbol_type,
            active=asset.get("status", "active") == "active",
            calendar=self._market.calendar,
        )

    async def fetch_page(self, symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Page:
        """Ask once; a page that another one follows accounts for no more than its last row."""
        if timeframe not in self.capabilities.timeframes:
            raise PluginFeatureNotSupportedError(f"Alpaca's own {timeframe.value} bars are not used")
        params = self._bars_params(symbol, timeframe, wanted)
        rows, token, venue_ms = await self._ask_for_bars(symbol, params)
        hops = 0
        while not rows and token is not None and hops < _EMPTY_PAGES:
            rows, token, venue_ms = await self._ask_for_bars(symbol, {**params, "page_token": token})
            hops += 1
        reader = RowReader(timeframe, wanted)
        for start in range(0, len(rows), _CHUNK):
            reader.read(rows[start : start + _CHUNK])
            await asyncio.sleep(0)
        page = reader.page(is_last=token is None)
        if timeframe is Timeframe.D1:
            # A session date ends with New York's day, hours after UTC's.
            venue_ms = to_session_time(SystemClock().now_ms() if venue_ms is None else venue_ms)
        return Page(page.bars, page.covered, page.rejected, venue_ms)

    async def live_minutes(self, symbol: str) -> AsyncGenerator[LiveBars, None]:
        """Each minute once it is over, and again where late trades changed it; one connection for all symbols.

        Raises:
            PluginError: the stream has ended. RateLimitPluginError: the account's only connection is in use.
        """
        self._auth_headers()
        async with aclosing(self._stream.minutes(symbol)) as minutes:
            async for told in minutes:
                yield told

    def doubt(self, symbol: str) -> None:
        """Give up a connection that is mute for several symbols."""
        self._stream.doubt(symbol)

    def _stream_url(self) -> str:
        base = str(self.config.options.get("stream_url") or "wss://stream.data.alpaca.markets").rstrip("/")
        if self._market.asset_class == "crypto":
            return f"{base}/v1beta3/crypto/us"
        return f"{base}/{'v1beta1' if self._feed in _BETA_FEEDS else 'v2'}/{self._feed}"

    def _bars_params(self, symbol: str, timeframe: Timeframe, wanted: TimeRange) -> dict[str, str]:
        start_ms, end_ms = wanted
        if timeframe is Timeframe.D1:
            start_ms, end_ms = new_york_midnight(start_ms), new_york_midnight(end_ms)
        params = {
            "symbols": symbol,
            "timeframe": _NAMES[timeframe],
            "start": rfc3339(start_ms),
            "end": rfc3339(end_ms - 1),
            "limit": str(_BARS_PER_CALL),
            "sort": "asc",
        }
        if self._market.asset_class == "us_equity":
            params |= {"adjustment": "raw", "feed": self._feed}
        return params

    async def _ask_for_bars(
        self, symbol: str, params: Mapping[str, str]
    ) -> tuple[list[object], str | None, int | None]:
        answer = await self._request_api("GET", self._data_url + self._market.bars_path, params)
        body = answer.body
        if not isinstance(body, dict) or (body and "bars" not in body):
            raise NetworkPluginError("Alpaca's answer holds no bars")
        bars, token = body.get("bars"), body.get("next_page_token")
        rows = bars.get(symbol) if isinstance(bars, dict) else bars
        if rows is not None and not isinstance(rows, list):
            raise NetworkPluginError("Alpaca's bars are no list")
        if isinstance(bars, list) or not (token is None or isinstance(token, str)):
            raise NetworkPluginError("Alpaca's answer is not made like a page of bars")
        return rows or [], token or None, answer.venue_ms

    async def _request_api(self, method: str, url: str, params: Mapping[str, str]) -> _Answer:
        """One call. What goes wrong is told by the status first, and by the message only where that is ambiguous."""
        import aiohttp  # noqa: PLC0415 - see open()

        headers = self._auth_headers()
        if self._session is None:
            raise PluginError("the Alpaca plugin is not open")
        try:
            # Elsewhere the headers with the secrets have no business.
            async with self._session.request(
                method, url, params=params, headers=headers, allow_redirects=False
            ) as response:
                content = await response.read()
        except TimeoutError as exc:
            raise NetworkPluginError(f"Alpaca did not answer within {self.config.timeout_s:g} s") from exc
        except aiohttp.InvalidURL as exc:
            raise PluginError("the address of Alpaca in the settings is no URL") from exc
        except (aiohttp.ClientError, OSError) as exc:
            # Not chained: some of these hold the request's headers.
            raise NetworkPluginError(f"Alpaca cannot be reached: {self._scrubbed(str(exc))}") from None
        except ValueError:
            raise AuthenticationPluginError(f"{_KEYS} hold characters that no key has") from None
        if response.status != 200:  # noqa: PLR2004
            raise self._error(response.status, response.headers, content)
        try:
            return _Answer(msgspec.json.decode(content), _date_ms(response.headers))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise NetworkPluginError(f"Alpaca answered something that is not JSON: {exc}") from exc

    def _auth_headers(self) -> dict[str, str]:
        credentials = self.config.credentials
        if not credentials.key or not credentials.secret:
            raise AuthenticationPluginError(f"Alpaca wants keys: set {_KEYS}")
        return {"APCA-API-KEY-ID": credentials.key, "APCA-API-SECRET-KEY": credentials.secret}

    def _error(self, status: int, headers: Mapping[str, str], content: bytes) -> PluginError:
        """The status table."""
        message = self._scrubbed(_message(content))
        said = f"Alpaca answered {status}" + (f": {message}" if message else "")
        lower = message.lower()
        if status in {403, 422} and "subscription" in lower:
            hint = "set CANDLERY_ALPACA_FEED=iex, or ask for what is older than 15 minutes"
            return PluginFeatureNotSupportedError(f"{said} ({hint})")
        if status in {401, 403}:
            return AuthenticationPluginError(f"{said} (see {_KEYS})")
        if status == 429:  # noqa: PLR2004
            return RateLimitPluginError(said, retry_after_s=_retry_after_s(headers))
        if status >= 500 or status == 408:  # noqa: PLR2004
            return NetworkPluginError(said, retry_after_s=_retry_after_s(headers))
        if status in {400, 404, 422} and "invalid symbol" in lower:
            return SymbolNotFoundPluginError(said)
        return PluginError(said)

    def _scrubbed(self, text: str) -> str:
        """The text without the secrets, should Alpaca or a proxy repeat them."""
        for secret in (self.config.credentials.secret, self.config.credentials.key):
            text = text.replace(secret, "***") if secret else text
        return text


def _slashed(symbol: str) -> str:
    """`BTC/USD`, also where the list of assets has the older `BTCUSD`."""
    if "/" in symbol:
        return symbol
    quote = next((quote for quote in _QUOTES if symbol.endswith(quote) and symbol != quote), "")
    return f"{symbol.removesuffix(quote)}/{quote}" if quote else symbol


def _message(content: bytes) -> str:
    """What an error's body says to people; nothing where it is a web page."""
    try:
        body = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text = content[:2_000].decode(errors="replace").strip()
        return "" if text.startswith("<") else " ".join(text.split())[:200]
    message = body.get("message") if isinstance(body, dict) else body
    return " ".join(message.split())[:200] if isinstance(message, str) else ""


def _date_ms(headers: Mapping[str, str]) -> int | None:
    """The provider's clock, to the second."""
    try:
        return int(parsedate_to_datetime(headers["Date"]).timestamp()) * 1000
    except (KeyError, ValueError, OverflowError):
        return None


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """How long to wait: `Retry-After` in seconds, or until the rate limit is reset, by the provider's clock."""
    wait_s = _seconds(headers.get("Retry-After"))
    reset_s = _seconds(headers.get("X-RateLimit-Reset"))
    if wait_s is None and reset_s is not None:
        now_ms = _date_ms(headers)
        wait_s = reset_s - (SystemClock().now_ms() if now_ms is None else now_ms) / 1000
    return None if wait_s is None else min(max(wait_s, 0.0), _LONGEST_WAIT_S)


def _seconds(text: str | None) -> float | None:
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return seconds if isfinite(seconds) else None
