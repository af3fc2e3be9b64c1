"""All clients of the stream: who they are, when they are written to, when they are let go, and what is counted."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from enum import Enum
from itertools import count
from typing import NamedTuple, Protocol

from blueprints.stream_link import PING, text_frame
from blueprints.stream_messages import heartbeat
from services.histogram import Histogram

HEARTBEAT_S = 15.0
#: The clients' heartbeats are spread over so many moments.
SLOTS = 15
#: Clients that are written to before anything else has its turn.
CLIENTS_A_TURN = 200
#: Subscriptions of all clients that are being made at once: all of a crowd that comes back together would ask the
#: database at the same time, and be told that it is out of reach.
OPENINGS = 128
#: Upper bounds of the buckets of `candlery_stream_bar_lag_seconds`.
_LAG_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Farewell(NamedTuple):
    """How a client is let go: the code and the words of the closing frame, and how long it has to take them."""

    label: str
    code: int
    words: str
    linger_s: float


class Leave(Farewell, Enum):
    """Why a client leaves or must go."""

    #: It went by itself.
    LEFT = "left", 1000, "", 0.0
    STOPPING = "stopping", 1001, "the server is going away", 1.0
    #: It may have been busy for a while: there is time to read on, and to learn that it should come back.
    SLOW = "slow", 4008, "too slow: resume with since", 30.0
    TIMEOUT = "timeout", 4008, "nothing was heard or taken for too long", 1.0
    TOO_BIG = "too_big", 1009, "a message is too large", 2.0
    RATE = "rate", 1008, "too many messages", 2.0
    ERROR = "error", 1011, "internal error", 2.0


class StreamSettings(Protocol):
    """The settings of the stream; see docs/settings.md."""

    @property
    def stream_max_clients(self) -> int:
        """Most clients at once."""
        ...

    @property
    def stream_max_subscriptions(self) -> int:
        """Most subscriptions of one client."""
        ...

    @property
    def stream_queue_items(self) -> int:
        """Most messages that wait for one client."""
        ...

    @property
    def stream_queue_bytes(self) -> int:
        """Most bytes that wait for one client."""
        ...

    @property
    def stream_message_rate(self) -> float:
        """Messages a second that one client may send."""
        ...

    @property
    def stream_message_burst(self) -> int:
        """Messages that it may send at once."""
        ...

    @property
    def stream_timeout_s(self) -> float:
        """A client that says or takes nothing for so long is let go."""
        ...

    @property
    def max_limit(self) -> int:
        """Most bars that a client may ask for by number."""
        ...

    @property
    def request_timeout_s(self) -> float:
        """How long it may take until a subscription exists."""
        ...


class Problem(NamedTuple):
    """An error in the words of the API."""

    code: str
    detail: str | None
    parameter: str | None = None


class Member(Protocol):
    """What the hub needs of a client."""

    @property
    def slot(self) -> int:
        """When its heartbeats are due."""
        ...

    @property
    def conflated(self) -> int:
        """Forming bars that it was not sent."""
        ...

    def flush(self, now_ms: int) -> None:
        """Send what waits."""
        ...

    def beat(self, frames: bytes) -> None:
        """Send a heartbeat."""
        ...

    def check(self, now_s: float) -> None:
        """Leave where nothing was heard or taken for too long."""
        ...

    def end(self, leave: Leave) -> None:
        """Leave."""
        ...


class StreamHub:
    """Knows every client; one timer and one turn of the loop serve all of them."""

    def __init__(
        self,
        settings: StreamSettings,
        explain: Callable[[Exception], Problem],
        *,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        """Take how errors are told. Nothing runs by itself: `tick()` is to be called every `tick_s`."""
        self.settings = settings
        self.explain = explain
        self.tick_s = heartbeat_s / SLOTS
        self.is_stopping = False
        self.openings = asyncio.Semaphore(OPENINGS)
        self.clients: set[Member] = set()
        #: Those whose connections are not over yet: they may have been told to go.
        self.connections: set[Member] = set()
        self.subscriptions = 0
        self.sent = 0
        self._conflated = 0
        self.disconnects: Counter[Leave] = Counter(dict.fromkeys(Leave, 0))
        #: How long after the venue's clock bars were sent.
        self.lags = Histogram(_LAG_BOUNDS_S)
        self._numbers = count()
        self._slot = 0
        self._due: deque[Member] = deque()
        self._is_called = False

    @property
    def conflated(self) -> int:
        """Forming bars that were left out, since there was a newer one or the closed one."""
        return self._conflated + sum(client.conflated for client in self.clients)

    def join(self, client: Member) -> None:
        """A client has come."""
        self.clients.add(client)
        self.connections.add(client)

    def leave(self, client: Member, why: Leave, *, subscriptions: int) -> None:
        """A client leaves with its subscriptions."""
        self.clients.discard(client)
        self.disconnects[why] += 1
        self._conflated += client.conflated
        self.subscriptions -= subscriptions

    @property
    def is_full(self) -> bool:
        """Whether no other client can be served."""
        return len(self.connections) >= self.settings.stream_max_clients

    def next_slot(self) -> int:
        """The slot of a new client."""
        return next(self._numbers) % SLOTS

    def wake(self, member: Member) -> None:
        """Let the client's messages be sent soon, together with those of all others."""
        self._due.append(member)
        if not self._is_called:
            self._is_called = True
            asyncio.get_running_loop().call_soon(self._flush)

    def observe_lag(self, lag_ms: float) -> None:
        """A bar was sent so long after the venue's clock."""
        self.lags.observe(max(0.0, lag_ms / 1000))

    async def tick(self) -> None:
        """Send the heartbeats that are due, and let go whoever gave no sign of life."""
        self._slot = (self._slot + 1) % SLOTS
        now_s, frames = asyncio.get_running_loop().time(), text_frame(heartbeat(_now_ms())) + PING
        for client in list(self.clients):
            client.check(now_s)
            if client.slot == self._slot:
                client.beat(frames)

    def stop(self) -> None:
        """Tell every client that the server goes away, and take no others."""
        self.is_stopping = True
        for client in list(self.connections):
            client.end(Leave.STOPPING)

    def _flush(self) -> None:
        """Write to the clients whose turn it is."""
        now_ms, due = _now_ms(), self._due
        for _ in range(min(len(due), CLIENTS_A_TURN)):
            due.popleft().flush(now_ms)
        self._is_called = bool(due)
        if due:
            asyncio.get_running_loop().call_soon(self._flush)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
