"""Run as a script: gives up root, ties the process to its parent's life, and becomes a program of PostgreSQL.

    python -I -S launcher.py PARENT DEATH_SIGNAL UID GID GROUPS NEEDED... -- PROGRAM ARGUMENT...

`UID` is `-` to stay who we are; `GROUPS` has commas; each `NEEDED` is a path that the program must be able to read, or
`x:PATH` for one that it must be able to execute. When the parent ends, however it ends, the kernel sends `DEATH_SIGNAL`
(Linux only). A script of its own, since `preexec_fn` is unsafe in a process with threads. Everything is imported
before root is given up: the interpreter's own files may be out of reach afterwards.
"""

import ctypes
import os
import signal
import sys
from typing import NoReturn

_REFUSED = 126

_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_SET_SECUREBITS = 28
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAP_DAC_OVERRIDE = 1
_CAP_DAC_READ_SEARCH = 2
_CAPABILITY_VERSION_3 = 0x20080522

#: What may be kept of root's rights, the least first: nothing; looking into any folder; and, for programs that only
#: root may execute (installed under a umask of 077), any access to files.
_LEVELS: tuple[frozenset[int], ...] = (
    frozenset(),
    frozenset({_CAP_DAC_READ_SEARCH}),
    frozenset({_CAP_DAC_OVERRIDE}),
)

_libc = ctypes.CDLL(None, use_errno=True)


class RefusedError(Exception):
    """The program may not be started. The message is for the operator."""


def main(arguments: list[str]) -> NoReturn:
    """Become the program."""
    parent, death_signal, uid, gid, groups, *rest = arguments
    split = rest.index("--")
    needed, command = rest[:split], rest[split + 1 :]
    _forget_python_signals()
    if uid != "-":
        _become(int(uid), int(gid), [int(group) for group in groups.split(",") if group], needed)
    if sys.platform == "linux":
        # Changing the user clears it, so it comes after.
        _prctl(_PR_SET_PDEATHSIG, int(death_signal))
    if os.getppid() != int(parent):
        raise RefusedError("The process that asked for this has ended.")
    os.umask(0o077)
    os.execv(command[0], command)  # noqa: S606


def _forget_python_signals() -> None:
    """A signal between here and the program's own handlers must end us, not wake a handler of Python's."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)


def _become(uid: int, gid: int, groups: list[int], needed: list[str]) -> None:
    try:
        os.setgroups(groups)
        kept = _least_rights(uid, gid, needed)
        os.setgid(gid)
        if kept:
            _prctl(_PR_SET_KEEPCAPS, 1)
            # Else access(), by which PostgreSQL finds its own programs, takes no notice of what is kept.
            _prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP)
        os.setuid(uid)
        if kept:
            _set_rights(effective=kept, permitted=kept, inheritable=kept)
            for right in kept:
                _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, right)
    except OSError as exc:
        raise RefusedError(
            f"Root may not become user {uid} here ({exc.strerror}), and PostgreSQL refuses to run as root: "
            "start Candlery as an ordinary user."
        ) from exc


def _least_rights(uid: int, gid: int, needed: list[str]) -> frozenset[int]:
    """The least of root's rights with which the user reaches all that is needed."""
    own = _permitted() if sys.platform == "linux" else frozenset()
    missing: str | None = None
    for rights in _LEVELS:
        if rights <= own:
            missing = _missing(uid, gid, rights, own, needed)
            if missing is None:
                return rights
    raise RefusedError(
        f"User {uid} cannot reach {missing}, and root cannot lend it the right to here. Start Candlery as an ordinary "
        "user, or move that folder where every user may look into the folders above it (CANDLERY_DATA_DIR names the "
        "data folder)."
    )


def _missing(uid: int, gid: int, rights: frozenset[int], own: frozenset[int], needed: list[str]) -> str | None:
    """What the user cannot reach with these rights. Asks the kernel: only it knows modes, lists and mounts."""
    os.setegid(gid)
    os.seteuid(uid)
    try:
        if rights:
            _set_rights(effective=rights, permitted=own)
        return next((need.removeprefix("x:") for need in needed if not _reachable(need)), None)
    finally:
        os.seteuid(0)
        os.setegid(0)


def _reachable(need: str) -> bool:
    path = need.removeprefix("x:")
    try:
        os.close(os.open(path, os.O_RDONLY))
    except OSError:
        return False
    return path == need or os.access(path, os.X_OK, effective_ids=os.access in os.supports_effective_ids)


def _permitted() -> frozenset[int]:
    data = (ctypes.c_uint32 * 6)()
    _check(_libc.capget((ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), data))
    mask = data[1] | data[4] << 32
    return frozenset(right for right in range(64) if mask >> right & 1)


def _set_rights(
    *, effective: frozenset[int], permitted: frozenset[int], inheritable: frozenset[int] = frozenset()
) -> None:
    low_and_high = [
        sum(1 << right for right in rights) >> shift & 0xFFFFFFFF
        for shift in (0, 32)
        for rights in (effective, permitted, inheritable)
    ]
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, (ctypes.c_uint32 * 6)(*low_and_high)))


def _prctl(option: int, *values: int) -> None:
    padded = (*values, 0, 0, 0, 0)[:4]
    _check(_libc.prctl(option, *(ctypes.c_ulong(value) for value in padded)))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except RefusedError as refused:
        sys.stderr.write(f"{refused}\n")
        sys.exit(_REFUSED)
