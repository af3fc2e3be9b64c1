"""Which series this process wants, for whom, and for how long after the last of them has left."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from domain.series import Series
from services.live_channel import LiveChannel


@dataclass
class _Entry:
    channel: LiveChannel
    users: int = 0
    #: When the last user left.
    left_s: float = 0.0


class SubscriptionRegistry:
    """Counts the users of each channel."""

    def __init__(self, *, grace_s: float) -> None:
        """Take how long a channel without users is kept: a client that reconnects finds it as it was."""
        self.grace_s = grace_s
        self._entries: dict[int, _Entry] = {}

    def __iter__(self) -> Iterator[LiveChannel]:
        """All channels."""
        return iter([entry.channel for entry in self._entries.values()])

    def __len__(self) -> int:
        """How many channels there are."""
        return len(self._entries)

    def get(self, series_id: int) -> LiveChannel | None:
        """The channel of a series, where it is wanted."""
        entry = self._entries.get(series_id)
        return None if entry is None else entry.channel

    def find(self, series: Series) -> LiveChannel | None:
        """The channel of a series by its name."""
        return next((channel for channel in self if channel.series == series), None)

    def hold(self, channel: LiveChannel) -> None:
        """One user more; the channel may be new."""
        self._entries.setdefault(channel.series_id, _Entry(channel)).users += 1

    def release(self, channel: LiveChannel) -> None:
        """One user less."""
        entry = self._entries[channel.series_id]
        entry.users -= 1
        entry.left_s = time.monotonic()

    def expire(self) -> list[LiveChannel]:
        """Forget the channels that nobody has used for the grace period; return them."""
        before_s = time.monotonic() - self.grace_s
        gone = [id_ for id_, entry in self._entries.items() if not entry.users and entry.left_s <= before_s]
        return [self._entries.pop(series_id).channel for series_id in gone]
