"""The shapes of answers on the wire. Times are UTC epoch milliseconds."""

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import UNSET, UnsetType

from domain.series import Series, Verdict
from domain.timeframe import Timeframe
from services.bar_walk import OhlcvAnswer
from services.coverage import Tile

COLUMNS = ("ts", "open", "high", "low", "close", "volume")


class GapOut(msgspec.Struct, frozen=True):
    """A sub-range `[start, end)` that is not known in full, and why."""

    start: int
    end: int
    verdict: str


class CoverageOut(msgspec.Struct, frozen=True):
    """Whether all of the range is known, and what is not; by symbol where several were asked for."""

    complete: bool
    gaps: Sequence[GapOut] | Mapping[str, Sequence[GapOut]]


class OhlcvOut(msgspec.Struct, frozen=True, kw_only=True):
    """Bars of one symbol, or of several by symbol."""

    market: str
    provider: str
    symbol: str | Sequence[str]
    timeframe: str
    columns: Sequence[str] = COLUMNS
    #: Bars are the bulk; what stands for them here is put in their place when the rest is encoded.
    bars: None = None
    next_page_token: str | None
    sources: Sequence[str]
    coverage: CoverageOut
    filled: Sequence[int] | Mapping[str, Sequence[int]] | UnsetType = UNSET
    forming: Sequence[int] | Mapping[str, Sequence[int]] | UnsetType = UNSET
    simulated: bool | UnsetType = UNSET


class TileOut(msgspec.Struct, frozen=True):
    """A range with one verdict: its bars, and the asks behind it; `error` only where the last of them failed."""

    start: int
    end: int
    verdict: str
    bars: int
    attempts: int
    checked_at: int | None
    error: str | UnsetType = UNSET


class CoverageReport(msgspec.Struct, frozen=True, kw_only=True):
    """Verdicts that tile a range, and how many buckets each has."""

    market: str
    provider: str
    symbol: str
    timeframe: str
    ranges: Sequence[TileOut]
    summary: Mapping[str, int]
    simulated: bool | UnsetType = UNSET


class ProviderOut(msgspec.Struct, frozen=True, kw_only=True):
    """A provider; what only an open one can tell is null while it cannot be opened."""

    id: str
    name: str
    available: bool
    timeframes: Sequence[str]
    native_timeframes: Sequence[str]
    live: str | None
    bars_per_call: int | None
    needs_credentials: bool
    simulated: bool | UnsetType = UNSET


class SymbolOut(msgspec.Struct, frozen=True):
    """A symbol as its provider lists it."""

    symbol: str
    name: str
    type: str
    active: bool
    calendar: str | None
    listed: int | None


def gaps_out(answer: OhlcvAnswer) -> list[GapOut]:
    """The answer's gaps for the wire."""
    return [GapOut(gap.range.start_ms, gap.range.end_ms, gap.verdict.value) for gap in answer.gaps]


def coverage_report(series: Series, timeframe: Timeframe, tiles: Sequence[Tile], *, simulated: bool) -> CoverageReport:
    """Tiles for the wire."""
    summary: Counter[str] = Counter()
    ranges = []
    for tile in tiles:
        buckets = timeframe.buckets_between(*tile.range)
        bars = buckets if tile.verdict is Verdict.DATA else 0
        error = UNSET if tile.error is None else tile.error
        ranges.append(TileOut(*tile.range, tile.verdict.value, bars, tile.attempts, tile.checked_ms, error))
        summary[tile.verdict.value] += buckets
    return CoverageReport(
        market=series.market,
        provider=series.provider,
        symbol=series.symbol,
        timeframe=timeframe.value,
        ranges=ranges,
        summary=summary,
        simulated=simulated or UNSET,
    )
