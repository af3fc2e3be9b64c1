"""One client of the stream: what it asks, what it is told, and its end."""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from blueprints import stream_messages as messages
from blueprints.stream_hub import Leave, StreamHub
from blueprints.stream_link import Link, text_frame
from domain.clock import Clock
from domain.errors import ConflictError, IncompleteError, NotFoundError
from domain.series import Series
from services.live import BarEvent, LiveEvent, LiveQuery, Sink, SnapshotEvent, SubscribedEvent
from services.outbox import Mailbox, Outbox
from services.token_bucket import TokenBucket

log = logging.getLogger(__name__)

#: Sent at once; what is more waits for the next turn.
BATCH_BYTES = 64 << 10
#: A further part of a snapshot is wanted when no more than this waits.
LOW_BYTES = 64 << 10
#: Of one client: subscriptions that are being made, and those that read what was before.
OPENINGS = 32
SNAPSHOTS = 2
#: How long what a client held has for coming to its end.
END_S = 1.0


class Subscription(Protocol):
    """See `services.subscription.Subscription`."""

    async def run(self) -> None:
        """Tell what was before; from then on everything is told as it comes."""
        ...

    def close(self) -> None:
        """Tell nothing more."""
        ...


class Source(Protocol):
    """Where bars come from."""

    async def subscribe(self, query: LiveQuery, sink: Sink) -> Subscription:
        """A subscription that tells the sink when it is run."""
        ...


class Encoded(LiveEvent):
    """An event of which only the words are kept."""

    __slots__ = ()

    def __init__(self, wire: str) -> None:
        """Take the words."""
        super().__init__()
        self.wire = wire


class ClientSubscription:
    """The place where the events of one subscription of a client go."""

    __slots__ = ("_client", "box", "held", "id", "is_simulated", "query", "task")

    def __init__(self, client: "StreamClient", asked: messages.Subscribe) -> None:
        """Nothing is under way yet."""
        self._client = client
        self.id, self.query = asked.id, asked.query
        self.box = Mailbox(messages.prefix(asked.id))
        self.is_simulated = False
        self.held: Subscription | None = None
        self.task: asyncio.Task[None] | None = None

    def tell(self, event: LiveEvent) -> None:
        """Take an event at once."""
        if isinstance(event, SubscribedEvent):
            event = Encoded(messages.subscribed(self.query, simulated=self.is_simulated))
        elif event.wire is None:
            event.wire = messages.encode(event)
        if isinstance(event, SnapshotEvent):
            # The bars themselves take three times the memory.
            event = Encoded(event.wire or "")
        self._client.tell(self.box, event)

    async def room(self) -> None:
        """Wait until the client has read most of what it was told."""
        await self._client.outbox.room()

    def close(self) -> None:
        """Let go of everything at once; what is under way is cancelled."""
        self.box.closed = True
        if self.task is not None:
            self.task.cancel()
        if self.held is not None:
            self.held.close()


