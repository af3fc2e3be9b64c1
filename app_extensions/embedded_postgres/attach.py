"""Finding the server that another process of ours runs on a data folder, for commands that work beside it."""

import fcntl
from pathlib import Path

from app_extensions.embedded_postgres.folder import DataFolder, Endpoint

_ROLE = _DATABASE = "candlery"
#: Lines of PostgreSQL's own note on itself, `postmaster.pid`.
_PORT_LINE, _SOCKET_LINE, _ADDRESS_LINE = 3, 4, 5


def running_dsn(data_dir: Path) -> str | None:
    """The address of the database that a running server has open in the folder; None where none has."""
    folder = DataFolder(data_dir)
    if not _is_claimed(folder.root / "candlery.lock"):
        return None
    try:
        note = (folder.data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        host = note[_SOCKET_LINE].strip() or note[_ADDRESS_LINE].strip()
        return Endpoint(host, int(note[_PORT_LINE])).dsn(_ROLE, folder.read_password(), _DATABASE)
    except (FileNotFoundError, IndexError, ValueError):
        # The server is just starting or stopping; who needs the folder is told that it is in use.
        return None


def _is_claimed(lock: Path) -> bool:
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
