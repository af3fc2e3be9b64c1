"""Requests from wrk, a load generator in C that many know, where it is installed.

It looks at the status of each answer, and at how long they are on the whole; some answers are asked for beside it and
kept, for whoever wants to check them. What it is given and what it says go through `wrk.lua`. It stays on one core.
"""

import asyncio
import math
import resource
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.load import KEPT, Load, Plan, processor_s
from bench.machine import on_one_core
from bench.processes import finished
from bench.servers import body_of

_SCRIPT = Path(__file__).with_suffix(".lua")
#: Bytes of a head, at most: wrk counts heads and bodies together.
_HEAD_BYTES = 1_024
_END_S = 30.0


class Told(msgspec.Struct, frozen=True):
    """What `wrk.lua` says; `errors` counts connections, reads, writes, statuses and waits that went wrong."""

    answers: int
    bytes: int
    seconds: float
    p50_ms: float
    p99_ms: float
    exhausted: bool
    errors: dict[str, int]


def found() -> str | None:
    """Where wrk is, if it is installed."""
    return shutil.which("wrk")


async def version() -> str | None:
    """Of wrk, if it is installed."""
    if found() is None:
        return None
    process = await asyncio.create_subprocess_exec("wrk", "-v", stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    return out.decode().split()[1].removeprefix("debian/")


async def load(plan: Plan) -> Load:
    """Go through with it, in whole seconds and without a warm-up."""
    path = Path(plan.targets)
    targets = (await asyncio.to_thread(path.read_text, "ascii")).splitlines()
    looked_at = targets[:1] * KEPT if plan.again else targets[-KEPT:]
    if not plan.again:
        await asyncio.to_thread(path.write_text, "\n".join(targets[:-KEPT]), "ascii")
    seconds = math.ceil(plan.seconds)
    busy_s = processor_s(resource.RUSAGE_CHILDREN)
    told, kept = await asyncio.gather(_asked(plan, seconds), _kept(plan.address, looked_at, seconds))
    busy = (processor_s(resource.RUSAGE_CHILDREN) - busy_s) / told.seconds
    return Load(told.answers, told.seconds, told.p50_ms, told.p99_ms, busy, kept, faults(plan, told))


def faults(plan: Plan, told: Told) -> list[str]:
    """What was wrong."""
    found = [f"wrk counted {count} faults of {kind}" for kind, count in told.errors.items() if count]
    if told.exhausted:
        found.append("there were not enough targets")
    if not told.answers:
        return [*found, "nothing was answered"]
    length = told.bytes / told.answers
    if not plan.least <= length <= plan.most + _HEAD_BYTES:
        found.append(f"answers had {length:.0f} bytes with their heads")
    return found


async def _asked(plan: Plan, seconds: int) -> Told:
    """One run of wrk, with one thread: the server has one, too."""
    host, port = plan.address
    command = ["wrk", "-t1", f"-c{plan.connections}", f"-d{seconds}s", f"--timeout={_END_S:.0f}s", f"-s{_SCRIPT}"]
    script = ["--", plan.targets, "again" if plan.again else "once"]
    with on_one_core():
        process = await asyncio.create_subprocess_exec(
            *command, f"http://{host}:{port}", *script, stdout=asyncio.subprocess.PIPE
        )
    out = await finished(process, "wrk", seconds + _END_S)
    return msgspec.json.decode(out.splitlines()[-1], type=Told)


async def _kept(address: tuple[str, int], targets: Sequence[str], seconds: int) -> list[tuple[str, str]]:
    """Ask for these, spread over the time."""
    kept = []
    for target in targets:
        kept.append((target, (await asyncio.to_thread(body_of, address, target)).decode()))
        await asyncio.sleep(seconds / (KEPT + 1))
    return kept
