"""The pool: instants as milliseconds, and one error for every way a database can be away."""

import asyncio
import socket

import asyncpg
import pytest

from app_extensions.db_pool import DatabasePool
from domain.errors import DatabaseUnavailableError
from tests.conftest import with_database

TS = 1_670_889_600_123


async def test_instants_cross_as_milliseconds_alone_in_arrays_and_in_ranges(pool: DatabasePool) -> None:
    async with pool.connection() as db:
        assert await db.fetchval("SELECT $1::timestamptz", TS) == TS
        assert await db.fetchval("SELECT $1::timestamptz::text", TS) == "2022-12-13 00:00:00.123+00"
        assert await db.fetchval("SELECT ARRAY[$1::timestamptz, NULL]", TS) == [TS, None]
        ranges = await db.fetchval("SELECT tstzmultirange(tstzrange($1, $2))", TS, TS + 1)
    assert [(r.lower, r.upper, r.upper_inc) for r in ranges] == [(TS, TS + 1, False)]


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_nobody_listening_is_an_unavailable_database() -> None:
    pool = DatabasePool(f"postgresql://candlery@127.0.0.1:{closed_port()}/candlery")
    with pytest.raises(DatabaseUnavailableError, match="cannot be reached"):
        await pool.open()
    await pool.close()
    with pytest.raises(DatabaseUnavailableError, match="not open"):
        await pool.ping()


async def test_a_database_that_does_not_exist_is_named_in_the_error(postgres_url: str) -> None:
    pool = DatabasePool(with_database(postgres_url, "not_there"))
    with pytest.raises(DatabaseUnavailableError, match="not_there"):
        await pool.open()


async def test_a_session_cut_by_the_server_is_unavailable_once_and_replaced(
    pool: DatabasePool, database_url: str
) -> None:
    admin = await asyncpg.connect(database_url)
    with pytest.raises(DatabaseUnavailableError):
        async with pool.connection() as db:
            await admin.execute("SELECT pg_terminate_backend($1)", db.get_server_pid())
            await db.fetchval("SELECT pg_sleep(10)")
    await admin.close()
    await pool.ping()


async def test_a_full_pool_is_unavailable_after_a_bounded_wait(database_url: str) -> None:
    pool = DatabasePool(database_url, min_size=1, max_size=1, connect_timeout_s=0.2)
    await pool.open()
    async with pool.connection():
        with pytest.raises(DatabaseUnavailableError):
            await pool.ping()
    await pool.ping()
    await pool.close()


async def test_an_error_in_a_transaction_rolls_it_back(pool: DatabasePool) -> None:
    with pytest.raises(ZeroDivisionError):
        async with pool.transaction() as db:
            await db.execute("INSERT INTO series (market, provider, symbol) VALUES ('a', 'b', 'c')")
            raise ZeroDivisionError
    async with pool.connection() as db:
        assert await db.fetchval("SELECT count(*) FROM series") == 0


async def test_closing_does_not_wait_for_ever_for_a_connection_in_use(database_url: str) -> None:
    pool = DatabasePool(database_url, min_size=1, max_size=1)
    await pool.open()
    holding = asyncio.Event()

    async def hold() -> None:
        async with pool.connection() as db:
            holding.set()
            await db.fetchval("SELECT pg_sleep(30)")

    task = asyncio.create_task(hold())
    await holding.wait()
    await asyncio.wait_for(pool.close(timeout_s=0.2), 5)
    with pytest.raises(DatabaseUnavailableError):
        await task


async def test_what_an_error_left_locked_is_free_when_the_connection_is_used_again(database_url: str) -> None:
    pool = DatabasePool(database_url, max_size=1)
    await pool.open()
    held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
    with pytest.raises(RuntimeError):
        async with pool.connection() as db:
            await db.execute("SELECT pg_advisory_lock(1)")
            raise RuntimeError
    async with pool.connection() as db:
        assert await db.fetchval(held) == 0
    await pool.close()
