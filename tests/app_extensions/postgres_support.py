"""What the tests of the embedded PostgreSQL share."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from app_extensions.embedded_postgres import (
    EmbeddedPostgres,
    processes,
)

OWNER = Path(__file__).with_name("postgres_owner.py")
DEADLINE_S = 40

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up its rights")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")


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


async def answers(dsn: str) -> bool:
    try:
        return await execute(dsn, "SELECT 1") == [1]
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False
