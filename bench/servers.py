"""Servers as processes of their own: Candlery as its command starts it, and what it is held against."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import urlopen

from bench.processes import stop
from config import ConfigError, load_config

_START_S, _ANSWER_S = 60.0, 30.0
_ROOT = Path(__file__).resolve().parent.parent
_WEB_SERVERS = ("hypercorn", "uvicorn")
_PREFIX = "CANDLERY_"


def offered() -> list[str]:
    """The web servers that Candlery can be run on here."""
    found = []
    for name in _WEB_SERVERS:
        with suppress(ConfigError):
            load_config({"CANDLERY_SERVER": name}, env_file=None)
            found.append(name)
    return found


class Server(NamedTuple):
    """A server that is ready: its address and its process."""

    address: tuple[str, int]
    pid: int


@asynccontextmanager
async def candlery_serve(scratch: Path, settings: Mapping[str, str]) -> AsyncIterator[Server]:
    """`candlery serve` with these settings and no others, on any free port, for the block."""
    environ = {"CANDLERY_PORT": "0", "CANDLERY_LOG_LEVEL": "WARNING", **settings}
    async with _started([sys.executable, "-m", "cli", "serve"], scratch, environ) as server:
        yield server


@asynccontextmanager
async def bare_serve(kind: str, server: str, scratch: Path, body: bytes) -> AsyncIterator[Server]:
    """A bare application, `asgi` or `quart`, on one of the web servers, that answers all with these bytes."""
    path = scratch / f"{kind}.body"
    await asyncio.to_thread(path.write_bytes, body)
    command = [sys.executable, "-m", "bench.bare_server", kind, server, str(path)]
    async with _started(command, scratch, {}) as started:
        yield started


def body_of(address: tuple[str, int], target: str) -> bytes:
    """One answer's body; it blocks."""
    host, port = address
    with urlopen(f"http://{host}:{port}{target}", timeout=_ANSWER_S) as answer:
        body: bytes = answer.read()
        return body


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """That of this process, but for what it says of Candlery."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_PREFIX)}
    return {**inherited, "PYTHONPATH": str(_ROOT), **settings}


@asynccontextmanager
async def _started(command: Sequence[str], scratch: Path, settings: Mapping[str, str]) -> AsyncIterator[Server]:
    # In a folder without a file of settings.
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=scratch,
        env=environment(settings),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Server(await _ready(process), process.pid)
    finally:
        await stop(process)


async def _ready(process: asyncio.subprocess.Process) -> tuple[str, int]:
    """Where it listens, as its first line says."""
    assert process.stdout is not None
    async with asyncio.timeout(_START_S):
        line = await process.stdout.readline()
    found = urlsplit(line.decode().rpartition(" ")[2].strip())
    if found.hostname is None or found.port is None:
        raise RuntimeError(f"the server did not start; it said {line!r}")
    return found.hostname, found.port
