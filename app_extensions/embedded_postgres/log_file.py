"""PostgreSQL's log: a file of bounded size, of which errors quote the end."""

import os
import shutil
from pathlib import Path

_MAX_BYTES = 8 * 1024 * 1024
_TAIL_BYTES = 4096
_TAIL_LINES = 12


class LogFile:
    """A log that child processes append to. Two parts are kept, the newer in `path`."""

    def __init__(self, path: Path) -> None:
        """Take where it lies."""
        self._path = path

    def open(self) -> int:
        """A file descriptor to hand to a child process, always appending, so that `trim()` may cut the file."""
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)

    def size(self) -> int:
        """In bytes: where the next line begins."""
        return self._path.stat().st_size

    def trim(self) -> None:
        """Move what was written into the older part, once it is much."""
        if self.size() > _MAX_BYTES:
            older = self._path.with_suffix(".log.1")
            older.unlink(missing_ok=True)
            shutil.copy(self._path, older)
            os.truncate(self._path, 0)

    def tail(self, since: int) -> str:
        """The last lines of what was written after that position."""
        try:
            with self._path.open("rb") as stream:
                end = stream.seek(0, os.SEEK_END)
                stream.seek(max(since if since <= end else 0, end - _TAIL_BYTES))
                text = stream.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-_TAIL_LINES:])