class StreamClient:
    """Nothing here waits but `leave()`: the handler hands in messages, subscriptions tell, the hub lets it write."""

    def __init__(
        self, hub: StreamHub, link: Link, source: Source, clock: Clock, *, is_simulated: Callable[[Series], bool]
    ) -> None:
        """Join the clients. `is_simulated`: whether the bars of a series are made up."""
        settings = hub.settings
        self.slot = hub.next_slot()
        self.outbox = Outbox(
            max_items=settings.stream_queue_items, max_bytes=settings.stream_queue_bytes, low_bytes=LOW_BYTES
        )
        self._hub, self._link, self._source, self._clock = hub, link, source, clock
        self._is_simulated = is_simulated
        self._loop = asyncio.get_running_loop()
        self._box = Mailbox("")
        self._subscriptions: dict[str, ClientSubscription] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._openings: asyncio.Semaphore | None = None
        self._snapshots: asyncio.Semaphore | None = None
        self._bucket = TokenBucket(settings.stream_message_rate, settings.stream_message_burst)
        self._patience = TokenBucket(settings.stream_message_rate, settings.stream_message_burst)
        self._is_due = False
        self._draining: asyncio.Task[None] | None = None
        self._congested_s = 0.0
        self._left: Leave | None = None
        link.on_frame = self._charge
        link.on_too_big = self._too_big
        hub.join(self)

    @property
    def conflated(self) -> int:
        """Forming bars that it was not sent, since there was a newer one or the closed one."""
        return self.outbox.conflated

    def take(self, text: str | bytes) -> None:
        """Do what a message asks for, or say what is wrong with it."""
        if self._left is not None:
            return
        if not self._charge():
            self._say(messages.error("rate_limited", "There are too many messages; this one is dropped.", of=None))
            return
        now_ms, max_last = self._clock.now_ms(), self._hub.settings.max_limit
        try:
            asked = messages.parse(text, now_ms=now_ms, max_last=max_last)
        except messages.BadMessageError as exc:
            self._explain(exc.fault, exc.id)
            return
        self._do(asked)

    def tell(self, box: Mailbox, event: LiveEvent) -> None:
        """Let a message wait until it can be sent."""
        if not self.outbox.put(box, event):
            # Not here: whoever tells is in the midst of telling others, too.
            self.outbox.shut()
            self._loop.call_soon(self.end, Leave.SLOW)
        elif not self._is_due and self._draining is None:
            self._is_due = True
            self._hub.wake(self)

    def flush(self, now_ms: int) -> None:
        """Send what waits, as far as the client takes it."""
        self._is_due = False
        if self._left is not None or self._draining is not None:
            return
        frames = []
        for box, event in self.outbox.take(BATCH_BYTES):
            assert event.wire is not None
            frames.append(text_frame(box.prefix + event.wire))
            if isinstance(event, BarEvent) and event.venue_ms is not None:
                self._hub.observe_lag(now_ms - event.venue_ms)
        if not frames:
            return
        self._link.write(frames[0] if len(frames) == 1 else b"".join(frames))
        self._hub.sent += len(frames)
        if self._link.is_congested:
            self._congested_s = self._loop.time()
            self._draining = asyncio.create_task(self._drain(), name="wait for a slow client")
        elif self.outbox:
            self._is_due = True
            self._hub.wake(self)

    def beat(self, frames: bytes) -> None:
        """Send a heartbeat; a client that is behind has other things to read."""
        if self._left is None and self._draining is None:
            self._link.write(frames)
            self._hub.sent += 1

    def check(self, now_s: float) -> None:
        """Leave where nothing was heard or taken for too long."""
        since_s = min(self._link.heard_s, self._congested_s) if self._draining is not None else self._link.heard_s
        if now_s - since_s > self._hub.settings.stream_timeout_s:
            self.end(Leave.TIMEOUT)

    def end(self, leave: Leave) -> None:
        """Leave: everything that is held is let go at once. The connection is cut where the client does not go."""
        if self._left is not None:
            if leave is Leave.STOPPING:
                self._loop.call_later(leave.linger_s, self._link.abort)
            return
        self._left = leave
        self._hub.leave(self, leave, subscriptions=len(self._subscriptions))
        subscriptions, self._subscriptions = self._subscriptions, {}
        for subscription in subscriptions.values():
            subscription.close()
        self.outbox.shut()
        if self._draining is not None:
            self._draining.cancel()
        if leave is not Leave.LEFT:
            self._link.close(leave.code, leave.words)
            self._loop.call_later(leave.linger_s, self._link.abort)

    async def leave(self) -> None:
        """The connection is over: wait for the end of what was under way."""
        self.end(Leave.LEFT)
        self._hub.connections.discard(self)
        tasks = self._tasks | ({self._draining} if self._draining is not None else set())
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=END_S)
            for task in stuck:
                log.error("%s did not end in time", task.get_name())

    def _do(self, asked: messages.Request) -> None:
        if isinstance(asked, messages.Ping):
            self._say(messages.PONG)
        elif isinstance(asked, messages.Subscribe):
            self._subscribe(asked)
        elif isinstance(asked, messages.Unsubscribe):
            self._unsubscribe(asked.id)
        else:
            detail = "Authentication is off: no key is needed, and none is looked at."
            self._say(messages.error("feature_not_supported", detail, of=None))

    def _subscribe(self, asked: messages.Subscribe) -> None:
        most = self._hub.settings.stream_max_subscriptions
        if asked.id in self._subscriptions:
            self._explain(ConflictError(f"The id {asked.id!r} is in use; unsubscribe it, or choose another."), asked.id)
            return
        if len(self._subscriptions) >= most:
            words = f"A connection may have {most} subscriptions; unsubscribe some, or open another connection."
            self._explain(ConflictError(words), asked.id)
            return
        made = self._subscriptions[asked.id] = ClientSubscription(self, asked)
        self._hub.subscriptions += 1
        made.task = asyncio.create_task(self._open(made), name=f"subscribe to {asked.query.series}")
        self._tasks.add(made.task)
        made.task.add_done_callback(self._tasks.discard)

    def _unsubscribe(self, subscription_id: str) -> None:
        made = self._subscriptions.pop(subscription_id, None)
        if made is None:
            self._explain(NotFoundError(f"There is no subscription {subscription_id!r}."), subscription_id)
            return
        self._hub.subscriptions -= 1
        made.close()
        self._say(made.box.prefix + messages.UNSUBSCRIBED)

    async def _open(self, made: ClientSubscription) -> None:
        """Bring a subscription to the present."""
        if self._openings is None or self._snapshots is None:
            self._openings, self._snapshots = asyncio.Semaphore(OPENINGS), asyncio.Semaphore(SNAPSHOTS)
        try:
            async with self._openings, self._hub.openings:
                made.held = await self._subscribed(made)
            made.is_simulated = self._is_simulated(made.query.series)
            async with self._snapshots:
                await made.held.run()
        except Exception as exc:  # noqa: BLE001 - the edge of a task; whoever explains it logs it
            self._drop(made, exc)
        finally:
            made.task = None

    async def _subscribed(self, made: ClientSubscription) -> Subscription:
        limit_s = self._hub.settings.request_timeout_s
        try:
            async with asyncio.timeout(limit_s) as bound:
                return await self._source.subscribe(made.query, made)
        except TimeoutError as exc:
            if not bound.expired():
                raise
            raise IncompleteError(f"The subscription was not ready within {limit_s:g} s; ask again.") from exc

    def _drop(self, made: ClientSubscription, error: Exception) -> None:
        """End a subscription that cannot go on, and say why."""
        if self._subscriptions.get(made.id) is not made:
            return
        del self._subscriptions[made.id]
        self._hub.subscriptions -= 1
        made.task = None
        made.close()
        self._explain(error, made.id)

    async def _drain(self) -> None:
        """Go on once the client has taken what it was sent."""
        try:
            await self._link.drained()
        except ConnectionError:
            # The handler hears of that, too, and ends.
            return
        self._draining = None
        self._is_due = True
        self._hub.wake(self)

    def _charge(self) -> bool:
        """Count a frame of the client; False where it is one too many. Whoever goes on sending them must go."""
        if self._left is not None or self._bucket.take():
            return True
        if not self._patience.take():
            self.end(Leave.RATE)
        return False

    def _too_big(self) -> None:
        self.end(Leave.TOO_BIG)

    def _explain(self, error: Exception, subscription_id: str | None) -> None:
        code, detail, parameter = self._hub.explain(error)
        self._say(messages.error(code, detail, of=subscription_id, parameter=parameter))

    def _say(self, text: str) -> None:
        self.tell(self._box, Encoded(text))
