"""`candlery import`: files of bars into the store."""

import argparse
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app_extensions.wiring import running_services
from commands.arguments import Commands, add_series, series_of
from commands.terminal import console
from config import BaseConfig
from domain.timeframe import Timeframe
from services.bar_files import BarBatch, BarFileError
from services.bar_store import StoredSeries
from services.importer import Importer, ImportReport

#: Bad rows shown after an import; the rest are counted.
BAD_ROWS_SHOWN = 20


def add(commands: Commands) -> None:
    """Describe it."""
    command = commands.add_parser(
        "import",
        help="import files of bars",
        description="Import CSV (plain, .gz or .zip; Binance's archive layout too), Parquet or Feather files.",
    )
    command.add_argument("files", nargs="+", type=Path, metavar="FILE")
    add_series(command)
    command.set_defaults(run=_import)


async def _import(config: BaseConfig, options: argparse.Namespace) -> int:
    worst = 0
    async with running_services(config, as_server=False) as services:
        series = await services.markets.adopt(series_of(options))
        importer = Importer(services.store, services.clock)
        for path in options.files:
            worst = max(worst, await _import_file(importer, path, series, options.timeframe))
    return worst


async def _import_file(importer: Importer, path: Path, series: StoredSeries, timeframe: Timeframe) -> int:
    """One file; a bad one is told of, and the next is tried."""
    out = console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=out, transient=True) as bar:
        task = bar.add_task(path.name, total=None)

        def progress(batch: BarBatch) -> None:
            bar.update(task, completed=batch.bytes_done, total=batch.bytes_total)

        try:
            report = await importer.run(path, series, timeframe, progress=progress)
        except (BarFileError, OSError) as exc:
            out.print(f"{path}: {exc}", style="red")
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
