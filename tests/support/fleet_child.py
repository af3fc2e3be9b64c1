"""`candlery serve` as it is, but by a clock that a test holds in a file.

Usage: python -m tests.support.fleet_child CLOCK_FILE
"""

import mmap
import struct
import sys
from functools import partial
from pathlib import Path

import cli
from app_extensions import server
from app_extensions.wiring import running_services

_MS = struct.Struct("<q")


class FileClock:
    """A clock that all processes share who have the file; it stands still until one of them sets it."""

    def __init__(self, path: Path, now_ms: int | None = None) -> None:
        """Open the file; `now_ms` makes it."""
        if now_ms is not None:
            path.write_bytes(_MS.pack(now_ms))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _MS.size)

    def now_ms(self) -> int:
        now_ms: int = _MS.unpack_from(self._memory)[0]
        return now_ms

    def set(self, now_ms: int) -> None:
        _MS.pack_into(self._memory, 0, now_ms)


def main() -> int:
    server.running_services = partial(running_services, clock=FileClock(Path(sys.argv[1])))  # type: ignore[assignment]
    return cli.main(["serve"])


if __name__ == "__main__":
    sys.exit(main())
