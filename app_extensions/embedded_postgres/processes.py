"""Starting programs of PostgreSQL, and finding and ending those that a dead owner left behind."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from app_extensions.embedded_postgres import launcher
from app_extensions.embedded_postgres.account import Account
from app_extensions.embedded_postgres.errors import EmbeddedPostgresError

_POLL_S = 0.02
_POSTGRES = re.compile(r"(^|/)postgres( -|\s*$)")
#: How long leftovers may take to end after each signal. The first includes writing everything out.
_STAGES = ((signal.SIGINT, 15.0), (signal.SIGQUIT, 3.0), (signal.SIGKILL, 5.0))
#: Nothing of our environment concerns PostgreSQL, and some of it is secret.
_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


async def spawn(
    *command: str | Path,
    account: Account | None,
    needed: tuple[str | Path, ...],
    death_signal: signal.Signals,
    output: int,
) -> asyncio.subprocess.Process:
    """Start a program that ends with us. Call it in the event loop's thread, whose end the kernel takes for ours."""
    who = ("-", "-", "")
    if account is not None:
        who = (str(account.uid), str(account.gid), ",".join(map(str, account.groups)))
    environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-S",
        launcher.__file__,
        str(os.getpid()),
        str(int(death_signal)),
        *who,
        *map(str, needed),
        "--",
        *map(str, command),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        cwd="/",
        env={"PATH": os.defpath, **environment, "LC_ALL": "C", "TZ": "UTC"},
        # A terminal's Ctrl+C is for us alone; we stop the server when everything else is done.
        start_new_session=True,
    )


@dataclass(frozen=True)
class Leftover:
    """A running process of PostgreSQL."""

    pid: int
    command: str

    @property
    def is_postmaster(self) -> bool:
        """Whether it is the first process of its server, the one that ends the others."""
        return not self.command.startswith("postgres: ")


async def stop_leftovers(identity: str, uid: int) -> None:
    """End every process of the server with this identity, gently first, and wait until none is left.

    The identity stands in the command lines of all of its processes. Those are read instead of their working folder,
    which even root may not see in a container.
    """
    for number, timeout_s in _STAGES:
        found = await asyncio.to_thread(_find, identity, uid)
        if not found:
            return
        for process in found:
            # A fast shutdown is for the postmaster alone; to its children SIGINT means something else.
            if process.is_postmaster or number is not signal.SIGINT:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, number)
        deadline = time.monotonic() + timeout_s
        while found and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)
            found = await asyncio.to_thread(_find, identity, uid)
    if found:
        raise EmbeddedPostgresError(f"The PostgreSQL process {found[0].pid} of an earlier server does not end.")


def forget_stale_pid(data: Path, identity: str) -> None:
    """Remove `postmaster.pid` where its process is not this folder's server: the number was given to another.

    PostgreSQL would take that one for a running server, and refuse to start. A dead process it recognises itself, and
    a server that somebody else started on this folder it must go on to recognise.
    Call it only while holding the folder, after `stop_leftovers`.
    """
    file = data / "postmaster.pid"
    try:
        pid = int(file.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return
    command = next((command for found, _, command in _commands() if found == pid), identity)
    if identity not in command and ("cluster_name=candlery-" in command or not _is_postgres(command)):
        file.unlink(missing_ok=True)


def _find(identity: str, uid: int) -> list[Leftover]:
    return [
        Leftover(pid, command)
        for pid, owner, command in _commands()
        if owner == uid and identity in command and _is_postgres(command)
    ]


def _is_postgres(command: str) -> bool:
    return command.startswith("postgres: ") or _POSTGRES.search(command) is not None


def _commands() -> Iterator[tuple[int, int, str]]:
    """Every process: its id, its user, its command line; nothing in it once it has ended and waits to be collected."""
    if not sys.platform.startswith("linux"):
        yield from _commands_by_ps()
        return
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "surrogateescape")
                yield int(folder.name), folder.stat().st_uid, command


def _commands_by_ps() -> Iterator[tuple[int, int, str]]:
    listing = subprocess.run(
        ["/bin/ps", "-axww", "-o", "pid=,uid=,command="], capture_output=True, text=True, timeout=10, check=True
    )
    for line in listing.stdout.splitlines():
        pid, uid, *command = line.split(None, 2)
        yield int(pid), int(uid), "".join(command)
