"""The embedded PostgreSQL: real servers on real folders, as whoever runs the tests."""

import os
import signal
import time
from pathlib import Path

import asyncpg
import pytest

from app_extensions.embedded_postgres import (
    DataFolderInUseError,
    EmbeddedPostgres,
    EmbeddedPostgresError,
    processes,
)
from app_extensions.embedded_postgres.account import account_for
from app_extensions.embedded_postgres.binaries import installed_binaries
from tests.app_extensions.postgres_support import (
    ended,
    eventually,
    everything_below,
    execute,
    keep,
    kept,
    on_linux,
    owner_process,
    running,
    runs,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


async def test_the_first_start_makes_a_database_in_utf8_with_c_order_in_utc(folder: Path):
    async with running(folder) as server:
        connection = await asyncpg.connect(server.dsn)
        found = {
            name: await connection.fetchval(f"SHOW {name}")
            for name in ("server_encoding", "lc_messages", "timezone", "jit", "fsync")
        }
        database, collation = await connection.fetchrow(
            "SELECT datname, datcollate FROM pg_database WHERE datname = current_database()"
        )
        await connection.close()
    assert (database, collation) == ("candlery", "C")
    assert found == {"server_encoding": "UTF8", "lc_messages": "C", "timezone": "UTC", "jit": "off", "fsync": "on"}


async def test_data_survives_a_restart_and_the_second_start_is_quick(folder: Path):
    async with running(folder) as server:
        await keep(server.dsn, 1)
        first = server.pid
    assert server.pid is None
    assert first is not None
    assert not runs(first)
    started = time.monotonic()
    async with running(folder) as server:
        took_s = time.monotonic() - started
        assert await kept(server.dsn) == [1]
    # 0.05 to 0.15 s where nothing else runs; the bound leaves room for a busy machine.
    assert took_s < 5


async def test_one_object_may_be_opened_again_after_closing_but_not_twice(folder: Path):
    server = EmbeddedPostgres(folder)
    with pytest.raises(EmbeddedPostgresError, match="not open"):
        _ = server.dsn
    await server.close()
    await server.open()
    try:
        with pytest.raises(EmbeddedPostgresError, match="open already"):
            await server.open()
        await keep(server.dsn, 1)
    finally:
        await server.close()
    await server.open()
    try:
        assert await kept(server.dsn) == [1]
    finally:
        await server.close()


@on_linux
async def test_data_survives_the_owners_sudden_death_which_leaves_no_server_behind(folder: Path):
    async with owner_process(folder) as (owner, said):
        await keep(said["dsn"], 1, 2)
        owner.kill()
        await ended(owner)
        await eventually(lambda: not runs(said["pid"]))
    async with running(folder) as server:
        assert await kept(server.dsn) == [1, 2]


async def test_a_start_straight_after_the_owners_sudden_death_finds_all_that_was_committed(folder: Path):
    for value in range(3):
        async with owner_process(folder) as (owner, said):
            await keep(said["dsn"], value)
            owner.kill()
            await ended(owner)
    async with running(folder) as server:
        assert await kept(server.dsn) == [0, 1, 2]
        assert not runs(said["pid"])


async def test_a_server_that_a_dead_owner_left_hanging_is_ended_before_the_next_starts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    short = ((signal.SIGINT, 0.2), (signal.SIGQUIT, 0.2), (signal.SIGKILL, 10.0))
    monkeypatch.setattr(processes, "_STAGES", short)
    async with owner_process(folder) as (owner, said):
        await keep(said["dsn"], 1)
        os.kill(said["pid"], signal.SIGSTOP)
        owner.kill()
        await ended(owner)
    assert runs(said["pid"])
    async with running(folder) as server:
        assert not runs(said["pid"])
        assert await kept(server.dsn) == [1]


async def test_a_second_server_on_the_same_folder_is_refused_by_name(folder: Path):
    async with owner_process(folder) as (owner, said):
        started = time.monotonic()
        with pytest.raises(DataFolderInUseError) as refused:
            await EmbeddedPostgres(folder).open()
        assert time.monotonic() - started < 2
        assert str(folder) in str(refused.value)
        assert f"process {owner.pid}:" in str(refused.value)
        await keep(said["dsn"], 1)
    async with running(folder) as server, running(folder.with_name("other")) as other:
        assert await kept(server.dsn) == [1]
        with pytest.raises(DataFolderInUseError, match=f"process {os.getpid()}:"):
            await EmbeddedPostgres(folder).open()
        assert other.pid is not None


async def test_a_stale_pid_file_that_names_another_process_is_not_believed(folder: Path):
    async with running(folder) as server:
        await keep(server.dsn, 1)
    async with running(folder.with_name("other")) as other:
        written = (other._folder.data / "postmaster.pid").read_text()
        for pid in (other.pid, os.getppid(), 2**22 + 1):
            (folder / "cluster/data/postmaster.pid").write_text(written.replace(str(other.pid), str(pid), 1))
            if (account := account_for(folder)) is not None:
                os.chown(folder / "cluster/data/postmaster.pid", account.uid, account.gid)
            async with running(folder) as server:
                assert await kept(server.dsn) == [1]
        assert await execute(other.dsn, "SELECT 1") == [1]


async def test_a_server_that_somebody_else_started_on_the_folder_is_left_alone(folder: Path):
    async with running(folder) as server:
        log, endpoint = server._log, server._endpoint
        assert endpoint is not None
    output = log.open()
    options = [option for name, value in endpoint.settings.items() for option in ("-c", f"{name}={value}")]
    theirs = await processes.spawn(
        installed_binaries().postgres,
        "-D",
        folder / "cluster/data",
        *options,
        account=account_for(folder),
        needed=(folder / "cluster/data",),
        death_signal=signal.SIGQUIT,
        output=output,
    )
    os.close(output)
    try:
        # Ready, and not only there: our start makes the socket's folder anew, which one still starting would miss.
        note = folder / "cluster/data/postmaster.pid"
        await eventually(lambda: note.exists() and "ready" in note.read_text(encoding="utf-8"))
        with pytest.raises(EmbeddedPostgresError, match=f"(?s)already exists.*{theirs.pid}"):
            await EmbeddedPostgres(folder).open()
        assert theirs.returncode is None
    finally:
        theirs.send_signal(signal.SIGQUIT)
        await ended(theirs)


async def test_a_path_too_long_for_a_socket_works_with_a_password_on_the_loopback_address(folder: Path):
    async with running(folder / ("x" * 120)) as server:
        assert "@127.0.0.1:" in server.dsn
        await keep(server.dsn, 1)
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(server.dsn.replace(server._password, "wrong"))


async def test_a_path_with_syntax_in_it_works(folder: Path):
    strange = folder / "a, 'b' \"c\" 100% ü"
    async with running(strange) as server:
        await keep(server.dsn, 1)
    async with running(strange) as server:
        assert await kept(server.dsn) == [1]


async def test_a_socket_asks_for_the_password_too(folder: Path):
    async with running(folder) as server:
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(server.dsn.replace(server._password, "wrong"))


async def test_nobody_but_the_owner_may_look_into_the_folder(folder: Path):
    async with running(folder) as server:
        await keep(server.dsn, 1)
        modes = {
            path: path.lstat().st_mode & 0o077 for path in everything_below(folder) if not path.name.startswith(".s.")
        }
    open_to_others = [str(path) for path, mode in modes.items() if mode]
    assert len(modes) > 100
    assert open_to_others == []


async def test_folders_that_were_there_before_keep_their_modes_and_owners(folder: Path):
    parent = folder.parent / "parent"
    parent.mkdir(mode=0o700)
    folder = parent / "data"
    folder.mkdir(mode=0o700)
    before = [(path.stat().st_mode, path.stat().st_uid) for path in (parent, folder)]
    async with running(folder) as server:
        await keep(server.dsn, 1)
    assert [(path.stat().st_mode, path.stat().st_uid) for path in (parent, folder)] == before


async def test_what_candlery_works_as_may_not_read_the_servers_files(folder: Path):
    async with running(folder) as server:
        for query in ("SELECT pg_read_file('PG_VERSION')", "COPY (SELECT 1) TO PROGRAM 'true'"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await execute(server.dsn, query)
