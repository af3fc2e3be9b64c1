"""`candlery coverage`: what is known of each stretch of time, as a calendar, as a table, or as JSON."""

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app_extensions.wiring import Services, running_services
from blueprints.schemas import coverage_report
from commands import strip
from commands.arguments import Commands, add_range, add_series, series_of
from commands.strip import Cell, Row, Scale
from commands.terminal import console, counted, duration, utc, utc_minute
from config import BaseConfig
from domain.errors import CandleryError
from domain.series import Series, Verdict
from domain.time_range import TimeRange
from domain.timeframe import Timeframe
from services.coverage import Tile

#: Unsettled stretches listed under the calendar; the rest are counted.
UNSETTLED_LISTED = 20


class Look(NamedTuple):
    """What a cell looks like: its sign, in Unicode and in ASCII, and its colour; and what the verdict means."""

    signs: tuple[str, str]
    style: str
    meaning: str


LOOKS: Mapping[Verdict, Look] = {
    Verdict.DATA: Look(("█", "#"), "green", "bars"),
    Verdict.NO_TRADES: Look(("·", "."), "cyan", "surely no bar: nothing traded"),
    Verdict.UNCONFIRMED_EMPTY: Look(("?", "?"), "yellow", "no bar when asked once; asked again an hour later"),
    Verdict.CLOSED_SESSION: Look(("─", "-"), "blue", "outside of the venue's hours"),
    Verdict.NOT_LISTED: Look(("/", "/"), "bright_black", "before the symbol's first bar"),
    Verdict.FETCH_FAILED: Look(("!", "!"), "bold red", "the provider was asked, and failed"),
    Verdict.NEVER_FETCHED: Look(("░", "_"), "magenta", "nobody asked yet"),
}
#: A cell of bars and of settled stretches without any.
SOME_DATA = ("▓", "+")

LABEL_WIDTH = len("2024-01-01 Mon ")
SHARE_WIDTH = len(" 100.0 %")


def add(commands: Commands) -> None:
    """Describe it."""
    command = commands.add_parser(
        "coverage",
        help="show what is known of each stretch of time",
        description="Show what is known of each stretch of time: a calendar whose cells tell the worst they hold, sums "
        "by verdict, and what is not settled. No provider is asked for bars.",
    )
    add_series(command)
    add_range(command, start_required=True)
    form = command.add_mutually_exclusive_group()
    form.add_argument("--table", dest="form", action="store_const", const="table", help="every stretch, as a table")
    form.add_argument(
        "--json", dest="form", action="store_const", const="json", help="what GET /api/v1/coverage answers"
    )
    command.set_defaults(run=_coverage)


async def _coverage(config: BaseConfig, options: argparse.Namespace) -> int:
    series, timeframe = series_of(options), options.timeframe
    async with running_services(config, as_server=False) as services:
        end_ms = services.clock.now_ms() if options.end is None else options.end
        tiles = await services.ohlcv.coverage(series, timeframe, TimeRange(options.start, end_ms))
        simulated = await _is_simulated(services, series)
    if options.form == "json":
        print(_json(series, timeframe, tiles, simulated=simulated))
    elif options.form == "table":
        console().print(_table(series, timeframe, tiles))
    else:
        title = f"{series} {timeframe.value}{' (simulated)' if simulated else ''}"
        draw(console(), title, tiles, timeframe)
    return 0


async def _is_simulated(services: Services, series: Series) -> bool:
    """Whether the bars are made up. A provider that cannot be opened makes none up."""
    try:
        feed = await services.markets.feed(series.market, series.provider)
    except CandleryError:
        return False
    return feed.capabilities.simulated


def draw(out: Console, title: str, tiles: Sequence[Tile], timeframe: Timeframe) -> None:
    """The calendar, the sums by verdict, and what is not settled."""
    if not tiles:
        out.print(f"{title}: no bucket begins in this range")
        return
    span = TimeRange(tiles[0].range.start_ms, tiles[-1].range.end_ms)
    scale = strip.scale_for(span, timeframe, columns=out.width - LABEL_WIDTH - SHARE_WIDTH)
    rows = strip.rows(tiles, scale)
    out.print(f"{title}, {utc_minute(span.start_ms)} to {utc_minute(span.end_ms)} UTC", style="bold", soft_wrap=True)
    _draw_calendar(out, scale, rows)
    out.print()
    _draw_summary(out, tiles, timeframe)
    if any(cell.verdict is Verdict.DATA and cell.is_mixed for row in rows for cell in row.cells):
        some_data = (SOME_DATA[is_ascii_only(out)], LOOKS[Verdict.DATA].style)
        out.print(Text.assemble(some_data, " a cell of bars and of settled stretches without any"), soft_wrap=True)
    _draw_unsettled(out, tiles, timeframe)


