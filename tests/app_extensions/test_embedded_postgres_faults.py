"""The embedded PostgreSQL when something goes wrong: real processes that are killed, stuck or misled."""

import asyncio
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from app_extensions.embedded_postgres import (
    EmbeddedPostgres,
    EmbeddedPostgresError,
    log_file,
)
from app_extensions.embedded_postgres import server as supervisor
from app_extensions.embedded_postgres.binaries import Binaries, installed_binaries
from tests.app_extensions.postgres_support import (
    OWNER,
    answers,
    ended,
    eventually,
    keep,
    kept,
    running,
    runs,
    unfinished,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


async def test_an_interrupted_preparation_is_begun_anew(folder: Path):
    interrupted = await asyncio.create_subprocess_exec(sys.executable, "-B", str(OWNER), str(folder), cwd="/")
    try:
        await eventually(lambda: any((path / "data/base").exists() for path in unfinished(folder)))
    finally:
        interrupted.kill()
        await ended(interrupted)
    assert not (folder / "cluster").exists()
    async with running(folder) as server:
        await keep(server.dsn, 1)
    async with running(folder) as server:
        assert await kept(server.dsn) == [1]
    assert unfinished(folder) == []


async def test_a_start_that_is_cancelled_leaves_nothing_running_and_the_folder_free(folder: Path):
    for condition in (
        lambda: any((path / "data/base").exists() for path in unfinished(folder)),
        (folder / "cluster").exists,
    ):
        task = asyncio.create_task(EmbeddedPostgres(folder).open())
        await eventually(condition)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    async with running(folder) as server:
        await keep(server.dsn, 1)


async def test_a_server_killed_underneath_is_started_again_at_the_same_address(
    folder: Path, caplog: pytest.LogCaptureFixture
):
    async with running(folder) as server:
        await keep(server.dsn, 1)
        dsn, first = server.dsn, server.pid
        assert first is not None
        for value in (2, 3):
            before = server.pid
            os.kill(before, signal.SIGKILL)
            await eventually(lambda before=before: server.pid not in {None, before})
            await eventually(lambda: answers(dsn))
            await keep(dsn, value)
        assert server.dsn == dsn
        assert await kept(dsn) == [1, 2, 3]
    assert f"process {first}) ended unexpectedly" in caplog.text


async def test_a_restart_that_fails_is_logged_with_the_reason_and_tried_again(
    folder: Path, caplog: pytest.LogCaptureFixture
):
    async with running(folder) as server:
        await keep(server.dsn, 1)
        settings = folder / "cluster/data/postgresql.auto.conf"
        settings.write_text("no_such_setting = 1\n")
        os.kill(server.pid, signal.SIGKILL)
        await eventually(lambda: "no_such_setting" in caplog.text)
        assert server.pid is None or not await answers(server.dsn)
        settings.write_text("")
        await eventually(lambda: answers(server.dsn))
        assert await kept(server.dsn) == [1]


async def test_closing_while_a_restart_is_tried_ends_everything(folder: Path):
    server = EmbeddedPostgres(folder)
    await server.open()
    killed = server.pid
    os.kill(killed, signal.SIGKILL)
    await eventually(lambda: server.pid not in {None, killed})
    again = server.pid
    await server.close()
    assert server.pid is None
    await eventually(lambda: not runs(again))


async def test_closing_with_busy_connections_ends_the_server_in_time(folder: Path):
    server = EmbeddedPostgres(folder, stop_timeout_s=4)
    await server.open()
    pid = server.pid
    connections = [await asyncpg.connect(server.dsn) for _ in range(4)]
    sleeping = asyncio.create_task(connections[0].execute("SELECT pg_sleep(600)"))
    await eventually(lambda: sleeps(connections[1]))
    started = time.monotonic()
    await server.close()
    took_s = time.monotonic() - started
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await sleeping
    for connection in connections:
        connection.terminate()
    assert took_s < 5
    assert not runs(pid)


async def sleeps(connection: Any) -> bool:
    return await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)' AND wait_event = 'PgSleep')"
    )


async def test_a_server_that_does_not_stop_is_killed_and_loses_nothing(folder: Path):
    server = EmbeddedPostgres(folder, stop_timeout_s=0.5)
    await server.open()
    pid = server.pid
    await keep(server.dsn, 1)
    os.kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    await server.close()
    assert time.monotonic() - started < 10
    assert not runs(pid)
    async with running(folder) as server:
        assert await kept(server.dsn) == [1]


