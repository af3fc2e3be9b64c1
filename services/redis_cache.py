"""The cache in Redis or Valkey, shared by servers. It may be absent, flushed, slow or mad: no answer changes for it."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from enum import StrEnum
from functools import partial
from time import monotonic
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random

from domain.bar import Bar
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, Timeframe
from services.cache_codec import (
    AnswerKey,
    MinuteKey,
    UnsoundValueError,
    decode_answer,
    decode_hour,
    encode_answer,
    encode_hour,
)
from services.cache_manager import (
    MAX_VALUE_BYTES,
    BlockCache,
    CachedBars,
    CacheStats,
    CacheUnavailableError,
    batches,
    with_pauses,
)
from services.day_block import ALL, DayBlock, Findings, Hour, parts_of, touched_hours

log = logging.getLogger(__name__)

T = TypeVar("T")

#: The same trouble is logged again only after this long.
_QUIET_S = 60.0


class BreakerState(StrEnum):
    """Whether calls are let through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitBreaker:
    """Lets no call through for a while after several failures in a row, then one, to see how it fares."""

    def __init__(self, *, failures: int = 3, cooldown_s: float = 5.0, now_s: Callable[[], float] = monotonic) -> None:
        """Open after `failures` in a row, for `cooldown_s`."""
        self._limit = failures
        self._cooldown_s = cooldown_s
        self._now_s = now_s
        self._failures = 0
        self._opened_s = 0.0
        self.state = BreakerState.CLOSED

    def admits(self) -> bool:
        """Whether a call may be made now; who is told so reports how it went."""
        if self.state is BreakerState.OPEN and self._now_s() - self._opened_s >= self._cooldown_s:
            self.state = BreakerState.HALF_OPEN
            return True
        return self.state is BreakerState.CLOSED

    def succeeded(self) -> bool:
        """A call was answered; whether that closed the breaker."""
        was, self.state, self._failures = self.state, BreakerState.CLOSED, 0
        return was is not BreakerState.CLOSED

    def failed(self) -> bool:
        """A call was not answered; whether that opened the breaker."""
        self._failures += 1
        was = self.state
        if was is BreakerState.HALF_OPEN or self._failures >= self._limit:
            self.state, self._opened_s = BreakerState.OPEN, self._now_s()
        return was is BreakerState.CLOSED and self.state is BreakerState.OPEN

    def abandoned(self) -> None:
        """A call was cancelled: nothing was learnt, and the next may try."""
        if self.state is BreakerState.HALF_OPEN:
            self.state = BreakerState.OPEN


