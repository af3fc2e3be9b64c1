"""What may go wrong with the embedded PostgreSQL. The messages are for the operator."""


class EmbeddedPostgresError(Exception):
    """The embedded PostgreSQL cannot be prepared, started or kept running."""


class DataFolderInUseError(EmbeddedPostgresError):
    """Another server works on the same data folder."""
