"""The TimescaleDB of the tests behaves towards asyncpg as a server does, one session at a time."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from tests.timescale.server import TimescaleServer, TimescaleServerError, why_unavailable

WAIT_S = 30.0
START = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def server() -> Iterator[TimescaleServer]:
    missing = why_unavailable()
    if missing and os.environ.get("CANDLERY_TEST_REQUIRE_ALL"):
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)
    running = TimescaleServer()
    running.start()
    yield running
    running.stop()


@asynccontextmanager
async def session(server: TimescaleServer, **options: Any) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(server.dsn, timeout=WAIT_S, command_timeout=WAIT_S, **options)
    try:
        yield connection
    finally:
        await connection.close(timeout=WAIT_S)


async def test_it_is_a_postgresql_17_with_timescaledb(server: TimescaleServer):
    async with session(server) as connection:
        assert connection.get_server_version().major == 17
        version = await connection.fetchval("SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'")
        assert version.startswith("2.23.")
        assert await connection.fetchval("SHOW timescaledb.license") == "timescale"


async def test_without_the_extension_it_can_still_be_created_in_a_transaction(server: TimescaleServer):
    async with TimescaleServer(create_extension=False) as bare, session(bare) as connection:
        assert await connection.fetchval("SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'") == 0
        async with connection.transaction():
            await connection.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
        assert await connection.fetchval("SELECT time_bucket('5 minutes', $1::timestamptz)", START) == START


@pytest.mark.parametrize(
    ("sql_type", "value"),
    [
        ("integer", -7),
        ("bigint", 2**62),
        ("float8", 0.1 + 0.2),
        ("text", "naïve 'quoted' \\ text"),
        ("text", "x" * 300_000),
        ("boolean", True),
        ("timestamptz", START + timedelta(microseconds=1)),
        ("timestamptz[]", [START, None, START + timedelta(days=1)]),
        ("float8[]", [1.5, float("inf")]),
        ("tstzrange", asyncpg.Range(START, START + timedelta(days=1))),
        ("tstzmultirange", [asyncpg.Range(START, START + timedelta(days=1)), asyncpg.Range(START + timedelta(days=2))]),
        ("bytea", bytes(range(256))),
        ("text", None),
    ],
)
async def test_a_value_comes_back_as_it_was_sent(server: TimescaleServer, sql_type: str, value: object):
    async with session(server) as connection:
        assert await connection.fetchval(f"SELECT $1::{sql_type}", value) == value


@pytest.mark.parametrize(
    ("sql", "error"),
    [
        ("SELEC 1", asyncpg.PostgresSyntaxError),
        ("SELECT 1 / 0", asyncpg.DivisionByZeroError),
        ("SELECT * FROM nothing", asyncpg.UndefinedTableError),
        ("DO $$ BEGIN RAISE EXCEPTION 'no'; END $$", asyncpg.RaiseError),
    ],
)
async def test_the_connection_is_of_use_after_an_error(server: TimescaleServer, sql: str, error: type[Exception]):
    async with session(server) as connection:
        for attempt in (connection.fetch, connection.execute):
            with pytest.raises(error):
                await attempt(sql)
            assert await connection.fetchval("SELECT $1::int + 1", 41) == 42


async def test_the_connection_is_of_use_after_a_query_that_took_too_long(server: TimescaleServer):
    async with session(server) as connection:
        with pytest.raises(TimeoutError):
            await connection.fetch("SELECT count(*) FROM generate_series(1, 3000000)", timeout=0.05)
        assert await connection.fetchval("SELECT 1") == 1


async def test_what_follows_an_error_in_a_batch_is_not_executed(server: TimescaleServer):
    async with session(server) as connection:
        await connection.execute("CREATE TEMP TABLE numbers (n int)")
        with pytest.raises(asyncpg.DivisionByZeroError):
            await connection.executemany("INSERT INTO numbers SELECT 1 / $1::int", [(1,), (0,), (1,)])
        assert await connection.fetchval("SELECT count(*) FROM numbers") == 0


async def test_transactions_and_savepoints_commit_and_roll_back(server: TimescaleServer):
    async with session(server) as connection:
        await connection.execute("CREATE TEMP TABLE numbers (n int)")
        async with connection.transaction():
            await connection.execute("INSERT INTO numbers VALUES (1)")
            with pytest.raises(asyncpg.DivisionByZeroError):
                await _insert_and_fail(connection, 2)
        with pytest.raises(asyncpg.DivisionByZeroError):
            await _insert_and_fail(connection, 3)
        assert await connection.fetch("SELECT n FROM numbers") == [(1,)]


async def _insert_and_fail(connection: Any, number: int) -> None:
    async with connection.transaction():
        await connection.execute("INSERT INTO numbers VALUES ($1)", number)
        await connection.fetch("SELECT 1 / 0")


async def test_prepared_statements_and_cursors_work(server: TimescaleServer):
    async with session(server) as connection:
        statement = await connection.prepare("SELECT n * $1::int AS n FROM generate_series(1, 250) AS n")
        assert [row["n"] for row in await statement.fetch(2)] == list(range(2, 502, 2))
        assert [name.name for name in statement.get_attributes()] == ["n"]
        async with connection.transaction():
            assert [row["n"] async for row in statement.cursor(3, prefetch=40)] == list(range(3, 753, 3))


async def test_fifty_thousand_bars_are_upserted_in_one_statement(server: TimescaleServer):
    stamps = [START + timedelta(minutes=n) for n in range(50_000)]
    upsert = (
        "INSERT INTO many (ts, v) SELECT * FROM unnest($1::timestamptz[], $2::float8[]) ON CONFLICT (ts) DO UPDATE "
        "SET v = excluded.v WHERE many.v IS DISTINCT FROM excluded.v"
    )
    async with session(server) as connection:
        await connection.execute("CREATE TABLE many (ts timestamptz PRIMARY KEY, v float8 NOT NULL)")
        await connection.execute("SELECT create_hypertable('many', by_range('ts', INTERVAL '7 days'))")
        assert await connection.execute(upsert, stamps, [1.0] * 50_000) == "INSERT 0 50000"
        assert await connection.execute(upsert, stamps, [1.0] * 49_999 + [2.0]) == "INSERT 0 1"
        rows = await connection.fetch("SELECT ts, v FROM many ORDER BY ts")
        assert [row["ts"] for row in rows] == stamps
        await connection.execute("DROP TABLE many")


async def test_rows_are_copied_in_and_out(server: TimescaleServer):
    rows = [(n, n / 4) for n in range(20_000)]
    async with session(server) as connection:
        await connection.execute("CREATE TEMP TABLE copied (n int, v float8)")
        assert await connection.copy_records_to_table("copied", records=rows) == "COPY 20000"
        out = bytearray()
        await connection.copy_from_query("SELECT * FROM copied WHERE n < 2 ORDER BY n", output=_into(out))
        assert out == b"0\t0\n1\t0.25\n"
        with pytest.raises(asyncpg.UndefinedTableError):
            await connection.copy_records_to_table("nothing", records=rows)
        assert await connection.fetchval("SELECT sum(n) FROM copied") == sum(range(20_000))


def _into(buffer: bytearray) -> Any:
    async def write(data: bytes) -> None:
        buffer.extend(data)

    return write


async def test_a_pool_of_size_one_serves_many_tasks_and_opens_again(server: TimescaleServer):
    for _ in range(2):
        async with asyncpg.create_pool(server.dsn, min_size=1, max_size=1, timeout=WAIT_S) as pool:
            answers = await asyncio.gather(*(pool.fetchval("SELECT $1::int", n) for n in range(20)))
            assert answers == list(range(20))
            await pool.expire_connections()
            assert await pool.fetchval("SELECT 1") == 1


async def test_settings_of_the_connection_outlive_a_reset(server: TimescaleServer):
    asked = {"application_name": "candlery", "timezone": "Asia/Tokyo"}
    async with session(server, server_settings=asked) as connection:
        await connection.execute("SET timezone = 'UTC'")
        await connection.reset(timeout=WAIT_S)
        assert await connection.fetchval("SHOW timezone") == "Asia/Tokyo"
        assert await connection.fetchval("SHOW application_name") == "candlery"
        assert await connection.fetchval("SHOW search_path") == '"$user", public'


async def test_a_second_connection_waits_until_the_first_has_ended(server: TimescaleServer):
    async with session(server) as first:
        await first.execute("SET timezone = 'Asia/Tokyo'; SELECT pg_advisory_lock(7); CREATE TEMP TABLE mine (n int)")
        second = asyncio.create_task(asyncpg.connect(server.dsn, timeout=WAIT_S))
        assert await first.fetchval("SELECT 1") == 1
        assert not second.done()
    connection = await second
    try:
        assert await connection.fetchval("SHOW timezone") != "Asia/Tokyo"
        assert await connection.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
        assert await connection.fetchval("SELECT to_regclass('mine')") is None
    finally:
        await connection.close(timeout=WAIT_S)


async def test_a_waiting_connection_that_gives_up_leaves_the_queue(server: TimescaleServer):
    async with session(server) as first:
        impatient = asyncio.create_task(asyncpg.connect(server.dsn, timeout=WAIT_S))
        assert await first.fetchval("SELECT 1") == 1
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient
    async with session(server) as third:
        assert await third.fetchval("SELECT 3") == 3


@pytest.mark.parametrize("failed", [False, True], ids=["open", "failed"])
async def test_an_abrupt_disconnect_in_mid_transaction_leaves_nothing_behind(server: TimescaleServer, *, failed: bool):
    connection = await asyncpg.connect(server.dsn, timeout=WAIT_S)
    await connection.execute("BEGIN; CREATE TABLE half_done (n int); SELECT pg_advisory_xact_lock(1)")
    await connection.execute("SELECT pg_advisory_lock(2)")
    if failed:
        with pytest.raises(asyncpg.DivisionByZeroError):
            await connection.fetch("SELECT 1 / 0")
    connection.terminate()
    async with session(server) as following:
        assert await following.fetchval("SELECT to_regclass('half_done')") is None
        assert await following.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
        assert not following.is_in_transaction()


async def test_a_message_cut_into_single_bytes_is_read_whole(server: TimescaleServer):
    startup = b"\x00\x03\x00\x00user\x00me\x00\x00"
    query = b"SELECT 42\x00"
    sent = _sized(startup) + b"Q" + _sized(query) + b"X" + _sized(b"")
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.dsn.rpartition(":")[2].split("/")[0]))
    for byte in sent:
        writer.write(bytes([byte]))
        await writer.drain()
    answer = await asyncio.wait_for(reader.read(), WAIT_S)
    writer.close()
    await writer.wait_closed()
    assert answer.startswith(b"R\x00\x00\x00\x08\x00\x00\x00\x00")
    assert b"SELECT 1\x00" in answer
    assert answer.endswith(b"Z\x00\x00\x00\x05I")


def _sized(body: bytes) -> bytes:
    return (len(body) + 4).to_bytes(4, "big") + body


async def test_a_setting_that_does_not_exist_is_refused_at_connecting(server: TimescaleServer):
    with pytest.raises(asyncpg.UndefinedObjectError, match="no_such_setting"):
        await asyncpg.connect(server.dsn, timeout=WAIT_S, server_settings={"no_such_setting": "1"})
    async with session(server) as connection:
        assert await connection.fetchval("SELECT 1") == 1


async def test_a_session_hears_its_own_notifications(server: TimescaleServer):
    heard: asyncio.Queue[str] = asyncio.Queue()
    async with session(server) as connection:
        await connection.add_listener("news", lambda _connection, _pid, _channel, payload: heard.put_nowait(payload))
        await connection.execute("SELECT pg_notify('news', 'bars')")
        assert await asyncio.wait_for(heard.get(), WAIT_S) == "bars"


async def test_each_server_is_a_database_of_its_own_and_ends_when_closed(server: TimescaleServer):
    async with session(server) as connection:
        await connection.execute("CREATE TABLE only_here (n int)")
    async with TimescaleServer() as other:
        async with session(other) as connection:
            assert await connection.fetchval("SELECT to_regclass('only_here')") is None
        dsn = other.dsn
    assert other.pid is None
    with pytest.raises(ConnectionRefusedError):
        await asyncpg.connect(dsn, timeout=WAIT_S)


async def test_a_server_that_died_is_reported_at_closing(server: TimescaleServer):
    other = TimescaleServer()
    await other.open()
    assert other.pid is not None
    os.kill(other.pid, 9)
    await asyncio.to_thread(os.waitid, os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(TimescaleServerError, match="had ended"):
        await other.close()
