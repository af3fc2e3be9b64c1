"""What the figures were measured on, without anything that would name the machine."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ENOUGH_CORES = 2


def machine() -> dict[str, str]:
    """Cores, processor, system and Python."""
    return {
        "cores": str(cores()),
        "CPU": cpu_model(),
        "system": f"{platform.system()} {platform.machine()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@contextmanager
def on_one_core() -> Iterator[None]:
    """What is started within stays on the last core, where there are others and the system can do that.

    A load generator that shares a core with the server now and then halves what that one gives.
    """
    if cores() < _ENOUGH_CORES or not hasattr(os, "sched_setaffinity"):
        yield
        return
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(mine)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)


def cpu_model() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or "unknown")


def resident_mb(pid: int | None = None) -> float | None:
    """Resident memory of a process, by default of this one, in MB; None where the system does not tell."""
    try:
        pages = int(Path(f"/proc/{'self' if pid is None else pid}/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
