"""The cache: settled bars of one revision of a series. It may forget anything at any time, and never tells a lie.

Knowledge only grows within a revision; who changes a settled bar gives the series a new revision, and so makes what was
cached under the old one unreachable. Minutes are kept in blocks of a UTC day, other timeframes as whole answers.
"""

import asyncio
import sys
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import islice
from time import monotonic
from typing import ClassVar, NamedTuple

from domain.bar import Bar, within
from domain.clock import Clock
from domain.errors import CandleryError
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, Timeframe
from services.cache_codec import (
    AnswerKey,
    MinuteBlock,
    MinuteKey,
    UnsoundValueError,
    decode_answer,
    decode_block,
    encode_answer,
    encode_block,
)

#: Larger values are not cached: 10,000 bars take about 600 kB.
MAX_VALUE_BYTES = 1 << 20


class CacheUnavailableError(CandleryError):
    """The cache cannot be reached."""


class CachedBars(NamedTuple):
    """Bars, and the minutes whose truth is settled: where they hold no bar, there is none."""

    bars: list[Bar]
    known: RangeSet


class CacheStats(NamedTuple):
    """What has happened since the start.

    Attributes:
        hits: entries that were asked for and there.
        misses: entries that were asked for and not there, or could not be had.
        rejected: entries that were there and unsound.
        errors: calls that failed.
        entries: entries held now; None where that is not known.
        bytes: memory that they take; None where that is not known.
        state: of the way to the cache: `closed` (in use), `open` (given up for a while) or `half_open` (being tried).
    """

    hits: int = 0
    misses: int = 0
    rejected: int = 0
    errors: int = 0
    entries: int | None = None
    bytes: int | None = None
    state: str = "closed"


class Cache(ABC):
    """Keeps bars near. No method but `ping` raises: what goes wrong is a miss."""

    async def open(self) -> None:  # noqa: B027 - most have nothing to do
        """Begin. There may be no cache to be reached yet."""

    async def close(self) -> None:  # noqa: B027
        """End."""

    @abstractmethod
    async def get_1m_bars(self, series_id: int, revision: int, wanted: RangeSet) -> CachedBars:
        """What is cached of the wanted minutes: `known` is a part of `wanted`, and holds all the bars."""

    @abstractmethod
    async def store_1m_bars(self, series_id: int, revision: int, bars: Sequence[Bar], known: RangeSet) -> None:
        """Add settled minutes and their bars (ascending) to what is there; bars outside `known` are left out."""

    @abstractmethod
    async def get_resampled(
        self, series_id: int, revision: int, timeframe: Timeframe, wanted: TimeRange
    ) -> list[Bar] | None:
        """All bars of a range that was put there as a whole; None where exactly this range was not."""

    @abstractmethod
    async def set_resampled(
        self, series_id: int, revision: int, timeframe: Timeframe, wanted: TimeRange, bars: Sequence[Bar]
    ) -> None:
        """Keep all bars of a range whose truth is settled in full."""

    @abstractmethod
    async def ping(self) -> None:
        """Raise `CacheUnavailableError` where nothing can be cached now."""

    @abstractmethod
    def stats(self) -> CacheStats:
        """Counters, for metrics."""


