"""The contract of a market plugin: what a provider offers, one page of bars at a time, and how it fails."""

import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import ClassVar

import msgspec

from domain.bar import Bar
from domain.errors import CandleryError
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import Timeframe

#: Providers answer with pages of HTML, and with characters that no database takes.
LONGEST_DETAIL = 1_000
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
#: A provider that asks to be left alone for longer is asked again after a day.
LONGEST_WAIT_S = 86_400.0


class PluginError(CandleryError):
    """The provider could not answer. Root of what a plugin raises; by itself it means: give up."""

    #: Whether asking again soon can help.
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str | None = None, *, retry_after_s: float | None = None) -> None:
        """Take the words for the operator, and how long the provider asked to be left alone, in seconds."""
        super().__init__(None if detail is None else _UNPRINTABLE.sub("?", detail)[:LONGEST_DETAIL])
        self.retry_after_s = None if retry_after_s is None else min(max(retry_after_s, 0.0), LONGEST_WAIT_S)


class AuthenticationPluginError(PluginError):
    """The provider refused the credentials, or wants some: give up until they are mended."""


class NetworkPluginError(PluginError):
    """The provider could not be reached or answered rubbish: retry."""

    retryable = True


class RateLimitPluginError(PluginError):
    """The provider asked for fewer calls: wait `retry_after_s`, then retry."""

    retryable = True


class SymbolNotFoundPluginError(PluginError):
    """The provider has no such symbol: give up."""


class PluginFeatureNotSupportedError(PluginError):
    """The provider does not offer this: give up."""


class ProviderInfo(msgspec.Struct, frozen=True):
    """A provider that a plugin can serve, as it is listed before any instance exists."""

    id: str
    name: str
    needs_credentials: bool = False


class Capabilities(msgspec.Struct, frozen=True):
    """What one provider can do.

    Attributes:
        timeframes: native timeframes, those the provider itself answers for.
        bars_per_call: most bars in one answer.
        history_bars: only so many newest bars of a timeframe can be had at all; None: no such limit.
        folds_below: minutes may be folded into timeframes below this one; None: into all
            (an official daily bar of a stock is not its minutes).
        settle_ms: how long after its end a bar may still change before it counts as final.
        vouches_empty: the provider's silence about a minute is proof that nothing traded.
        calls_per_second: what the provider's rate limit allows a credential.
        live: `stream` or `poll`.
        one_stream: an account may have one connection to the stream at a time, whatever number of processes uses it.
        simulated: the bars are made up, and must be labelled so wherever they are shown.
    """

    timeframes: tuple[Timeframe, ...]
    bars_per_call: int
    history_bars: int | None = None
    folds_below: Timeframe | None = None
    settle_ms: int = 2_000
    vouches_empty: bool = False
    calls_per_second: float = 5.0
    live: str = "poll"
    one_stream: bool = False
    simulated: bool = False

    def can_serve(self, timeframe: Timeframe) -> bool:
        """Whether bars of the timeframe can be had, as the provider's own or folded from them."""
        return self.native_for(timeframe) is not None

    def native_for(self, timeframe: Timeframe) -> Timeframe | None:
        """The coarsest timeframe of the provider that makes up `timeframe`; None where none does."""
        if timeframe in self.timeframes:
            return timeframe
        able = [own for own in self.timeframes if own.divides(timeframe)]
        limit = self.folds_below
        if limit is not None and timeframe.nominal_ms >= limit.nominal_ms:
            able = [own for own in able if own.nominal_ms >= limit.nominal_ms]
        return max(able, key=lambda own: own.nominal_ms, default=None)


class SymbolInfo(msgspec.Struct, frozen=True):
    """A symbol as the provider lists it.

    Attributes:
        symbol: Candlery's name for it (`BTC/USDT`, `SPY`).
        name: what people call it, where the provider says.
        type: `spot`, `swap`, `future`, `stock`, `crypto` ...
        active: whether it trades now.
        calendar: the exchange calendar it keeps (`XNYS`); None: around the clock.
        listed_ms: first instant it can have traded, where the provider says so.
    """

    symbol: str
    name: str = ""
    type: str = ""
    active: bool = True
    calendar: str | None = None
    listed_ms: int | None = None


class Page(msgspec.Struct, frozen=True):
    """One answer of a provider.

    Attributes:
        bars: valid native bars inside the range that was asked for, ascending, one a `ts`; may hold the forming bar.
        covered: the part of that range which this answer accounts for: a bucket in it without a bar had none, as
            far as the provider says. An answer that was cut short covers only what it reaches, and a bucket whose
            row was thrown away is not covered.
        rejected: what was wrong with each row that was thrown away.
        venue_ms: the provider's own clock when it answered, where it says; UTC epoch milliseconds.
        vouched: False where a provider that usually vouches for emptiness does not do so here.
    """

    bars: Sequence[Bar]
    covered: RangeSet
    rejected: Sequence[str] = ()
    venue_ms: int | None = None
    vouched: bool = True


