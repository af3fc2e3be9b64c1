"""The embedded PostgreSQL under root, who lends it as little as possible, and as an ordinary user."""

import asyncio
import os
import shutil
import sys
from pathlib import Path

import pytest

from app_extensions.embedded_postgres import (
    launcher,
)
from app_extensions.embedded_postgres import server as supervisor
from app_extensions.embedded_postgres.binaries import Binaries, installed_binaries
from tests.app_extensions.postgres_support import (
    DEADLINE_S,
    OWNER,
    as_root,
    ended,
    eventually,
    everything_below,
    keep,
    kept,
    on_linux,
    owner_process,
    running,
    runs,
    status_of,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


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
