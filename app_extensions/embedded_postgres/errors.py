"""What may go wrong with the embedded PostgreSQL. The messages are for the operator."""

from domain.errors import CandleryError


class EmbeddedPostgresError(CandleryError):
    """The embedded PostgreSQL cannot be prepared, started or kept running."""


class DataFolderInUseError(EmbeddedPostgresError):
    """Another server works on the same data folder."""
