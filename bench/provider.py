"""A provider in memory that answers at once, found like any plugin that somebody else wrote: by an entry point."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from domain.bar import Bar
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import MINUTE_MS, Timeframe
from plugins import ENTRY_POINT_GROUP
from plugins.base import Capabilities, MarketPlugin, Page, ProviderInfo, SymbolInfo

MARKET, PROVIDER = "bench", "memory"
PAGE = 1_000
#: 2022-01-01: the first minute of every symbol.
BEGAN_MS = 1_640_995_200_000
SYMBOLS = tuple(f"S{number:02}/USD" for number in range(20))
_VARIETY = 4_096


def _prices() -> Iterator[tuple[float, float, float, float, float]]:
    for number in range(_VARIETY):
        open_, close = 100 + number % 97 / 8, 100 + number % 89 / 8
        yield open_, max(open_, close) + 0.25, min(open_, close) - 0.25, close, 1 + number % 1013 / 16


#: Open, high, low, close, volume of one minute after another, over and over.
_PRICES = tuple(_prices())


def minute_bars(start_ms: int, end_ms: int) -> list[Bar]:
    """The bars of every minute in the range."""
    first = start_ms // MINUTE_MS
    return [Bar(number * MINUTE_MS, *_PRICES[number % _VARIETY]) for number in range(first, -(-end_ms // MINUTE_MS))]


class MemoryProvider(MarketPlugin):
    """Minutes without a gap, in pages of `PAGE`, for as many calls as anybody makes."""

    @classmethod
    def get_plugin_key(cls) -> str:
        """Its name."""
        return "bench"

    @classmethod
    def get_supported_markets(cls) -> Sequence[str]:
        """One of its own."""
        return (MARKET,)

    @classmethod
    def list_configurable_providers(cls, options: Mapping[str, object]) -> Sequence[ProviderInfo]:  # noqa: ARG003
        """The only one."""
        return (ProviderInfo(PROVIDER, "Bars from memory"),)

    @property
    def capabilities(self) -> Capabilities:
        """Of a quick exchange without a rate limit."""
        return Capabilities(timeframes=(Timeframe.M1,), bars_per_call=PAGE, calls_per_second=1e6)

    async def fetch_symbols(self) -> Mapping[str, SymbolInfo]:
        """All of them, listed since the first minute."""
        return {symbol: SymbolInfo(symbol, listed_ms=BEGAN_MS) for symbol in SYMBOLS}

    async def fetch_page(self, symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Page:  # noqa: ARG002
        """The first page of the range, at once."""
        end_ms = min(wanted.end_ms, wanted.start_ms + PAGE * MINUTE_MS)
        start_ms = max(wanted.start_ms, BEGAN_MS)
        return Page(minute_bars(start_ms, end_ms), RangeSet.of(wanted.start_ms, end_ms))


@contextmanager
def installed(scratch: Path) -> Iterator[None]:
    """Announce the provider to the plugin loader for the block."""
    folder = scratch / "site"
    package = folder / "candlery_bench-1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: candlery-bench\nVersion: 1\n", encoding="utf-8")
    announced = f"[{ENTRY_POINT_GROUP}]\nbench = {MemoryProvider.__module__}:{MemoryProvider.__qualname__}\n"
    (package / "entry_points.txt").write_text(announced, encoding="utf-8")
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
