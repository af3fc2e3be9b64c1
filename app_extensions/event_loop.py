"""The event loop that the server runs on: uvloop where it is installed, else Python's own."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop of the fastest kind that this machine has."""
    try:
        import uvloop  # noqa: PLC0415 - there is none for Windows
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on such a loop to its end, as `asyncio.run` does on Python's own."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)
