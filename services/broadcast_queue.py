"""What is to be sent to other processes, bounded: late news is worth little, and the database has what counts."""

from collections import deque
from typing import NamedTuple

import msgspec

from services.live import Forming, Message

#: The most messages that wait, and bytes of them. Forming minutes are one a series, and do not count.
MAX_WAITING = 5_000
MAX_WAITING_BYTES = 8 << 20
#: Larger messages are not sent at all: they would hold up, or end, the connections that they go through.
MAX_MESSAGE_BYTES = 256 << 10

_encoder = msgspec.msgpack.Encoder()


class Letter(NamedTuple):
    """A message as it is sent."""

    number: int
    series_id: int
    content: bytes


class BroadcastQueue:
    """Messages in the order in which they were told; of each series only the newest forming minute."""

    def __init__(self, prefix: bytes) -> None:
        """`prefix`: begins every content."""
        self._prefix = prefix
        self._number = 0
        self._lasting: deque[Letter] = deque()
        self._bytes = 0
        self._forming: dict[int, Letter] = {}

    def __len__(self) -> int:
        """How many wait."""
        return len(self._lasting) + len(self._forming)

    def put(self, message: Message) -> int:
        """Add a message; how many were lost by that, itself perhaps: the oldest make room."""
        content = self._prefix + _encoder.encode(message)
        if len(content) > MAX_MESSAGE_BYTES:
            return 1
        self._number += 1
        letter = Letter(self._number, message.series_id, content)
        if isinstance(message, Forming):
            self._forming[message.series_id] = letter
            return 0
        self._lasting.append(letter)
        self._bytes += len(content)
        return self._make_room()

    def take(self) -> list[Letter]:
        """All that wait, in order; none waits any more."""
        letters = sorted((*self._lasting, *self._forming.values()))
        self._lasting.clear()
        self._forming.clear()
        self._bytes = 0
        return letters

    def _make_room(self) -> int:
        lost = 0
        while len(self._lasting) > MAX_WAITING or self._bytes > MAX_WAITING_BYTES:
            self._bytes -= len(self._lasting.popleft().content)
            lost += 1
        return lost
