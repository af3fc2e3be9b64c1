"""Messages about live bars through the pub/sub of a Redis or Valkey, a channel for each series.

It may be absent, flushed, slow or mad: nobody waits for it, and no exception comes of it. What is not told reaches the
other processes through the database a little later.
"""

import asyncio
import logging
import random
import secrets
from contextlib import suppress
from time import monotonic
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

from services.broadcast_manager import BroadcastManager
from services.broadcast_queue import BroadcastQueue, Letter
from services.live import Message

log = logging.getLogger(__name__)

#: Tells this process's messages from the others'.
_PREFIX_BYTES = 8
#: After so many seconds without a word the server is asked for one, and has as long to answer.
_SILENCE_S = 1.0
#: For one batch of messages.
_SEND_S = 2.0
#: Most messages in one batch.
_BATCH = 500
#: Seconds until another try, doubled with each up to the limit.
_PAUSE_S = 0.1
_PAUSE_LIMIT_S = 2.0
_CLOSE_S = 1.5
_CANCEL_S = 0.1
_DISCONNECT_S = 0.5


class RedisBroadcast(BroadcastManager):
    """Broadcast through a Redis, which belongs to who made the client."""

    def __init__(self, client: Redis, *, namespace: str = "candlery") -> None:
        """Take the client; do no I/O.

        Args:
            client: with time-outs of its own.
            namespace: the beginning of every channel's name: servers of one database share it, and no others.
        """
        super().__init__()
        self._client = client
        self._home = f"{namespace}:live"
        self._own = secrets.token_bytes(_PREFIX_BYTES)
        self._queue = BroadcastQueue(self._own)
        self._decoder = msgspec.msgpack.Decoder(Message)
        #: Something is to be sent, or the series to be followed are others.
        self._stirred = asyncio.Event()
        #: The connection that receives, and the series that were subscribed to on it.
        self._pubsub: Any = None
        self._subscribed: set[int] = set()
        self._connected = False
        self._was_lost = False
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def connected(self) -> bool:
        """Whether the channels are subscribed to and the server answers."""
        return self._connected

    async def open(self) -> None:
        """Begin to send and to receive; the server need not be there."""
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(self._receive_always(), name="receive live broadcasts"),
                asyncio.create_task(self._send_always(), name="send live broadcasts"),
            ]

    async def close(self) -> None:
        """End both within two seconds, whatever the server does."""
        tasks, self._tasks = set(self._tasks), []
        deadline_s = monotonic() + _CLOSE_S
        while tasks and monotonic() < deadline_s:
            # More than once, since wait_for() of Python 3.11, which the client uses, may swallow a cancellation.
            for task in tasks:
                task.cancel()
            _, tasks = await asyncio.wait(tasks, timeout=_CANCEL_S)
        for task in tasks:
            log.warning("the task to %s did not end in time", task.get_name())
        self._connected = False

    async def follow(self, series_id: int) -> None:
        """Subscribe to the series' channel, as soon as it can be done."""
        await super().follow(series_id)
        self._stirred.set()

    async def unfollow(self, series_id: int) -> None:
        """Leave the series' channel."""
        await super().unfollow(series_id)
        self._stirred.set()

    def _carry(self, message: Message) -> None:
        if self._tasks:
            self.lost += self._queue.put(message)
            self._stirred.set()

    # Sending

    async def _send_always(self) -> None:
        pause_s = _PAUSE_S
        while True:
            await self._stirred.wait()
            self._stirred.clear()
            letters = self._queue.take()
            try:
                await self._subscribe()
                await self._send(letters)
                pause_s = _PAUSE_S
            except Exception as exc:  # noqa: BLE001 - a garbled reply can make the client raise anything
                self.errors += 1
                self.lost += len(letters)
                self._lose(exc)
                pause_s = await _pause(pause_s)
                self._stirred.set()

    async def _subscribe(self) -> None:
        """Subscribe to what is followed now; a connection that is not up yet will do so by itself."""
        pubsub, subscribed = self._pubsub, self._subscribed
        new, gone = self._followed - subscribed, subscribed - self._followed
        if not self._connected or not (new or gone):
            return
        async with asyncio.timeout(_SEND_S):
            if new:
                await pubsub.subscribe(*map(self._channel, new))
                subscribed |= new
            if gone:
                await pubsub.unsubscribe(*map(self._channel, gone))
                subscribed -= gone

    async def _send(self, letters: list[Letter]) -> None:
        """Send them, and take those that were sent off the list."""
        while letters:
            async with asyncio.timeout(_SEND_S):
                await _retrying()(self._publish, letters[:_BATCH])
            del letters[:_BATCH]
            if self._connected:
                self._find()

    async def _publish(self, letters: list[Letter]) -> None:
        async with self._client.pipeline(transaction=False) as pipe:
            for letter in letters:
                pipe.publish(self._channel(letter.series_id), letter.content)
            await pipe.execute()

    # Receiving

    async def _receive_always(self) -> None:
        pause_s = _PAUSE_S
        while True:
            try:
                await self._receive()
            except Exception as exc:  # noqa: BLE001 - a garbled reply can make the client raise anything
                self.errors += 1
                pause_s = _PAUSE_S if self._connected else pause_s
                self._lose(exc)
            finally:
                was_connected, self._connected = self._connected, False
            if was_connected:
                self._trouble()
            pause_s = await _pause(pause_s)

    async def _receive(self) -> None:
        """Take in what comes until the connection is lost."""
        pubsub: Any = self._client.pubsub()
        try:
            followed = set(self._followed)
            await pubsub.subscribe(self._home, *map(self._channel, followed))
            self._pubsub, self._subscribed = pubsub, followed
            await self._read_always(pubsub)
        finally:
            with suppress(Exception):
                async with asyncio.timeout(_DISCONNECT_S):
                    await pubsub.aclose()

    async def _read_always(self, pubsub: Any) -> None:
        asked = False
        while True:
            heard = await pubsub.get_message(timeout=_SILENCE_S)
            if heard is not None:
                asked = False
                self._hear(heard)
                continue
            if asked:
                raise TimeoutError("it does not answer")
            await pubsub.ping()
            asked = True

    def _hear(self, heard: Any) -> None:
        kind, content = heard["type"], heard["data"]
        if kind == "subscribe" and heard["channel"] == self._home.encode():
            # Also where the client has connected again by itself.
            self._connected = True
            self._find()
            self._stirred.set()
            self._trouble()
        elif kind == "message" and not content.startswith(self._own):
            try:
                message: Message = self._decoder.decode(content[_PREFIX_BYTES:])
            except (msgspec.DecodeError, UnicodeDecodeError):
                self.rejected += 1
                return
            if self._channel(message.series_id).encode() != heard["channel"]:
                self.rejected += 1
                return
            self._take_in(message)

    def _channel(self, series_id: int) -> str:
        return f"{self._home}:{series_id}"

    # What is said of it

    def _lose(self, exc: Exception) -> None:
        if not self._was_lost:
            self._was_lost = True
            log.warning("Redis carries no live bars now, the database does: %s", _words(exc))

    def _find(self) -> None:
        if self._was_lost:
            self._was_lost = False
            log.info("Redis carries live bars again")


def _retrying() -> AsyncRetrying:
    # A connection that broke while it lay idle is worth a second try at once; a server that is slow is not.
    return AsyncRetrying(retry=retry_if_exception_type(RedisConnectionError), stop=stop_after_attempt(2), reraise=True)


async def _pause(pause_s: float) -> float:
    """Rest a while, with jitter so that processes do not come back all at once; how long the next time."""
    await asyncio.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311 - no secret
    return min(2 * pause_s, _PAUSE_LIMIT_S)


def _words(exc: Exception) -> str:
    return f"{type(exc).__name__}: {str(exc)[:200]}" if str(exc) else type(exc).__name__
