"""Numbered migrations, each in its transaction; an advisory lock lets any number of processes start at once.

A file `NNNN_name.sql` is for every PostgreSQL; `NNNN_name.timescaledb.sql` and `NNNN_name.postgresql.sql` are the two
ways of one step. A database stays of the flavour that it was made with.
"""

import logging
from enum import StrEnum
from importlib.resources import files
from typing import Any, NamedTuple

import asyncpg

from app_extensions.db_pool import DatabasePool
from domain.errors import CandleryError
from services.sql import load_queries

log = logging.getLogger(__name__)

_LOCK = 0x0CA_2D1F
_BOOKKEEPING = """
CREATE TABLE IF NOT EXISTS schema_flavour (flavour text PRIMARY KEY);
CREATE TABLE IF NOT EXISTS schema_migrations (
    version integer PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now()
);
"""
#: Older servers have no multiranges.
OLDEST_SERVER = 140_000


class MigrationError(CandleryError):
    """The database cannot be brought to this version's schema."""


class Flavour(StrEnum):
    """What keeps the aggregates."""

    TIMESCALEDB = "timescaledb"
    POSTGRESQL = "postgresql"


class Migration(NamedTuple):
    """One numbered step."""

    version: int
    name: str
    sql: str


def load_migrations(flavour: Flavour) -> list[Migration]:
    """The steps of a flavour, in order."""
    steps: list[Migration] = []
    for file in (files("sql.timescale") / "migrations").iterdir():
        stem, _, kind = file.name.removesuffix(".sql").partition(".")
        if file.name.endswith(".sql") and kind in ("", flavour):
            steps.append(Migration(int(stem[:4]), stem, file.read_text(encoding="utf-8")))
    return sorted(steps)


async def migrate(pool: DatabasePool) -> Flavour:
    """Apply what is missing, and tell the database's flavour. Safe to run anywhere, any number of times."""
    async with pool.connection() as db:
        if int(await db.fetchval("SELECT current_setting('server_version_num')")) < OLDEST_SERVER:
            raise MigrationError("Candlery needs PostgreSQL 14 or newer.")
        await db.execute("SELECT pg_advisory_lock($1)", _LOCK)
        try:
            return await _apply(db)
        finally:
            await db.execute("SELECT pg_advisory_unlock($1)", _LOCK)


async def database_identity(pool: DatabasePool) -> str:
    """What tells this database from every other, also from one that is made in its place."""
    async with pool.connection() as db:
        return str(await db.fetchval("SELECT id FROM database_identity"))


async def set_compression(pool: DatabasePool, *, after_days: int) -> None:
    """TimescaleDB: have minutes older than so many days compressed by its own job; 0: never."""
    sql = load_queries("rollups")
    async with pool.connection() as db, db.transaction():
        await db.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
        wanted = f"{after_days} days" if after_days else None
        if await db.fetchval(sql["compression_job"]) == wanted:
            return
        await db.execute(sql["stop_compression"])
        if after_days:
            await db.execute(sql["start_compression"], after_days)


async def _apply(db: Any) -> Flavour:
    await db.execute(_BOOKKEEPING)
    flavour = await _flavour(db)
    done = {row["version"] for row in await db.fetch("SELECT version FROM schema_migrations")}
    steps = load_migrations(flavour)
    if done and max(done) > steps[-1].version:
        raise MigrationError(
            f"The database is at step {max(done)}, this version knows {steps[-1].version}: upgrade Candlery."
        )
    for step in steps:
        if step.version not in done:
            await _run(db, step)
    return flavour


async def _run(db: Any, step: Migration) -> None:
    log.info("migrating the database: %s", step.name)
    try:
        async with db.transaction():
            await db.execute(step.sql)
            await db.execute("INSERT INTO schema_migrations (version, name) VALUES ($1, $2)", step.version, step.name)
    except asyncpg.PostgresError as exc:
        raise MigrationError(f"Migration {step.name} failed: {exc}") from exc


async def _flavour(db: Any) -> Flavour:
    known = await db.fetchval("SELECT flavour FROM schema_flavour")
    if known is None:
        known = Flavour.TIMESCALEDB if await _has_timescaledb(db) else Flavour.POSTGRESQL
        await db.execute("INSERT INTO schema_flavour (flavour) VALUES ($1)", known)
    return Flavour(known)


async def _has_timescaledb(db: Any) -> bool:
    """Whether the extension is there; it is created where it may be."""
    if await db.fetchval("SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'"):
        return True
    if not await db.fetchval("SELECT 1 FROM pg_available_extensions WHERE name = 'timescaledb'"):
        return False
    try:
        await db.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
    except asyncpg.PostgresError as exc:
        # Without preloading or the right to create it, plain roll-up tables give the same bars.
        log.warning("TimescaleDB is installed but cannot be used (%s); using plain roll-up tables", exc)
        return False
    return True