class LiveBars(msgspec.Struct, frozen=True):
    """What a venue's stream said about one symbol's minutes.

    Attributes:
        symbol: whose.
        bars: valid minute bars, ascending, one a `ts`, copies of our own (vendors mutate theirs in place).
        closed: True: the venue says that each of these bars is final (also where it corrects one that it had called
            so before); False: it says that the last one is still forming; None: it does not say.
        venue_ms: the venue's own clock when it sent this, where it says; UTC epoch milliseconds.
    """

    symbol: str
    bars: tuple[Bar, ...]
    closed: bool | None = None
    venue_ms: int | None = None


class Credentials(msgspec.Struct, frozen=True):
    """Secrets for one provider; never shown by `repr`."""

    key: str = ""
    secret: str = ""
    password: str = ""

    def __repr__(self) -> str:
        """Say only whether there are any."""
        return f"Credentials({'***' if self.key else 'none'})"

    __str__ = __repr__


class PluginConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What an instance is made with.

    Attributes:
        provider: the one provider it serves.
        credentials: for that provider.
        sandbox: use the provider's test venue.
        options: settings of the plugin for this provider (see its docs), for example CCXT constructor options.
        timeout_s: for one call to the provider.
    """

    provider: str
    credentials: Credentials = Credentials()
    sandbox: bool = False
    options: Mapping[str, object] = {}
    timeout_s: float = 10.0


class MarketPlugin(ABC):
    """Speaks to one provider. Constructors store; `open()` connects; `close()` releases.

    Every method may raise `PluginError` and its kin, and nothing else. A plugin makes ONE call (or what
    amounts to one) in `fetch_page`; retries, paging over long ranges and rate budgets are the services'.
    """

    def __init__(self, config: PluginConfig) -> None:
        """Store what the instance is made with; do no I/O."""
        self.config = config

    @classmethod
    @abstractmethod
    def get_plugin_key(cls) -> str:
        """Short unique name of the plugin (`crypto`)."""

    @classmethod
    @abstractmethod
    def get_supported_markets(cls) -> Sequence[str]:
        """Markets that it serves (`("crypto",)`)."""

    @classmethod
    @abstractmethod
    def list_configurable_providers(cls, options: Mapping[str, object]) -> Sequence[ProviderInfo]:
        """Providers that instances can be made for, without any I/O.

        `options` are the plugin's own settings, from the configuration.
        """

    @classmethod
    def default_calendar(cls, market: str) -> str | None:  # noqa: ARG003 - most markets never close
        """The exchange calendar of the market's symbols while the provider cannot be asked; None: around the clock."""
        return None

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What the provider can do; valid after `open()`."""

    async def open(self) -> None:  # noqa: B027 - not every provider has something to connect
        """Connect and learn what the provider offers."""

    async def close(self) -> None:  # noqa: B027
        """Release everything; safe to call twice, and after a failed `open()`."""

    @abstractmethod
    async def fetch_symbols(self) -> Mapping[str, SymbolInfo]:
        """Every symbol by name. Never empty: an empty list from the provider is a `NetworkPluginError`."""

    @abstractmethod
    async def fetch_page(self, symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Page:
        """Ask once for the native bars whose `ts` lies in `wanted`, from its start on.

        `timeframe` is one of `capabilities.timeframes`; `wanted` is bucket-aligned and may be longer than one
        answer: the page's `covered` says how far it came, and may be any part of `wanted`.
        """

    def live_minutes(self, symbol: str) -> AsyncGenerator[LiveBars, None]:
        """Minute bars of a symbol as they form, until the stream fails: it never ends in silence.

        One generator a symbol; many at once share what the venue lets them share. Closing the generator
        unsubscribes. Reconnecting, healing holes and deciding what is closed are the services'.

        Raises:
            PluginError: the connection dropped, went mute or spoke rubbish. From the first `anext()` on, also
                PluginFeatureNotSupportedError: `capabilities.live` is not `stream`.
        """
        return _no_stream(self.config.provider, symbol)

    def doubt(self, symbol: str) -> None:  # noqa: B027 - not every provider has something to give up
        """The stream kept a symbol's bars to itself; its generator is about to be closed, and another one begun.

        Where symbols share a connection, that alone would not replace it: one that is mute for all is ended here.
        """


async def _no_stream(provider: str, symbol: str) -> AsyncGenerator[LiveBars, None]:
    raise PluginFeatureNotSupportedError(f"{provider} has no stream of {symbol}'s minutes")
    yield
