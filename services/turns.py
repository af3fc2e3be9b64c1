"""Locks by key, for as long as somebody holds or waits for them."""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class Turns:
    """One at a time for each key; different keys do not wait for each other."""

    def __init__(self) -> None:
        """Begin without any."""
        self._locks: dict[Hashable, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def of(self, key: Hashable, *, patience_s: float | None = None) -> AsyncIterator[None]:
        """Wait for the key's turn, and hold it for the block; past one's patience, go on without it."""
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = (lock, users + 1)
        try:
            held = await _acquired(lock, patience_s)
            try:
                yield
            finally:
                if held:
                    lock.release()
        finally:
            lock, users = self._locks.pop(key)
            if users > 1:
                self._locks[key] = (lock, users - 1)


async def _acquired(lock: asyncio.Lock, patience_s: float | None) -> bool:
    try:
        async with asyncio.timeout(patience_s):
            return await lock.acquire()
    except TimeoutError:
        return False
