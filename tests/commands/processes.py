"""The `candlery` command as a process of its own, on an embedded database in a folder."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import aiohttp

from tests.support.servers import chosen_server

ROOT = Path(__file__).resolve().parents[2]
DEMO_MARKET = ("--market", "demo", "--provider", "sim")
DEMO = (*DEMO_MARKET, "--symbol", "DEMO/USD")
#: For anything that a process is waited for.
PATIENCE_S = 150
#: A server ends within its own time; a slow machine needs longer for an embedded database.
END_S = 30


def environment(folder: Path, **extra: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("CANDLERY_")}
    ours = {"CANDLERY_DATA_DIR": str(folder), "CANDLERY_PORT": "0", "CANDLERY_SERVER": chosen_server()}
    return {**plain, **ours, "COLUMNS": "200", **extra}


def command(*args: str) -> tuple[str, ...]:
    return (sys.executable, str(ROOT / "cli.py"), *args)


async def start(folder: Path, *args: str, **extra: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *command(*args),
        cwd=folder,
        env=environment(folder, **extra),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def run(folder: Path, *args: str, **extra: str) -> tuple[int, str, str]:
    return await outcome(await start(folder, *args, **extra))


async def outcome(process: asyncio.subprocess.Process) -> tuple[int, str, str]:
    """The exit code and all that was not read yet of its output."""
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def serving(folder: Path, **extra: str) -> tuple[asyncio.subprocess.Process, str]:
    """A running server and its address."""
    process = await start(folder, "serve", CANDLERY_LOG_LEVEL="WARNING", **extra)
    line = await line_of(process)
    assert "Candlery is ready: " in line, line
    return process, line.split()[-1]


async def line_of(process: asyncio.subprocess.Process, *, with_words: str = "") -> str:
    """The next line of its output that has the words."""
    assert process.stdout is not None
    async with asyncio.timeout(60):
        while line := (await process.stdout.readline()).decode():
            if with_words in line:
                return line
    raise AssertionError(f"the process ended without {with_words!r}")


async def ask(address: str, path: str) -> dict[str, object]:
    async with aiohttp.ClientSession() as session, session.get(f"{address}{path}") as response:
        assert response.status == 200, await response.text()
        return await response.json()  # type: ignore[no-any-return]


async def end(process: asyncio.subprocess.Process, number: signal.Signals) -> int:
    process.send_signal(number)
    await asyncio.wait_for(process.communicate(), END_S)
    assert process.returncode is not None
    return process.returncode
