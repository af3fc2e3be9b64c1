"""The embedded PostgreSQL: real servers on real folders, as whoever runs the tests."""

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from app_extensions.embedded_postgres import (
    DataFolderInUseError,
    EmbeddedPostgres,
    EmbeddedPostgresError,
    launcher,
    log_file,
    processes,
)
from app_extensions.embedded_postgres import server as supervisor
from app_extensions.embedded_postgres.account import account_for
from app_extensions.embedded_postgres.binaries import Binaries, installed_binaries

REPOSITORY = Path(__file__).parents[2]
OWNER = Path(__file__).with_name("postgres_owner.py")
DEADLINE_S = 40

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up its rights")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@asynccontextmanager
async def running(folder: Path, **options: float) -> AsyncIterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(folder, **options)
    await server.open()
    try:
        yield server
    finally:
        await server.close()


@asynccontextmanager
async def owner_process(folder: Path, *prefix: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, Any]]]:
    """Another process that owns a server on the folder. `prefix`: what starts it."""
    process = await asyncio.create_subprocess_exec(
        *prefix,
        sys.executable,
        "-B",
        str(OWNER),
        str(folder),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd="/",
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            line = await process.stdout.readline()
        assert line, "the owner ended before its server answered"
        yield process, json.loads(line)
    finally:
        process.stdin.close()
        await ended(process)


async def ended(process: asyncio.subprocess.Process) -> int:
    try:
        async with asyncio.timeout(DEADLINE_S):
            return await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def execute(dsn: str, query: str) -> list[Any]:
    connection = await asyncpg.connect(dsn, timeout=DEADLINE_S)
    try:
        return [row[0] for row in await connection.fetch(query)]
    finally:
        await connection.close()


async def keep(dsn: str, *values: int) -> None:
    await execute(dsn, "CREATE TABLE IF NOT EXISTS kept (value integer PRIMARY KEY)")
    for value in values:
        await execute(dsn, f"INSERT INTO kept VALUES ({value})")


async def kept(dsn: str) -> list[int]:
    return await execute(dsn, "SELECT value FROM kept ORDER BY value")


async def eventually(condition: Callable[[], bool] | Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            found = condition()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.02)


def runs(pid: int) -> bool:
    """Whether the process does anything still: one that has ended and waits to be collected does not."""
    return any(found == pid and command for found, _, command in processes._commands())


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def unfinished(folder: Path) -> list[Path]:
    """Databases in preparation."""
    return list(folder.glob(".unfinished-*"))


def everything_below(folder: Path) -> list[Path]:
    return [folder, *folder.rglob("*")]


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
        await eventually((folder / "cluster/data/postmaster.pid").exists)
        with pytest.raises(EmbeddedPostgresError, match=f"(?s)already exists.*{theirs.pid}"):
            await EmbeddedPostgres(folder).open()
        assert theirs.returncode is None
    finally:
        theirs.send_signal(signal.SIGQUIT)
        await ended(theirs)


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


async def answers(dsn: str) -> bool:
    try:
        return await execute(dsn, "SELECT 1") == [1]
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False


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


@as_root
async def test_root_runs_the_server_as_a_user_without_its_rights(folder: Path):
    async with running(folder) as server:
        status = status_of(server.pid)
        assert "0" not in status["Uid"].split()
        assert "0" not in status["Gid"].split()
        # At most the right to look into folders, where the ones above are closed.
        assert int(status["CapEff"], 16) in {0, 1 << 2}
        assert int(status["CapPrm"], 16) == int(status["CapEff"], 16)


@as_root
@on_linux
@pytest.mark.parametrize(("mode", "right"), [(0o755, 2), (0o700, 1)])
async def test_root_may_keep_programs_and_data_where_only_root_can_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, right: int
):
    """Looking suffices as long as everybody may execute the programs; those of a umask of 077 need more."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    binaries = Binaries(copy_of_binaries(closed))
    for path in everything_below(binaries.folder.parent.parent):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & mode)
    modes = {path: path.lstat().st_mode for path in everything_below(closed)}
    monkeypatch.setattr(supervisor, "installed_binaries", lambda: binaries)
    for value in (1, 2):
        async with running(closed / "data") as server:
            assert int(status_of(server.pid)["CapEff"], 16) == 1 << right
            await keep(server.dsn, value)
    async with running(closed / "data") as server:
        assert await kept(server.dsn) == [1, 2]
    assert {path: path.lstat().st_mode for path in modes} == modes


def copy_of_binaries(target: Path) -> Path:
    site = installed_binaries().folder.parent.parent
    ignored = shutil.ignore_patterns("include", "doc", "*.a", "pgxs", "*.py", "__pycache__")
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        if (site / name).exists():
            shutil.copytree(site / name, target / name, symlinks=True, ignore=ignored)
    return target / "embedded_postgres" / "pginstall"


def without(*rights: int) -> tuple[str, ...]:
    """What runs a program as a root that lacks these rights, as in a container."""
    drop = f"""