class RedisCache(BlockCache):
    """Entries in a Redis, which belongs to who made the client.

    Entries are named by series and revision, which are numbers of one database: servers of several databases that
    share a Redis need a `namespace` each.
    """

    batch = 16
    write_batch = 16

    def __init__(
        self,
        client: Redis,
        *,
        ttl_s: float,
        namespace: str = "candlery",
        timeout_s: float = 0.45,
        budget_s: float = 1.0,
        attempts: int = 2,
        breaker: CircuitBreaker | None = None,
        max_value_bytes: int = MAX_VALUE_BYTES,
    ) -> None:
        """Take the client; do no I/O.

        Args:
            client: with time-outs of its own and without retries.
            ttl_s: an entry is forgotten this long after it was last written.
            namespace: the beginning of every key.
            timeout_s: for one round trip, its retries included.
            budget_s: for one call over many entries.
            attempts: at a round trip whose connection was lost.
            breaker: decides when to leave Redis alone.
            max_value_bytes: larger entries are not kept.
        """
        super().__init__(max_value_bytes=max_value_bytes, budget_s=budget_s)
        self._client = client
        self._ttl_ms = max(1, int(ttl_s * 1000))
        self._prefix = f"{namespace}:"
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._breaker = breaker or CircuitBreaker()
        self._errors = 0
        self._logged_s: dict[str, float] = {}

    async def ping(self) -> None:
        """Raise `CacheUnavailableError` where Redis does not answer; asks it in any case."""

        async def ask() -> bool:
            return bool(await self._client.ping())

        if not await self._ask(ask, anyway=True):
            raise CacheUnavailableError

    def stats(self) -> CacheStats:
        """Counters, and the state of the circuit breaker."""
        return CacheStats(self._hits, self._misses, self._rejected, self._errors, state=self._breaker.state.value)

    async def get_1m_bars(self, series_id: int, revision: int, wanted: RangeSet) -> CachedBars:
        """Take what is wanted out of the blocks of its days, some days at a time."""
        found = Findings()
        give_up_at = monotonic() + self._budget_s
        days = batches(parts_of(wanted.whole_buckets(Timeframe.M1), DAY_MS), self.batch)
        async for batch in with_pauses(days):
            asked = [(MinuteKey(series_id, revision, day_ms), part) for day_ms, part in batch]
            blocks = await self._read_days(asked)
            for (_, part), block in zip(asked, blocks or [None] * len(asked), strict=True):
                self._count(found=block is not None)
                if block is not None:
                    block.take(part, found)
            if blocks is None or monotonic() > give_up_at:
                break
        return CachedBars(found.bars, found.known)

    async def _read_days(self, wanted: Sequence[tuple[MinuteKey, RangeSet]]) -> list[DayBlock | None] | None:
        asked = {key: touched_hours(part) for key, part in wanted}
        values = await self._hours(asked)
        return None if values is None else [await self._block(key, asked[key], values[key]) for key, _ in wanted]

    async def _lay_over(self, fresh: Mapping[MinuteKey, Mapping[int, Hour]]) -> bool:
        partial = {
            key: numbers
            for key, hours in fresh.items()
            if (numbers := [number for number, hour in hours.items() if hour.known != ALL])
        }
        values = await self._hours(partial) if partial else {}
        if values is None:
            return False
        merged = {}
        for key, hours in fresh.items():
            there = await self._block(key, partial.get(key, ()), values.get(key, ())) or DayBlock(key.day_ms)
            merged[key] = {number: there.lay(number, newer) for number, newer in hours.items()}
        return await self._put_hours(merged)

    async def _hours(self, wanted: Mapping[MinuteKey, Sequence[int]]) -> dict[MinuteKey, list[bytes | None]] | None:
        """Hours by their numbers, each a field of its day's hash."""

        async def read() -> dict[MinuteKey, list[bytes | None]]:
            async with self._client.pipeline(transaction=False) as pipe:
                for key, numbers in wanted.items():
                    pipe.hmget(self._prefix + str(key), list(map(str, numbers)))
                replies = await pipe.execute(raise_on_error=False)
            return {key: _fields(reply, len(wanted[key])) for key, reply in zip(wanted, replies, strict=True)}

        return await self._ask(read)

    async def _put_hours(self, days: Mapping[MinuteKey, Mapping[int, Hour]]) -> bool:
        hashes = {
            self._prefix + str(key): {str(number): encode_hour(key, number, hour) for number, hour in hours.items()}
            for key, hours in days.items()
        }

        async def write() -> bool:
            wrong = await self._set_hashes(hashes)
            if wrong:
                await self._client.delete(*wrong)
                await self._set_hashes({name: hashes[name] for name in wrong})
            return True

        return bool(await self._ask(write))

    async def _set_hashes(self, hashes: Mapping[str, Mapping[str, bytes]]) -> list[str]:
        """Set fields; the names that stand for something other than a hash."""
        async with self._client.pipeline(transaction=False) as pipe:
            for name, fields in hashes.items():
                pipe.hset(name, mapping=fields)  # type: ignore[arg-type]
                pipe.pexpire(name, self._ttl_ms)
            replies = await pipe.execute(raise_on_error=False)
        if refusal := next((one for one in replies if isinstance(one, Exception) and not _is_wrong_type(one)), None):
            raise refusal
        return [name for name, reply in zip(hashes, replies[::2], strict=True) if _is_wrong_type(reply)]

    async def _block(self, key: MinuteKey, numbers: Sequence[int], values: Sequence[bytes | None]) -> DayBlock | None:
        """What is sound of a day; None where nothing of it is there."""
        block = None
        for number, value in zip(numbers, values, strict=True):
            if value is None:
                continue
            try:
                hour = decode_hour(key, number, value)
            except UnsoundValueError as exc:
                await self._reject(exc, partial(self._drop_hour, key, number))
                continue
            block = block or DayBlock(key.day_ms)
            block.lay(number, hour)
        return block

    async def _drop_hour(self, key: MinuteKey, number: int) -> int:
        return int(await self._client.hdel(self._prefix + str(key), str(number)))

    async def get_resampled(
        self, series_id: int, revision: int, timeframe: Timeframe, wanted: TimeRange
    ) -> Sequence[Bar] | None:
        """Read the answer for exactly this range."""
        key = AnswerKey(series_id, revision, timeframe, wanted)
        name = self._prefix + str(key)

        async def read() -> list[bytes | None]:
            # A key that holds something other than a string comes as None.
            return _checked(await self._client.mget([name]), 1)

        async def drop() -> int:
            return int(await self._client.delete(name))

        [value] = await self._ask(read) or [None]
        bars = None
        if value is not None:
            try:
                bars = decode_answer(key, value)
            except UnsoundValueError as exc:
                await self._reject(exc, drop)
        self._count(found=bars is not None)
        return bars

    async def set_resampled(
        self, series_id: int, revision: int, timeframe: Timeframe, wanted: TimeRange, bars: Sequence[Bar]
    ) -> None:
        """Keep the answer for exactly this range."""
        key = AnswerKey(series_id, revision, timeframe, wanted)
        value = encode_answer(key, bars)

        async def write() -> bool:
            return bool(await self._client.set(self._prefix + str(key), value, px=self._ttl_ms))

        if len(value) <= self._max_value_bytes:
            await self._ask(write)

    async def _reject(self, why: UnsoundValueError, drop: Callable[[], Coroutine[Any, Any, int]]) -> None:
        self._rejected += 1
        self._complain("unsound", "An entry of the cache is unsound, and is dropped: %s", why)
        await self._ask(drop)

    async def _ask(self, call: Callable[[], Coroutine[Any, Any, T]], *, anyway: bool = False) -> T | None:
        """The answer, or None after whatever trouble."""
        if not self._breaker.admits() and not anyway:
            return None
        try:
            async with asyncio.timeout(self._timeout_s):
                answer: T = await self._retrying()(call)
        except asyncio.CancelledError:
            self._breaker.abandoned()
            raise
        except ResponseError as exc:
            # It lives and refuses: out of memory, read-only, no permission. Reading may still work.
            self._errors += 1
            self._complain("refused", "The cache refuses: %s", _words(exc))
            self._recovered()
            return None
        except Exception as exc:  # noqa: BLE001 - a garbled reply can make the client raise anything
            self._failed(exc)
            return None
        self._recovered()
        return answer

    def _retrying(self) -> AsyncRetrying:
        # A connection that broke is worth a second try at once; a server that is slow is not.
        return AsyncRetrying(
            retry=retry_if_exception_type(RedisConnectionError),
            stop=stop_after_attempt(self._attempts),
            wait=wait_random(0.005, 0.03),
            reraise=True,
        )

    def _recovered(self) -> None:
        if self._breaker.succeeded():
            self._logged_s.clear()
            log.info("The cache answers again")

    def _failed(self, exc: Exception) -> None:
        self._errors += 1
        if self._breaker.failed():
            log.warning("The cache does not answer and is left alone for a while: %s", _words(exc))
        else:
            self._complain("failed", "A call to the cache failed: %s", _words(exc))

    def _complain(self, kind: str, message: str, detail: object) -> None:
        now_s = monotonic()
        if now_s - self._logged_s.get(kind, -_QUIET_S) >= _QUIET_S:
            self._logged_s[kind] = now_s
            log.warning(message, detail)


def _checked(reply: object, count: int) -> list[bytes | None]:
    """The reply to MGET, if it is one; another's reply or a mad server's is not taken for entries."""
    if not isinstance(reply, list) or len(reply) != count:
        raise TypeError("not a reply to what was asked")
    values: list[bytes | None] = []
    for value in reply:
        if value is not None and not isinstance(value, bytes):
            raise TypeError("not bytes")
        values.append(value)
    return values


def _fields(reply: object, count: int) -> list[bytes | None]:
    """The reply to HMGET; of a key that holds something else there are none."""
    if isinstance(reply, Exception) and not _is_wrong_type(reply):
        raise reply
    return [None] * count if isinstance(reply, Exception) else _checked(reply, count)


def _is_wrong_type(reply: object) -> bool:
    return isinstance(reply, ResponseError) and str(reply).startswith("WRONGTYPE")


def _words(exc: Exception) -> str:
    # Some messages quote the command, and with it a whole value.
    return f"{type(exc).__name__}: {str(exc)[:200]}" if str(exc) else type(exc).__name__
