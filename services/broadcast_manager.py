"""What the follower of a series tells every process. Whoever misses something learns it from the database."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable

from services.live import Message

log = logging.getLogger(__name__)

Listener = Callable[[Message], None]


class BroadcastManager(ABC):
    """Carries messages from any process to all. The constructor stores; `open()` begins; `close()` ends.

    Attributes:
        on_trouble: called when messages of others may have been missed: the way to them was lost, or is back.
        published: messages that this process told.
        received: messages of others that the listener was told.
        lost: messages that the others were not told, since they could not be, or were too many or too large.
        rejected: what came in and was no message.
        errors: how often the way to the others failed.
    """

    def __init__(self) -> None:
        """Nobody listens yet."""
        self.on_trouble: Callable[[], None] | None = None
        self.published = self.received = self.lost = self.rejected = self.errors = 0
        self._listener: Listener | None = None
        self._followed: set[int] = set()

    @property
    @abstractmethod
    def connected(self) -> bool:
        """Whether messages of others come in."""

    @abstractmethod
    async def open(self) -> None:
        """Begin to carry messages. Never fails: what they are carried by may be there later."""

    @abstractmethod
    async def close(self) -> None:
        """Carry no more. Harmless where it is not open."""

    def listen(self, listener: Listener) -> None:
        """Tell this one, who neither waits nor raises, of every message from now on."""
        self._listener = listener

    def publish(self, message: Message) -> None:
        """Tell this process's listener at once, and those of the others soon. Never waits, never raises."""
        self.published += 1
        self._tell(message)
        self._carry(message)

    async def follow(self, series_id: int) -> None:
        """Have what other processes tell of the series from about now on. Waits for nobody."""
        self._followed.add(series_id)

    async def unfollow(self, series_id: int) -> None:
        """Have no more of it."""
        self._followed.discard(series_id)

    @abstractmethod
    def _carry(self, message: Message) -> None:
        """Send it to the other processes."""

    def _tell(self, message: Message) -> None:
        if self._listener is not None:
            try:
                self._listener(message)
            except Exception:
                log.exception("a message about live bars could not be taken in")

    def _take_in(self, message: Message) -> None:
        """Another process told this."""
        if message.series_id in self._followed:
            self.received += 1
            self._tell(message)

    def _trouble(self) -> None:
        if self.on_trouble is not None:
            try:
                self.on_trouble()
            except Exception:
                log.exception("trouble with live bars could not be taken in")


class MemoryBroadcast(BroadcastManager):
    """Within one process: alone, or with others of the same hub, as if each were a process."""

    def __init__(self, hub: "set[MemoryBroadcast] | None" = None) -> None:
        """`hub`: those that hear each other."""
        super().__init__()
        self._hub = hub if hub is not None else set()
        self._open = False

    @property
    def connected(self) -> bool:
        """Whether it is open."""
        return self._open

    async def open(self) -> None:
        """Hear the others."""
        self._open = True
        self._hub.add(self)

    async def close(self) -> None:
        """Hear and reach nobody any more."""
        self._open = False
        self._hub.discard(self)

    def _carry(self, message: Message) -> None:
        if self._open:
            for other in self._hub - {self}:
                asyncio.get_running_loop().call_soon(other.hear, message)

    def hear(self, message: Message) -> None:
        """Another of the hub told this."""
        if self._open:
            self._take_in(message)
