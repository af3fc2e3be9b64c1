"""The `candlery` command."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from app_extensions.logging_setup import configure_logging
from app_extensions.migrations import migrate
from app_extensions.server import serve
from app_extensions.wiring import running_pool, running_services
from config import BaseConfig, load_config
from domain.errors import CandleryError
from domain.series import Series
from domain.time_range import TimeRange
from domain.timeframe import Timeframe
from domain.times import parse_time_ms
from services.bar_files import BarBatch, BarFileError
from services.bar_walk import OhlcvQuery
from services.importer import Importer, ImportReport

#: Bad rows shown after an import; the rest are counted.
BAD_ROWS_SHOWN = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0 when all went well, 1 on an error, 2 on wrong usage."""
    options = _parser().parse_args(argv)
    try:
        config = load_config()
        config.validate()
        configure_logging(config.log_level if options.command == "serve" else "WARNING", config.log_format)
        return asyncio.run(options.run(config, options)) or 0
    except (CandleryError, OSError) as exc:
        print(f"candlery: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("candlery: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="candlery", description="Self-hosted market data server. Settings are read from CANDLERY_* and .env."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser("serve", help="run the server")
    command.set_defaults(run=_serve)
    command = commands.add_parser("migrate", help="bring the database to this version's schema")
    command.set_defaults(run=_migrate)
    _add_import(commands)
    _add_bars(commands)
    _add_coverage(commands)
    return parser


def _add_series(command: argparse.ArgumentParser) -> None:
    command.add_argument("--market", required=True, help="for example crypto")
    command.add_argument("--provider", required=True, help="for example binance")
    command.add_argument("--symbol", required=True, help="for example BTC/USDT")
    command.add_argument(
        "--timeframe", type=_timeframe, default=Timeframe.M1, help="1m (default), 5m, 1h, 1d, 1w, 1M ..."
    )


def _add_import(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "import",
        help="import files of bars",
        description="Import CSV (plain, .gz or .zip; Binance's archive layout too), Parquet or Feather files.",
    )
    command.add_argument("files", nargs="+", type=Path, metavar="FILE")
    _add_series(command)
    command.set_defaults(run=_import)


def _add_bars(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("bars", help="print bars, fetched where they are missing")
    _add_series(command)
    command.add_argument("--start", type=_time, help="ISO-8601 or epoch milliseconds")
    command.add_argument("--end", type=_time, help="ISO-8601 or epoch milliseconds; default: now")
    command.add_argument("--limit", type=int, choices=range(1, 10_001), default=20, metavar="1..10000")
    command.set_defaults(run=_bars)


def _add_coverage(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("coverage", help="print what is known of each stretch of time")
    _add_series(command)
    command.add_argument("--start", type=_time, required=True, help="ISO-8601 or epoch milliseconds")
    command.add_argument("--end", type=_time, help="ISO-8601 or epoch milliseconds; default: now")
    command.set_defaults(run=_coverage)


def _timeframe(text: str) -> Timeframe:
    try:
        return Timeframe(text)
    except ValueError:
        names = ", ".join(timeframe.value for timeframe in Timeframe)
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {names}") from None


def _time(text: str) -> int:
    try:
        return parse_time_ms(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def _series(options: argparse.Namespace) -> Series:
    return Series(options.market, options.provider, options.symbol)


async def _serve(config: BaseConfig, _: argparse.Namespace) -> int:
    return await serve(config)


async def _migrate(config: BaseConfig, _: argparse.Namespace) -> int:
    async with running_pool(config, beside_server=True) as pool:
        flavour = await migrate(pool)
    print(f"The database is up to date ({flavour.value}).")
    return 0


async def _import(config: BaseConfig, options: argparse.Namespace) -> int:
    worst = 0
    async with running_services(config, as_server=False) as services:
        series = await services.markets.adopt(_series(options))
        importer = Importer(services.store, services.clock)
        for path in options.files:
            worst = max(worst, await _import_file(importer, path, series, options.timeframe))
    return worst


async def _import_file(importer: Importer, path: Path, series: object, timeframe: Timeframe) -> int:
    """One file; a bad one is told of, and the next is tried."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(path.name, total=None)

        def progress(batch: BarBatch) -> None:
            bar.update(task, completed=batch.bytes_done, total=batch.bytes_total)

        try:
            report = await importer.run(path, series, timeframe, progress=progress)  # type: ignore[arg-type]
        except (BarFileError, OSError) as exc:
            console.print(f"{path}: {exc}", style="red", markup=False)
            return 1
    _print_report(path, report)
    return 1 if report.bad else 0


def _print_report(path: Path, report: ImportReport) -> None:
    resumed = f", resumed after row {report.resumed_at}" if report.resumed_at else ""
    print(
        f"{path.name}: {report.rows} rows read{resumed}, {report.written} bars written "
        f"({report.revised} corrected), {report.bad} bad rows"
    )
    for bad in report.bad_rows[:BAD_ROWS_SHOWN]:
        print(f"  line {bad.line}: {bad.detail}")
    if report.bad > BAD_ROWS_SHOWN:
        print(f"  ... and {report.bad - BAD_ROWS_SHOWN} more")


async def _bars(config: BaseConfig, options: argparse.Namespace) -> int:
    query = OhlcvQuery(
        series=_series(options),
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
        table.add_row(
            _utc(bar.ts), *(f"{value:.10g}" for value in (bar.open, bar.high, bar.low, bar.close, bar.volume))
        )
    Console().print(table)
    for gap in answer.gaps:
        print(f"not complete: {_utc(gap.range.start_ms)} to {_utc(gap.range.end_ms)}: {gap.verdict.value}")
    if answer.error is not None:
        print(f"the provider failed: {answer.error}", file=sys.stderr)
    return 0


async def _coverage(config: BaseConfig, options: argparse.Namespace) -> int:
    async with running_services(config, as_server=False) as services:
        end = options.end or services.clock.now_ms()
        wanted = TimeRange(options.start, end)
        tiles = await services.ohlcv.coverage(_series(options), options.timeframe, wanted)
    table = Table("from (UTC)", "to (UTC)", "verdict", title=f"{_series(options)} {options.timeframe.value}")
    for name in ("buckets", "asked", "last asked (UTC)"):
        table.add_column(name, justify="right")
    for tile in tiles:
        buckets = options.timeframe.buckets_between(*tile.range)
        checked = _utc(tile.checked_ms) if tile.checked_ms is not None else ""
        start, stop = (_utc(ts) for ts in tile.range)
        table.add_row(start, stop, tile.verdict.value, str(buckets), str(tile.attempts), checked)
    Console().print(table)
    return 0


def _utc(ts_ms: int) -> str:
    return datetime.fromtimestamp(ts_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


if __name__ == "__main__":
    sys.exit(main())