def _draw_calendar(out: Console, scale: Scale, rows: Sequence[Row]) -> None:
    words = f"a row is a {scale.unit.name.lower()}, a cell {_cell_words(scale)}; in percent: what is settled"
    out.print(words, soft_wrap=True)
    first = next(scale.unit.rows(TimeRange(rows[0].start_ms, rows[0].start_ms + 1)))
    out.print(" " * LABEL_WIDTH + scale.ruler(first), style="bright_black", soft_wrap=True)
    for row in rows:
        out.print(_line(scale, row, ascii_only=is_ascii_only(out)), soft_wrap=True)


def is_ascii_only(out: Console) -> bool:
    """Whether the terminal may lack the signs of Unicode."""
    return not out.encoding.lower().startswith("utf")


def _cell_words(scale: Scale) -> str:
    return "1 month" if scale.cell_ms is None else duration(scale.cell_ms / 1000)


def _line(scale: Scale, row: Row, *, ascii_only: bool) -> Text:
    line = Text(scale.unit.label(row).ljust(LABEL_WIDTH))
    for cell in row.cells:
        line.append(*sign(cell, ascii_only=ascii_only))
    line.append(" " * (scale.most_cells - len(row.cells)))
    # Rounded down: 100 is all of it.
    line.append(f"{int(row.settled * 1000) / 10:.1f} %".rjust(SHARE_WIDTH))
    return line


def sign(cell: Cell, *, ascii_only: bool) -> tuple[str, str]:
    """A character and its style."""
    if cell.verdict is None:
        return " ", ""
    look = LOOKS[cell.verdict]
    signs = SOME_DATA if cell.verdict is Verdict.DATA and cell.is_mixed else look.signs
    return signs[ascii_only], look.style


def _draw_summary(out: Console, tiles: Iterable[Tile], timeframe: Timeframe) -> None:
    sums = _sums(tiles, timeframe)
    total = sum(sums.values())
    unit = "minutes" if timeframe is Timeframe.M1 else "buckets"
    for verdict, look in LOOKS.items():
        if number := sums[verdict.value]:
            line = Text.assemble((look.signs[is_ascii_only(out)], look.style), f" {verdict.value:<18}{number:>12,} ")
            line.append(f"{unit} {_percent(number, total):>9}  {look.meaning}")
            out.print(line, soft_wrap=True)


def _sums(tiles: Iterable[Tile], timeframe: Timeframe) -> Counter[str]:
    """Buckets by verdict."""
    sums: Counter[str] = Counter()
    for tile in tiles:
        sums[tile.verdict.value] += timeframe.buckets_between(*tile.range)
    return sums


def _percent(number: int, total: int) -> str:
    """Neither 0 nor 100 is written for what is only nearly so."""
    share = 100 * number / total
    if 0 < share < 0.01:  # noqa: PLR2004 - the smallest that two decimals can tell
        return "< 0.01 %"
    return f"{int(share * 100) / 100:.2f} %"


def _draw_unsettled(out: Console, tiles: Iterable[Tile], timeframe: Timeframe) -> None:
    open_tiles = [tile for tile in tiles if tile.verdict in strip.UNSETTLED]
    if not open_tiles:
        out.print("All of it is settled.")
        return
    out.print("\nNot settled (UTC):")
    worst_first = sorted(open_tiles, key=lambda tile: (strip.RANKS.index(tile.verdict), tile.range))
    for tile in worst_first[:UNSETTLED_LISTED]:
        out.print(f"  {_unsettled_words(tile, timeframe)}", soft_wrap=True)
    if len(worst_first) > UNSETTLED_LISTED:
        out.print(f"  ... and {len(worst_first) - UNSETTLED_LISTED:,} more; --table lists them all")


def _unsettled_words(tile: Tile, timeframe: Timeframe) -> str:
    start, end = (utc_minute(ts_ms) for ts_ms in tile.range)
    noun = "minute" if timeframe is Timeframe.M1 else "bucket"
    words = f"{start} to {end}  {tile.verdict.value}  {counted(timeframe.buckets_between(*tile.range), noun)}"
    if tile.attempts:
        words += f", asked {counted(tile.attempts, 'time')}"
    if tile.checked_ms is not None:
        words += f", last at {utc(tile.checked_ms)}"
    return words if tile.error is None else f"{words}: {tile.error}"


def _table(series: Series, timeframe: Timeframe, tiles: Iterable[Tile]) -> Table:
    table = Table("from (UTC)", "to (UTC)", "verdict", title=f"{series} {timeframe.value}")
    for name in ("buckets", "asked", "last asked (UTC)"):
        table.add_column(name, justify="right")
    table.add_column("last error")
    for tile in tiles:
        buckets = timeframe.buckets_between(*tile.range)
        checked = utc(tile.checked_ms) if tile.checked_ms is not None else ""
        start, end = (utc(ts_ms) for ts_ms in tile.range)
        table.add_row(start, end, tile.verdict.value, str(buckets), str(tile.attempts), checked, tile.error or "")
    return table


def _json(series: Series, timeframe: Timeframe, tiles: Sequence[Tile], *, simulated: bool) -> str:
    return json.dumps(msgspec.to_builtins(coverage_report(series, timeframe, tiles, simulated=simulated)))
