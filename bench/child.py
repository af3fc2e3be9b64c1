"""One question in a process of its own: `python -m bench.child QUESTION full|quick SCRATCH SHARED`.

It ends when its stdin closes, and so never outlives whoever started it.
"""

import asyncio
import importlib
import logging
import os
import signal
import sys
import threading
from pathlib import Path

import msgspec

from bench.outcome import Outcome, Question, Task

#: In the scratch folder: the outcome as JSON.
OUTCOME = "outcome.json"


def question(name: str) -> Question:
    """The module of a question."""
    module: Question = importlib.import_module(f"bench.questions.{name}")
    return module


def end_with_stdin() -> None:
    """Tell this process to end when its stdin closes."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="stdin", daemon=True).start()


async def answer(name: str, task: Task) -> Outcome:
    """Measure; SIGTERM cancels it, so that all it started is stopped."""
    running = asyncio.current_task()
    assert running is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    end_with_stdin()
    return await question(name).run(task)


def main(arguments: list[str]) -> int:
    """Write what was found into the scratch folder."""
    name, mode, scratch, shared = arguments
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        outcome = asyncio.run(answer(name, Task(quick=mode == "quick", scratch=Path(scratch), shared=Path(shared))))
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM
    (Path(scratch) / OUTCOME).write_bytes(msgspec.json.encode(outcome))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
