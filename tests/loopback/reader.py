"""Reads a range from a plugin page by page, as the services do: what the pages do not cover is asked for again."""

from typing import NamedTuple

from domain.bar import Bar, within
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import Timeframe
from plugins.base import MarketPlugin, PluginError


class Collected(NamedTuple):
    """What came of it; `bars` are those in `covered`."""

    bars: list[Bar]
    covered: RangeSet
    errors: list[PluginError]
    rejected: list[str]
    calls: int


async def collect(
    plugin: MarketPlugin, symbol: str, timeframe: Timeframe, wanted: TimeRange, *, max_calls: int = 100
) -> Collected:
    """Ask until the range is covered; errors that may pass are asked over."""
    missing = RangeSet((wanted,))
    bars: dict[int, Bar] = {}
    covered = RangeSet()
    errors: list[PluginError] = []
    rejected: list[str] = []
    calls = 0
    while missing and calls < max_calls:
        calls += 1
        try:
            page = await plugin.fetch_page(symbol, timeframe, missing.ranges[0])
        except PluginError as exc:
            if not exc.retryable:
                raise
            errors.append(exc)
            continue
        bars |= {bar.ts: bar for bar in within(page.bars, page.covered)}
        covered |= page.covered
        rejected += page.rejected
        missing -= page.covered
    return Collected([bars[ts] for ts in sorted(bars)], covered, errors, rejected, calls)
