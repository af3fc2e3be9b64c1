"""Which user PostgreSQL runs as. It refuses to run as root."""

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from app_extensions.embedded_postgres.errors import EmbeddedPostgresError

#: Tried in this order for a folder that belongs to root.
_UNPRIVILEGED = ("postgres", "nobody")


@dataclass(frozen=True)
class Account:
    """A user to become, with the groups it is in."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def account_for(*folders: Path) -> Account | None:
    """The user to become for a server on these folders; None: stay who we are.

    As root, the server runs as the first of the folders' owners that is not root, so that a folder keeps working for
    the user who made it; otherwise as a user who owns nothing of value.
    """
    if os.geteuid() != 0:
        return None
    for folder in folders:
        if folder.exists() and (status := folder.lstat()).st_uid != 0:
            return _by_uid(status)
    for name in _UNPRIVILEGED:
        try:
            return _by_entry(pwd.getpwnam(name))
        except KeyError:
            continue
    raise EmbeddedPostgresError(
        f"PostgreSQL refuses to run as root, and there is none of the users {', '.join(_UNPRIVILEGED)} to run it as: "
        "start Candlery as an ordinary user."
    )


def _by_uid(status: os.stat_result) -> Account:
    try:
        return _by_entry(pwd.getpwuid(status.st_uid))
    except KeyError:
        return Account(f"user {status.st_uid}", status.st_uid, status.st_gid, ())


def _by_entry(entry: pwd.struct_passwd) -> Account:
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, tuple(groups))


def give(path: Path, account: Account | None) -> None:
    """Make the account the owner of a file or folder that we have just made."""
    if account is not None:
        os.chown(path, account.uid, account.gid, follow_symlinks=False)


def give_tree(path: Path, account: Account) -> None:
    """Make the account the owner of everything below, and of the folder itself last."""
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            give(Path(folder, name), account)
    give(path, account)
