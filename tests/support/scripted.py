"""A provider of a test's making: a market of minutes, and faults on demand."""

from collections.abc import Callable, Mapping, Sequence

from domain.bar import Bar, fold, within
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import Timeframe
from plugins.base import (
    Capabilities,
    MarketPlugin,
    Page,
    PluginConfig,
    ProviderInfo,
    SymbolInfo,
    SymbolNotFoundPluginError,
)

#: Called before each page with the number of the call; raises or returns a page to answer with instead.
Fault = Callable[[int, TimeRange], Page | None]


class ScriptedPlugin(MarketPlugin):
    """Serves the minutes it is given, in pages of `bars_per_call`."""

    def __init__(
        self,
        minutes: Mapping[str, Sequence[Bar]],
        *,
        capabilities: Capabilities | None = None,
        calendar: str | None = None,
        listed_ms: int | None = None,
    ) -> None:
        super().__init__(PluginConfig(provider="scripted"))
        self.market = {symbol: list(bars) for symbol, bars in minutes.items()}
        self.calls: list[tuple[str, Timeframe, TimeRange]] = []
        self.symbol_calls = 0
        self.fault: Fault | None = None
        self.symbols_fault: Exception | None = None
        self._calendar = calendar
        self._listed_ms = listed_ms
        self._capabilities = capabilities or Capabilities(
            timeframes=(Timeframe.M1, Timeframe.H1, Timeframe.D1), bars_per_call=500, calls_per_second=10_000
        )

    @classmethod
    def get_plugin_key(cls) -> str:
        return "scripted"

    @classmethod
    def get_supported_markets(cls) -> Sequence[str]:
        return ("test",)

    @classmethod
    def list_configurable_providers(cls, options: Mapping[str, object]) -> Sequence[ProviderInfo]:
        return (ProviderInfo("scripted", "Scripted"),)

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    async def fetch_symbols(self) -> Mapping[str, SymbolInfo]:
        self.symbol_calls += 1
        if self.symbols_fault is not None:
            raise self.symbols_fault
        return {
            symbol: SymbolInfo(symbol, calendar=self._calendar, listed_ms=self._listed_ms) for symbol in self.market
        }

    async def fetch_page(self, symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Page:
        self.calls.append((symbol, timeframe, wanted))
        if self.fault is not None:
            page = self.fault(len(self.calls), wanted)
            if page is not None:
                return page
        if symbol not in self.market:
            raise SymbolNotFoundPluginError(f"no symbol {symbol}")
        return self.honest_page(symbol, timeframe, wanted)

    def honest_page(self, symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Page:
        end = min(wanted.end_ms, timeframe.back(wanted.start_ms, -self.capabilities.bars_per_call))
        part = RangeSet.of(wanted.start_ms, end)
        return Page(within(fold(self.market[symbol], timeframe), part), part)
