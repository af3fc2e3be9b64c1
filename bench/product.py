"""The whole of Candlery but for its web server, on real databases, and what it is held against."""

import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from app_extensions.embedded_postgres import EmbeddedPostgres
from app_extensions.wiring import Services, running_services
from bench import provider
from bench.outcome import WrongResultError
from config import load_config
from domain.time_range import TimeRange
from domain.timeframe import DAY_MS, MINUTE_MS, Timeframe
from services.backfills import BackfillRequest, Job, JobState
from services.database import Connection
from services.rollups import LEVELS

#: Rows in one statement of the control.
_ROWS = 5_000
_VERSIONS = "SELECT current_setting('server_version'), (SELECT extversion FROM pg_extension WHERE extname = $1)"
_CONTROL = """
INSERT INTO bench_control (series_id, ts, open, high, low, close, volume)
SELECT $1, * FROM unnest($2::timestamptz[], $3::float8[], $4::float8[], $5::float8[], $6::float8[], $7::float8[])
ON CONFLICT (series_id, ts) DO UPDATE
    SET open = excluded.open, high = excluded.high, low = excluded.low, close = excluded.close, volume = excluded.volume
"""


@asynccontextmanager
async def embedded_server(scratch: Path) -> AsyncIterator[str]:
    """A PostgreSQL as Candlery embeds it; its URL."""
    server = EmbeddedPostgres(scratch / "postgres")
    await server.open()
    try:
        yield server.dsn
    finally:
        await server.close()


@asynccontextmanager
async def fresh_database(server_url: str, name: str, *, template: str | None = None) -> AsyncIterator[str]:
    """An empty database for the block, or a copy of another on the same server; its URL."""
    admin = await asyncpg.connect(_beside(server_url, "postgres"))
    try:
        # A copy of the files is faster than of each page in the server's log.
        copied = f" TEMPLATE {template} STRATEGY file_copy" if template else ""
        await admin.execute(f"CREATE DATABASE {name}{copied}")
        yield _beside(server_url, name)
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


def _beside(url: str, database: str) -> str:
    """Another database of the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}"))


@asynccontextmanager
async def candlery(
    database_url: str, settings: Mapping[str, str] | None = None, *, as_server: bool = True
) -> AsyncIterator[Services]:
    """Everything that a server runs behind its web application, with the settings that it has by default.

    `as_server`: with its work in the background.
    """
    environ = {"CANDLERY_ENV": "testing", "CANDLERY_DATABASE_URL": database_url, **(settings or {})}
    async with running_services(load_config(environ, env_file=None), as_server=as_server) as services:
        yield services


def ccxt_settings(exchange: str, options: Mapping[str, object]) -> dict[str, str]:
    """Settings that lead one exchange elsewhere."""
    return {
        "CANDLERY_CRYPTO_EXCHANGES": exchange,
        "CANDLERY_CCXT_OPTIONS": json.dumps({exchange: options}),
    }


async def versions(services: Services) -> dict[str, str]:
    """Of the database."""
    async with services.database.connection() as db:
        server, timescale = await db.fetchrow(_VERSIONS, "timescaledb")
    # Packagers add words of their own behind the number.
    return {"PostgreSQL": server.split()[0]} | ({"TimescaleDB": timescale} if timescale else {})


def request_for(symbols: int, days: int) -> BackfillRequest:
    """The first days of some symbols of the provider in memory."""
    window = TimeRange(provider.BEGAN_MS, provider.BEGAN_MS + days * DAY_MS)
    return BackfillRequest(provider.MARKET, provider.PROVIDER, provider.SYMBOLS[:symbols], window)


def minutes_of(request: BackfillRequest) -> int:
    """Minutes of all its symbols."""
    return len(request.symbols) * request.range.length_ms // MINUTE_MS


async def backfilled(services: Services, request: BackfillRequest) -> tuple[Job, float]:
    """Make a job and wait for its end; the job, and seconds from asking for it until it was done."""
    asked_s = time.time()
    job = await services.backfills.create(request)
    async for seen in services.backfills.watch(job.id):
        job = seen
    if job.state is not JobState.DONE or job.finished_ms is None:
        raise WrongResultError(f"The backfill ended {job.state.value}: {[error.detail for error in job.errors]}")
    return job, job.finished_ms / 1000 - asked_s


async def check_stored(services: Services, minutes: int) -> None:
    """Every minute is stored, and stands in every aggregate.

    Raises:
        WrongResultError: something is missing.
    """
    async with services.database.connection() as db:
        counted = {Timeframe.M1: await db.fetchval("SELECT count(*) FROM bars_1m")}
        for level in LEVELS:
            counted[level.timeframe] = await db.fetchval(f"SELECT sum(minutes)::bigint FROM {level.table}")  # noqa: S608 - our own
        owed = await db.fetchval("SELECT count(*) FROM rollup_queue")
    if owed or set(counted.values()) != {minutes}:
        raise WrongResultError(f"{minutes} minutes were to be stored and refreshed; counted {counted}, owed {owed}")


async def bare_upsert(services: Services, request: BackfillRequest) -> float:
    """The control: the same minutes into a table of the same shape, and nothing else; rows a second."""
    columns = [list(column) for column in zip(*_rows(request.range), strict=True)]
    async with services.database.connection() as db:
        await _make_control_table(db)
        began_s = time.perf_counter()
        for series_id in range(len(request.symbols)):
            await _upsert(db, series_id, columns)
        return minutes_of(request) / (time.perf_counter() - began_s)


async def _make_control_table(db: Connection) -> None:
    await db.execute("DROP TABLE IF EXISTS bench_control")
    await db.execute("CREATE TABLE bench_control (LIKE bars_1m INCLUDING ALL)")
    if await db.fetchval("SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')"):
        make = "SELECT create_hypertable('bench_control', 'ts', chunk_time_interval => interval '7 days', {})"
        await db.execute(make.format("create_default_indexes => false"))


async def _upsert(db: Connection, series_id: int, columns: Sequence[list[float]]) -> None:
    for at in range(0, len(columns[0]), _ROWS):
        await db.execute(_CONTROL, series_id, *(column[at : at + _ROWS] for column in columns))


def _rows(window: TimeRange) -> list[tuple[float, ...]]:
    bars = provider.minute_bars(*window)
    return [(bar.ts, bar.open, bar.high, bar.low, bar.close, bar.volume) for bar in bars]
