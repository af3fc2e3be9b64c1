"""Where a process spends its time: what py-spy sees in it, looked at a few hundred times a second."""

import asyncio
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bench.outcome import Profile, Spot

_RATE = 250
_SHOWN = 12
_END_S = 30.0
#: `function (file:line)`, as py-spy writes a frame.
_FRAME = re.compile(r"^(?P<name>.+) \((?P<path>.+?)(?::\d+)?\)$")
_PLACES = ("/site-packages/", "/lib-dynload/", f"/python{sys.version_info.major}.{sys.version_info.minor}/")
_ROOT = str(Path(__file__).resolve().parent.parent) + "/"


async def profile(title: str, pid: int, seconds: float, scratch: Path) -> Profile:
    """Look at a running process for so long."""
    return await _recorded(title, scratch, ["--pid", str(pid), "--duration", str(max(1, round(seconds)))])


async def profile_command(title: str, command: Sequence[str], scratch: Path, environ: Mapping[str, str]) -> Profile:
    """Start a command, and look at it until its end."""
    return await _recorded(title, scratch, ["--", *command], environ)


async def _recorded(
    title: str, scratch: Path, what: Sequence[str], environ: Mapping[str, str] | None = None
) -> Profile:
    spy, out = Path(sys.executable).parent / "py-spy", scratch / "profile.txt"
    if not spy.exists():
        return Profile(title, why_not="py-spy is not installed.")
    arguments = ["record", "--rate", str(_RATE), "--format", "raw", "--output", str(out), "--nonblocking", *what]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(spy, *arguments, stdout=pipe, stderr=pipe, cwd=scratch, env=environ)
    try:
        async with asyncio.timeout(_END_S):
            _, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return Profile(title, why_not="py-spy did not end.")
    if process.returncode or not out.exists():
        return Profile(title, why_not=f"py-spy: {err.decode().strip().splitlines()[-1:]}")
    lines = (await asyncio.to_thread(out.read_text, "utf-8")).splitlines()
    return Profile(title, spots=spots(lines))


def spots(lines: Iterable[str]) -> list[Spot]:
    """The functions that took most by themselves; a line has the frames of one stack and how often it was seen."""
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    total = 0
    for line in lines:
        stack, _, count = line.rpartition(" ")
        frames = [_name(frame) for frame in stack.split(";") if "(" in frame]
        if not frames:
            continue
        total += int(count)
        own[frames[-1]] += int(count)
        for frame in set(frames):
            whole[frame] += int(count)
    return [Spot(name, count / total, whole[name] / total) for name, count in own.most_common(_SHOWN)]


def _name(frame: str) -> str:
    """`module: function`, without where on this machine it lies."""
    found = _FRAME.match(frame)
    if found is None:
        return frame
    path = found["path"].removeprefix(_ROOT)
    for place in _PLACES:
        path = path.rpartition(place)[2]
    return f"{path.lstrip('/')}: {found['name']}"