import ctypes, os, sys
for right in {rights}:
    if ctypes.CDLL(None).prctl(24, right, 0, 0, 0) != 0:
        sys.exit("a right could not be dropped")
os.execv(sys.argv[1], sys.argv[1:])
"""
    return (sys.executable, "-c", drop)


@as_root
@on_linux
async def test_root_with_the_rights_of_a_container_runs_the_server_where_only_root_can_look(folder: Path):
    folder.parent.chmod(0o700)
    looking_and_tracing = (2, 19)
    for value in (1, 2):
        async with owner_process(folder, *without(*looking_and_tracing)) as (owner, said):
            await keep(said["dsn"], value)
            owner.kill()
            await ended(owner)
    async with owner_process(folder, *without(*looking_and_tracing)) as (_, said):
        assert await kept(said["dsn"]) == [1, 2]


def as_nobody(*needed: Path) -> tuple[str, ...]:
    """What runs a program as an ordinary user who may look where root may, so that this repository can lie anywhere."""
    who = ("65534", "65534", "")
    paths = map(str, (f"x:{sys.executable}", os.__file__, OWNER, *needed))
    return (sys.executable, "-I", "-S", launcher.__file__, str(os.getpid()), "9", *who, *paths, "--")


@as_root
@on_linux
async def test_root_that_cannot_lend_its_rights_is_told_which_folder_is_out_of_reach(folder: Path):
    folder.mkdir(mode=0o700)
    code, errors = await outcome(*without(1, 2), *as_nobody(folder), sys.executable)
    assert code != 0
    assert "User 65534 cannot reach /" in errors
    assert "CANDLERY_DATA_DIR" in errors
    code, errors = await outcome(*without(1, 2), sys.executable, "-B", str(OWNER), str(folder))
    assert code != 0
    assert f"{folder} cannot be used" in errors
    assert "start Candlery as an ordinary user" in errors


async def outcome(*command: str) -> tuple[int, str]:
    """The exit code and what was written to standard error."""
    process = await asyncio.create_subprocess_exec(*command, cwd="/", stderr=asyncio.subprocess.PIPE)
    async with asyncio.timeout(DEADLINE_S):
        _, errors = await process.communicate()
    return process.returncode, errors.decode()


@pytest.fixture
def users_folder(folder: Path) -> Path:
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)
    return folder


@as_root
@on_linux
async def test_an_ordinary_user_runs_the_server_as_itself(users_folder: Path):
    folder = users_folder
    async with owner_process(folder, *as_nobody(folder)) as (owner, said):
        assert said["uid"] == 65534
        assert set(status_of(said["pid"])["Uid"].split()) == {"65534"}
        await keep(said["dsn"], 1)
        owner.kill()
        await ended(owner)
        await eventually(lambda: not runs(said["pid"]))
    async with owner_process(folder, *as_nobody(folder)) as (_, said):
        assert await kept(said["dsn"]) == [1]


@as_root
@on_linux
async def test_a_users_folder_still_works_for_the_user_after_root_has_used_it(users_folder: Path):
    folder = users_folder
    async with running(folder) as server:
        assert set(status_of(server.pid)["Uid"].split()) == {"65534"}
        await keep(server.dsn, 1)
    async with owner_process(folder, *as_nobody(folder)) as (_, said):
        assert await kept(said["dsn"]) == [1]
    async with running(folder) as server:
        assert await kept(server.dsn) == [1]


@as_root
async def test_a_folder_that_root_restored_from_elsewhere_works(folder: Path):
    async with running(folder) as server:
        await keep(server.dsn, 1)
    for path in everything_below(folder):
        os.chown(path, 0, 0, follow_symlinks=False)
    async with running(folder) as server:
        assert await kept(server.dsn) == [1]


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
