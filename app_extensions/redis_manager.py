"""The client of one Redis or Valkey. Nothing connects before it is asked for something."""

import asyncio
import logging
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from services.cache_manager import CacheUnavailableError

log = logging.getLogger(__name__)


class RedisManager:
    """Owns the client. The constructor stores; `open()` makes the client; `close()` releases its connections."""

    def __init__(
        self, url: str, *, timeout_s: float = 0.25, connect_timeout_s: float | None = None, max_connections: int = 32
    ) -> None:
        """Take where to connect (`redis://`, `rediss://`, `unix://`).

        Args:
            url: may hold a password, which is never shown.
            timeout_s: for the answer to one command, and for a free connection.
            connect_timeout_s: for a connection; as `timeout_s` where it is not given.
            max_connections: further commands wait for their turn.
        """
        self._url = url
        self._timeout_s = timeout_s
        self._connect_timeout_s = timeout_s if connect_timeout_s is None else connect_timeout_s
        self._max_connections = max_connections
        self._client: Redis | None = None

    def __repr__(self) -> str:
        """Where it connects, without secrets."""
        parts = urlsplit(self._url)
        host = parts.netloc.rpartition("@")[2]
        return f"RedisManager({parts.scheme}://{host}{parts.path})"

    @property
    def client(self) -> Redis:
        """The client, while open."""
        if self._client is None:
            raise CacheUnavailableError("The client of Redis is not open.")
        return self._client

    async def open(self) -> None:
        """Make the client. It connects when it is first used, so Redis need not be there."""
        options = {"socket_timeout": self._timeout_s, "socket_connect_timeout": self._connect_timeout_s}
        if urlsplit(self._url).scheme == "unix":
            del options["socket_connect_timeout"]
        pool = BlockingConnectionPool.from_url(
            self._url,
            max_connections=self._max_connections,
            timeout=self._timeout_s,
            # Who calls decides about retries, and knows how long a caller can wait.
            retry=Retry(NoBackoff(), 0),
            # RESP2 needs no greeting: one round trip less for each connection.
            protocol=2,
            **options,
        )
        self._client = Redis.from_pool(pool)

    async def close(self, *, timeout_s: float = 2) -> None:
        """Close every connection; those that do not close in time are left to the system."""
        client, self._client = self._client, None
        if client is None:
            return
        try:
            await asyncio.wait_for(client.aclose(), timeout_s)
        except TimeoutError:
            log.warning("Connections to Redis did not close in time")
