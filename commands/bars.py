"""`candlery bars`: bars as a table, fetched where they are missing."""

import argparse
import sys

from rich.table import Table

from app_extensions.wiring import running_services
from commands.arguments import Commands, add_range, add_series, series_of, whole
from commands.terminal import console, utc
from config import BaseConfig
from services.bar_walk import OhlcvQuery


def add(commands: Commands) -> None:
    """Describe it."""
    command = commands.add_parser("bars", help="print bars, fetched where they are missing")
    add_series(command)
    add_range(command, start_required=False)
    command.add_argument("--limit", type=whole(1, 10_000), default=20, metavar="1..10000")
    command.set_defaults(run=_bars)


async def _bars(config: BaseConfig, options: argparse.Namespace) -> int:
    query = OhlcvQuery(
        series=series_of(options),
        timeframe=options.timeframe,
        start_ms=options.start,
        end_ms=options.end,
        limit=options.limit,
    )
    async with running_services(config, as_server=False) as services:
        answer = await services.ohlcv.bars(query)
    simulated = " (simulated)" if answer.simulated else ""
    table = Table("time (UTC)", title=f"{query.series} {query.timeframe.value}{simulated}")
    for name in ("open", "high", "low", "close", "volume"):
        table.add_column(name, justify="right")
    for bar in answer.bars:
        table.add_row(utc(bar.ts), *(f"{value:.10g}" for value in (bar.open, bar.high, bar.low, bar.close, bar.volume)))
    console().print(table)
    for gap in answer.gaps:
        print(f"not complete: {utc(gap.range.start_ms)} to {utc(gap.range.end_ms)}: {gap.verdict.value}")
    if answer.error is not None:
        print(f"the provider failed: {answer.error}", file=sys.stderr)
    return 0