async def test_a_folder_of_another_version_is_refused_with_both_versions(folder: Path):
    async with running(folder):
        pass
    (folder / "cluster/data/PG_VERSION").write_text("9\n")
    ours = installed_binaries().major_version
    with pytest.raises(EmbeddedPostgresError, match=f"PostgreSQL 9, .* PostgreSQL {ours}:"):
        await EmbeddedPostgres(folder).open()


async def test_a_folder_whose_database_is_gone_is_not_silently_begun_anew(folder: Path):
    async with running(folder):
        pass
    shutil.rmtree(folder / "cluster/data")
    with pytest.raises(EmbeddedPostgresError, match="holds no PostgreSQL database any more"):
        await EmbeddedPostgres(folder).open()


async def test_a_start_that_fails_says_what_postgresql_said_last(folder: Path):
    async with running(folder):
        pass
    settings = folder / "cluster/data/postgresql.auto.conf"
    settings.write_text("no_such_setting = 1\n")
    with pytest.raises(EmbeddedPostgresError, match="no_such_setting"):
        await EmbeddedPostgres(folder).open()
    settings.write_text("")
    async with running(folder) as server:
        assert await answers(server.dsn)


async def test_a_preparation_that_fails_says_why_and_leaves_the_folder_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    real = installed_binaries()
    broken = Binaries(folder.with_name("broken"))
    (broken.folder / "bin").mkdir(parents=True)
    broken.initdb.write_text("#!/bin/sh\necho 'could not write: No space left on device' >&2\nexit 1\n")
    broken.initdb.chmod(0o755)
    broken.postgres.symlink_to(real.postgres)
    (broken.folder / "share").symlink_to(real.folder / "share")
    with monkeypatch.context() as patch:
        patch.setattr(supervisor, "installed_binaries", lambda: broken)
        with pytest.raises(EmbeddedPostgresError, match=r"(?s)could not be prepared.*No space left on device"):
            await EmbeddedPostgres(folder).open()
    assert unfinished(folder) == []
    async with running(folder) as server:
        assert await answers(server.dsn)


async def test_a_folder_that_cannot_be_made_is_an_error_that_names_it():
    folder = OWNER / "data"
    with pytest.raises(EmbeddedPostgresError, match=str(folder)):
        await EmbeddedPostgres(folder).open()


async def test_the_log_is_kept_short_while_the_server_writes_it(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(log_file, "_MAX_BYTES", 2000)
    monkeypatch.setattr(supervisor, "_LOG_CHECK_S", 0.05)
    log, older = folder / "postgres.log", folder / "postgres.log.1"
    async with running(folder) as server:
        connection = await asyncpg.connect(server.dsn)
        for number in range(100):
            with pytest.raises(asyncpg.UndefinedTableError):
                await connection.execute(f"SELECT * FROM missing_{number}")
        await eventually(lambda: older.exists() and log.stat().st_size <= 2000)
        with pytest.raises(asyncpg.UndefinedTableError):
            await connection.execute("SELECT * FROM missing_after_the_cut")
        await eventually(lambda: b"missing_after_the_cut" in log.read_bytes())
        assert b"\0" not in log.read_bytes()
        assert log.stat().st_mode & 0o077 == older.stat().st_mode & 0o077 == 0
        await connection.close()


async def test_a_port_that_was_taken_meanwhile_is_waited_for_without_changing_the_address(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(supervisor, "_FIRST_RESTART_S", 2.0)
    monkeypatch.setattr(supervisor, "_CONNECT_TIMEOUT_S", 1.0)
    async with running(folder / ("x" * 120)) as server:
        await keep(server.dsn, 1)
        dsn, port = server.dsn, server._endpoint.port
        os.kill(server.pid, signal.SIGKILL)
        with socket.socket() as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            await eventually(lambda: listens(taken, port))
            await eventually(lambda: "could not be started again" in caplog.text)
        assert "could not bind" in caplog.text
        await eventually(lambda: answers(dsn))
        assert await kept(dsn) == [1]


def listens(listener: socket.socket, port: int) -> bool:
    """Whether the port could be had: the dead server's children still have it for a moment."""
    try:
        listener.bind(("127.0.0.1", port))
    except OSError:
        return False
    listener.listen()
    return True
