"""What waits for one client to read it: bounded, in order, forming bars only as the newest of each subscription."""

import asyncio
from collections import deque

from services.live import BarEvent, BarState, LiveEvent


class Mailbox:
    """Whose events they are: those of one subscription, or of the client itself.

    Attributes:
        prefix: what this client's messages begin with; the rest of them is shared by all clients.
        closed: what still waits is of no use any more.
        forming: the newest forming bar that waits.
    """

    __slots__ = ("closed", "forming", "prefix", "stale")

    def __init__(self, prefix: str) -> None:
        """Begin with nothing waiting."""
        self.prefix = prefix
        self.closed = False
        self.forming: BarEvent | None = None
        #: Places that were kept in the queue for forming bars which a closed one has overtaken since.
        self.stale = 0


class Outbox:
    """A queue that never waits: whoever puts too much into it has lost the client, who is to come back.

    Only forming bars are ever replaced or left out. Events must be encoded: `wire` is set.
    """

    def __init__(self, *, max_items: int, max_bytes: int, low_bytes: int) -> None:
        """Take the bounds, and from what size on no more of a snapshot is wanted."""
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._low_bytes = low_bytes
        # Mailbox, event, mailbox, event ...: a pair of its own for each would take twice the memory. In the place of
        # an event, None stands for the forming bar of the mailbox, whichever is the newest by then.
        self._queue: deque[Mailbox | LiveEvent | None] = deque()
        self._shut = False
        self._waiting: list[asyncio.Future[None]] = []
        self.items = 0
        self.bytes = 0
        #: Forming bars that were never sent, since there was a newer one or the closed one.
        self.conflated = 0

    def put(self, box: Mailbox, event: LiveEvent) -> bool:
        """Let the event wait; False where that is more than may wait."""
        if self._shut or box.closed:
            return True
        if isinstance(event, BarEvent):
            if event.state is BarState.FORMING:
                self._put_forming(box, event)
                return True
            if event.state is BarState.CLOSED:
                self._overtake(box, event)
        self._queue += (box, event)
        self._count(box, event, 1)
        return self.items <= self._max_items and self.bytes <= self._max_bytes

    def take(self, most_bytes: int) -> list[tuple[Mailbox, LiveEvent]]:
        """The events that come next, some `most_bytes` of them, and one at least."""
        queue, taken, before = self._queue, [], self.bytes
        while queue and before - self.bytes < most_bytes:
            box, event = queue.popleft(), queue.popleft()
            assert isinstance(box, Mailbox)
            assert not isinstance(event, Mailbox)
            if event is None:
                if box.stale:
                    box.stale -= 1
                    continue
                event, box.forming = box.forming, None
                assert event is not None
            self._count(box, event, -1)
            if not box.closed:
                taken.append((box, event))
        self._tell_of_room()
        return taken

    async def room(self) -> None:
        """Wait until so little is left that more of a snapshot may come."""
        while self.bytes > self._low_bytes and not self._shut:
            drained = asyncio.get_running_loop().create_future()
            self._waiting.append(drained)
            await drained

    def shut(self) -> None:
        """Let go of everything, and take nothing any more."""
        self._shut = True
        self._queue.clear()
        self.items = self.bytes = 0
        self._tell_of_room()

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._queue)

    def _put_forming(self, box: Mailbox, event: BarEvent) -> None:
        if box.forming is None:
            self._queue += (box, None)
        else:
            # The place that is kept for it stands behind everything that this subscription was told before.
            self._count(box, box.forming, -1)
            self.conflated += 1
        box.forming = event
        self._count(box, event, 1)

    def _overtake(self, box: Mailbox, closed: BarEvent) -> None:
        """A forming bar is no news any more once its bucket, or a later one, is closed."""
        forming = box.forming
        if forming is not None and forming.bar.ts <= closed.bar.ts:
            self._count(box, forming, -1)
            self.conflated += 1
            box.forming = None
            box.stale += 1

    def _count(self, box: Mailbox, event: LiveEvent, sign: int) -> None:
        assert event.wire is not None
        self.items += sign
        self.bytes += sign * (len(box.prefix) + len(event.wire))

    def _tell_of_room(self) -> None:
        if self._waiting and (self._shut or self.bytes <= self._low_bytes):
            waiting, self._waiting = self._waiting, []
            for drained in waiting:
                if not drained.done():
                    drained.set_result(None)
