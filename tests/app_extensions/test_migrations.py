"""Migrations: safe at any number of starts at once, and never half applied."""

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import asyncpg
import pytest

from app_extensions import migrations
from app_extensions.db_pool import DatabasePool
from app_extensions.migrations import Flavour, Migration, MigrationError, load_migrations, migrate
from tests.conftest import a_database


@pytest.fixture
async def empty_url(postgres_url: str) -> AsyncIterator[str]:
    async with a_database(postgres_url, f"candlery_empty_{uuid4().hex[:12]}") as url:
        yield url


async def applied(url: str) -> list[int]:
    connection = await asyncpg.connect(url)
    try:
        return [row[0] for row in await connection.fetch("SELECT version FROM schema_migrations ORDER BY version")]
    finally:
        await connection.close()


async def run(url: str) -> Flavour:
    pool = DatabasePool(url, min_size=1, max_size=2)
    await pool.open()
    try:
        return await migrate(pool)
    finally:
        await pool.close()


async def test_many_starts_at_once_apply_each_step_once(empty_url: str) -> None:
    flavours = set(await asyncio.gather(*(run(empty_url) for _ in range(6))))
    assert len(flavours) == 1
    assert await applied(empty_url) == [step.version for step in load_migrations(Flavour.POSTGRESQL)]


async def test_a_step_that_fails_leaves_nothing_and_the_next_start_goes_on(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = load_migrations(Flavour.POSTGRESQL)
    broken = Migration(99, "0099_broken", "CREATE TABLE half_done (id int); SELECT 1/0;")
    monkeypatch.setattr(migrations, "load_migrations", lambda _: [*good, broken])
    with pytest.raises(MigrationError, match="0099_broken failed: division by zero"):
        await run(empty_url)
    assert await applied(empty_url) == [step.version for step in good]
    mended = Migration(99, "0099_mended", "CREATE TABLE half_done (id int)")
    monkeypatch.setattr(migrations, "load_migrations", lambda _: [*good, mended])
    await run(empty_url)
    assert await applied(empty_url) == [*(step.version for step in good), 99]


async def test_a_database_of_a_newer_version_is_refused(empty_url: str) -> None:
    await run(empty_url)
    connection = await asyncpg.connect(empty_url)
    await connection.execute("INSERT INTO schema_migrations (version, name) VALUES (9999, 'from the future')")
    await connection.close()
    with pytest.raises(MigrationError, match="upgrade Candlery"):
        await run(empty_url)


def test_both_flavours_take_the_same_numbered_steps() -> None:
    versions = [[step.version for step in load_migrations(flavour)] for flavour in Flavour]
    assert versions[0] == versions[1]
    assert versions[0] == sorted(set(versions[0]))


async def test_timescaledb_is_recognised_and_kept(timescale_pool: DatabasePool) -> None:
    assert await migrate(timescale_pool) is Flavour.TIMESCALEDB
    async with timescale_pool.connection() as db:
        names = await db.fetch("SELECT view_name FROM timescaledb_information.continuous_aggregates ORDER BY 1")
    assert [row[0] for row in names] == ["bars_15m", "bars_1d", "bars_1h", "bars_4h", "bars_5m"]
