"""The processes of a benchmark: those that end by themselves, and those that are told to."""

import asyncio
from asyncio.subprocess import Process

from bench.outcome import WrongResultError

_STOP_S = 15.0


async def finished(process: Process, name: str, timeout_s: float, given: bytes | None = None) -> bytes:
    """Wait until it has done its work, and take what it wrote to stdout. `given`: to its stdin.

    Raises:
        WrongResultError: it did not end well.
        TimeoutError: it did not end in time; it was killed.
    """
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate(given)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise WrongResultError(f"{name} ended with {process.returncode}: {(err or b'').decode()[-400:]}")
    return out


async def stop(process: Process) -> None:
    """Tell it to end, gently, so that it stops what it started, and wait until it has."""
    if process.returncode is None:
        process.terminate()
        await gone(process)


async def gone(process: Process) -> None:
    """Wait for the end of a process that was told to end, and end it by force in time."""
    try:
        async with asyncio.timeout(_STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
