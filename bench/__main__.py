"""`python -m bench [--quick] [question ...]`: answer the questions, each in a process of its own, and print a table.

A full run of all questions writes bench/RESULTS.md.
"""

import argparse
import asyncio
import importlib
import inspect
import os
import pkgutil
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from bench import child, load, questions, wrk
from bench.machine import machine
from bench.outcome import Outcome
from bench.processes import stop
from bench.report import results, table, updated

_ROOT = Path(__file__).resolve().parent.parent
_SCRATCH = _ROOT / ".bench-tmp"
_SHARED = "shared"
_RESULTS = _ROOT / "bench" / "RESULTS.md"
#: All questions together; `make bench` ends within ten minutes.
_BUDGET_S = 580.0
_WRONG_USE = 2


class UnansweredError(RuntimeError):
    """A question could not be answered."""


def all_questions() -> list[str]:
    """Names of the questions."""
    return sorted(module.name for module in pkgutil.iter_modules(questions.__path__))


def text_of(name: str) -> str:
    """What a question says that it measures."""
    return inspect.getdoc(importlib.import_module(f"{questions.__name__}.{name}")) or ""


def main(arguments: Sequence[str]) -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(prog="make bench", description="Measure how fast Candlery is.")
    parser.add_argument("question", nargs="*", help="all of them, where none is named")
    parser.add_argument("--quick", action="store_true", help="one small round each, to see that it works")
    parser.add_argument(
        "--keep", action="store_true", help="put what is found into RESULTS.md, in the place of earlier"
    )
    parser.add_argument("--list", action="store_true", help="say what each question measures, and measure nothing")
    chosen = parser.parse_args(arguments)
    known = all_questions()
    unknown = [name for name in chosen.question if name not in known]
    if unknown:
        sys.stderr.write(f"There is no question {', '.join(unknown)}. There are: {', '.join(known)}.\n")
        return _WRONG_USE
    names = list(dict.fromkeys(chosen.question)) or known
    if chosen.list:
        sys.stdout.write("\n\n".join(f"{name}\n{text_of(name)}" for name in names) + "\n")
        return 0
    try:
        return asyncio.run(_bench(names, quick=chosen.quick, whole=names == known, keep=chosen.keep))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.stderr.write("Stopped.\n")
        return 128 + signal.SIGINT


async def _bench(names: Sequence[str], *, quick: bool, whole: bool, keep: bool) -> int:
    """Answer one question after the other."""
    running = asyncio.current_task()
    assert running is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    ends_s = time.monotonic() + _BUDGET_S
    outcomes: dict[str, Outcome] = {}
    failed: list[str] = []
    with _scratch() as scratch:
        (scratch / _SHARED).mkdir()
        for name in names:
            (scratch / name).mkdir()
            sys.stderr.write(f"{name} ...\n")
            began_s = time.monotonic()
            try:
                outcomes[name] = await _answer(name, scratch / name, quick=quick, ends_s=ends_s)
            except UnansweredError as exc:
                failed.append(name)
                sys.stderr.write(f"{name}: {exc}\n")
            sys.stderr.write(f"{name} took {time.monotonic() - began_s:.0f} s\n")
    sys.stdout.write(table(outcomes) + "\n")
    if (keep or (whole and not failed)) and not quick:
        _write(outcomes, machine() | await _generator(), whole=whole and not failed)
    if failed:
        sys.stderr.write(f"Not answered: {', '.join(failed)}.\n")
    return 1 if failed else 0


def _write(outcomes: Mapping[str, Outcome], measured_on: Mapping[str, str], *, whole: bool) -> None:
    """Write the results of a full run, or put those of some questions among the earlier ones."""
    today, texts = datetime.now(UTC).date().isoformat(), {name: text_of(name) for name in outcomes}
    if whole:
        written = results(outcomes, {**measured_on, "date": today, "command": "make bench"}, texts)
    else:
        when = f"{today}, `make bench ARGS='--keep {' '.join(outcomes)}'`"
        earlier = _RESULTS.read_text(encoding="utf-8")
        written = updated(earlier, outcomes, texts, order=all_questions(), when=when)
    _RESULTS.write_text(written, encoding="utf-8")


async def _generator() -> dict[str, str]:
    """What asks for bars."""
    version = await wrk.version()
    return {"load generator": f"wrk {version}" if version else f"{load.__name__}, on uvloop"}


@contextmanager
def _scratch() -> Iterator[Path]:
    """An empty folder of this run's own, that is gone afterwards."""
    folder = _SCRATCH / str(os.getpid())
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # Another run is using it.
            _SCRATCH.rmdir()


async def _answer(name: str, folder: Path, *, quick: bool, ends_s: float) -> Outcome:
    """Start a process for the question, wait for its end, and read what it found."""
    left_s = ends_s - time.monotonic()
    if left_s <= 0:
        raise UnansweredError("no time was left")
    command = [
        sys.executable,
        "-m",
        child.__name__,
        name,
        "quick" if quick else "full",
        str(folder),
        str(folder.parent / _SHARED),
    ]
    # Ctrl-C is for us: the process is told to stop, and then stops what it started.
    process = await asyncio.create_subprocess_exec(
        *command, cwd=_ROOT, stdin=asyncio.subprocess.PIPE, start_new_session=True
    )
    try:
        async with asyncio.timeout(left_s):
            code = await process.wait()
    except TimeoutError as exc:
        raise UnansweredError(f"it was stopped, since all questions together may take {_BUDGET_S:.0f} s") from exc
    finally:
        await stop(process)
    if code:
        raise UnansweredError(f"it ended with {code}")
    outcome = msgspec.json.decode((folder / child.OUTCOME).read_bytes(), type=Outcome)
    shutil.rmtree(folder)
    return outcome


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