class BlockCache(Cache):
    """What all caches share: bars as entries of bytes, which the heirs keep where they like."""

    #: Entries in one go.
    batch: ClassVar[int] = 1
    #: Whether entries may have been touched by others.
    distrustful: ClassVar[bool] = True

    def __init__(self, *, max_value_bytes: int = MAX_VALUE_BYTES, budget_s: float = float("inf")) -> None:
        """`budget_s`: after this long, a call over many entries is content with those it has dealt with."""
        self._max_value_bytes = max_value_bytes
        self._budget_s = budget_s
        self._hits = self._misses = self._rejected = 0

    @abstractmethod
    async def _read(self, keys: Sequence[str]) -> list[bytes | None] | None:
        """The entries, None for those not there; None in place of the list where they cannot be had."""

    @abstractmethod
    async def _write(self, entries: Sequence[tuple[str, bytes]]) -> bool:
        """Keep the entries, or not; whether there is any use in going on."""

    @abstractmethod
    async def _drop(self, keys: Sequence[str], why: str) -> None:
        """Forget unsound entries."""

    async def get_1m_bars(self, series_id: int, revision: int, wanted: RangeSet) -> CachedBars:
        """Read the blocks of the wanted days, a batch at a time."""
        bars: list[Bar] = []
        known: list[TimeRange] = []
        give_up_at = monotonic() + self._budget_s
        for days in _batches(_by_day(wanted.whole_buckets(Timeframe.M1)), self.batch):
            keys = [MinuteKey(series_id, revision, day_ms) for day_ms, _ in days]
            values = await self._read([str(key) for key in keys])
            for key, value, (_, part) in zip(keys, values or [None] * len(keys), days, strict=True):
                block = await self._block(key, value)
                self._count(found=block is not None)
                if block is not None:
                    share = block.known & part
                    bars += within(block.bars, share)
                    known += share
                    await asyncio.sleep(0)  # A block takes up to a millisecond: others get their turn in between.
            if values is None or monotonic() > give_up_at:
                break
        return CachedBars(bars, RangeSet(known))

    async def store_1m_bars(self, series_id: int, revision: int, bars: Sequence[Bar], known: RangeSet) -> None:
        """Lay the new minutes over the blocks that are there.

        Two servers that do so at once may lose one another's minutes: these are read from the database again.
        """
        known = known.whole_buckets(Timeframe.M1)
        rest = iter(within(bars, known))
        bar = next(rest, None)
        give_up_at = monotonic() + self._budget_s
        for days in _batches(_by_day(known), self.batch):
            fresh = {}
            for day_ms, part in days:
                mine = []
                while bar is not None and bar.ts < day_ms + DAY_MS:
                    mine.append(bar)
                    bar = next(rest, None)
                fresh[MinuteKey(series_id, revision, day_ms)] = MinuteBlock(mine, part)
            if not await self._lay_over(fresh) or monotonic() > give_up_at:
                break
            await asyncio.sleep(0)

    async def _lay_over(self, fresh: dict[MinuteKey, MinuteBlock]) -> bool:
        partial = [key for key, block in fresh.items() if block.known.length_ms < DAY_MS]
        values = await self._read([str(key) for key in partial]) if partial else []
        if values is None:
            return False
        old = dict(zip(partial, values, strict=True))
        entries: list[tuple[str, bytes]] = []
        for key, block in fresh.items():
            if entries:
                await asyncio.sleep(0)  # Not with one entry: in memory, reading and writing must be one step.
            there = await self._block(key, old.get(key))
            merged = there.overlaid(*block) if there else block
            entries.append((str(key), encode_block(key, merged)))
        return await self._write([entry for entry in entries if len(entry[1]) <= self._max_value_bytes])

    async def get_resampled(
        self, series_id: int, revision: int, timeframe: Timeframe, wanted: TimeRange
    ) -> list[Bar] | None:
        """Read the answer for exactly this range."""
        key = AnswerKey(series_id, revision, timeframe, wanted)
        values = await self._read([str(key)])
        bars = None
        if values and values[0] is not None:
            try:
                bars = decode_answer(key, values[0], check_bars=self.distrustful)
            except UnsoundValueError as exc:
                await self._reject(str(key), exc)
        self._count(found=bars is not None)
        return bars

    async def set_resampled(
        self, series_id: int, revision: int, timeframe: Timeframe, wanted: TimeRange, bars: Sequence[Bar]
    ) -> None:
        """Keep the answer for exactly this range."""
        key = AnswerKey(series_id, revision, timeframe, wanted)
        value = encode_answer(key, bars)
        if len(value) <= self._max_value_bytes:
            await self._write([(str(key), value)])

    async def _block(self, key: MinuteKey, value: bytes | None) -> MinuteBlock | None:
        if value is None:
            return None
        try:
            return decode_block(key, value, check_bars=self.distrustful)
        except UnsoundValueError as exc:
            await self._reject(str(key), exc)
            return None

    async def _reject(self, key: str, why: UnsoundValueError) -> None:
        self._rejected += 1
        await self._drop([key], str(why))

    def _count(self, *, found: bool) -> None:
        self._hits += found
        self._misses += not found


class MemoryCache(BlockCache):
    """Entries in this process: the least recently used give way where they would take more than `max_bytes`."""

    distrustful = False

    #: What an entry takes besides its key and its value: the tuple, the numbers, the slots of the ordered dictionary.
    _OVERHEAD_BYTES = 320

    def __init__(self, *, max_bytes: int, ttl_s: float, clock: Clock, max_value_bytes: int = MAX_VALUE_BYTES) -> None:
        """Bound the cache; an entry is forgotten `ttl_s` after it was last written."""
        super().__init__(max_value_bytes=max_value_bytes)
        self._max_bytes = max_bytes
        self._ttl_ms = int(ttl_s * 1000)
        self._clock = clock
        self._entries: OrderedDict[str, tuple[int, bytes]] = OrderedDict()
        self._bytes = 0

    async def close(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._bytes = 0

    async def ping(self) -> None:
        """Memory is always there."""

    def stats(self) -> CacheStats:
        """Counters, and what is held."""
        return CacheStats(self._hits, self._misses, self._rejected, entries=len(self._entries), bytes=self._bytes)

    async def _read(self, keys: Sequence[str]) -> list[bytes | None] | None:
        return [self._find(key) for key in keys]

    async def _write(self, entries: Sequence[tuple[str, bytes]]) -> bool:
        expires_ms = self._clock.now_ms() + self._ttl_ms
        for key, value in entries:
            self._forget(key)
            size = self._size(key, value)
            if size > self._max_bytes:
                continue
            self._entries[key] = (expires_ms, value)
            self._bytes += size
            while self._bytes > self._max_bytes:
                self._forget(next(iter(self._entries)))
        return True

    async def _drop(self, keys: Sequence[str], why: str) -> None:  # noqa: ARG002 - it cannot happen in memory
        for key in keys:
            self._forget(key)

    def _find(self, key: str) -> bytes | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry[0] <= self._clock.now_ms():
            self._forget(key)
            return None
        self._entries.move_to_end(key)
        return entry[1]

    def _forget(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= self._size(key, entry[1])

    def _size(self, key: str, value: bytes) -> int:
        return sys.getsizeof(key) + sys.getsizeof(value) + self._OVERHEAD_BYTES


def _by_day(ranges: RangeSet) -> Iterator[tuple[int, RangeSet]]:
    """The UTC days that the ranges touch, each with its part of them."""
    current, parts = 0, list[TimeRange]()
    for start_ms, end_ms in ranges:
        for day_ms in range(start_ms - start_ms % DAY_MS, end_ms, DAY_MS):
            if parts and day_ms != current:
                yield current, RangeSet(parts)
                parts = []
            current = day_ms
            parts.append(TimeRange(max(start_ms, day_ms), min(end_ms, day_ms + DAY_MS)))
    if parts:
        yield current, RangeSet(parts)


def _batches(days: Iterator[tuple[int, RangeSet]], size: int) -> Iterator[list[tuple[int, RangeSet]]]:
    while batch := list(islice(days, size)):
        yield batch
