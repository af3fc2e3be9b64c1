"""The cache: settled bars of one revision of a series. It may forget anything at any time, and never tells a lie.

Knowledge only grows within a revision; who changes a settled bar gives the series a new revision, and so makes what was
cached under the old one unreachable. Minutes are kept in blocks of a UTC day, other timeframes as whole answers.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from time import monotonic
from typing import ClassVar, NamedTuple, TypeVar

from domain.bar import Bar
from domain.clock import Clock
from domain.errors import CandleryError
from domain.packed import PackedBars
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, Timeframe
from services.cache_codec import AnswerKey, MinuteKey
from services.day_block import Findings, Hour, WrittenDay, hours_of, parts_of

T = TypeVar("T")

#: Larger values are not cached: 10,000 bars take about 600 kB.
MAX_VALUE_BYTES = 1 << 20


class CacheUnavailableError(CandleryError):
    """The cache cannot be reached."""


class CachedBars(NamedTuple):
    """Bars, and the minutes whose truth is settled: where they hold no bar, there is none."""

    bars: Sequence[Bar]
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
    ) -> Sequence[Bar] | None:
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


class NoCache(Cache):
    """Forgets everything at once."""

    async def get_1m_bars(self, series_id: int, revision: int, wanted: RangeSet) -> CachedBars:  # noqa: ARG002
        """Nothing."""
        return CachedBars((), RangeSet())

    async def store_1m_bars(self, series_id: int, revision: int, bars: Sequence[Bar], known: RangeSet) -> None:
        """Forget it."""

    async def get_resampled(
        self,
        series_id: int,  # noqa: ARG002
        revision: int,  # noqa: ARG002
        timeframe: Timeframe,  # noqa: ARG002
        wanted: TimeRange,  # noqa: ARG002
    ) -> Sequence[Bar] | None:
        """Nothing."""
        return None

    async def set_resampled(
        self, series_id: int, revision: int, timeframe: Timeframe, wanted: TimeRange, bars: Sequence[Bar]
    ) -> None:
        """Forget it."""

    async def ping(self) -> None:
        """There is nothing to be reached."""

    def stats(self) -> CacheStats:
        """Nothing was asked for."""
        return CacheStats()


class BlockCache(Cache):
    """What all caches share: days of minutes, which the heirs keep where they like."""

    #: Days that are read in one go, and days that are written.
    batch: ClassVar[int] = 8
    write_batch: ClassVar[int] = 1

    def __init__(self, *, max_value_bytes: int = MAX_VALUE_BYTES, budget_s: float = float("inf")) -> None:
        """`budget_s`: after this long, a call over many entries is content with those it has dealt with."""
        self._max_value_bytes = max_value_bytes
        self._budget_s = budget_s
        self._hits = self._misses = self._rejected = 0

    @abstractmethod
    async def _lay_over(self, fresh: Mapping[MinuteKey, Mapping[int, Hour]]) -> bool:
        """Add newer knowledge of hours, by their number, to what is there; whether there is any use in going on."""

    async def store_1m_bars(self, series_id: int, revision: int, bars: Sequence[Bar], known: RangeSet) -> None:
        """Lay the new minutes over the blocks that are there.

        Two servers that do so at once may lose one another's minutes: these are read from the database again.
        """
        await asyncio.sleep(0)
        packed = bars if isinstance(bars, PackedBars) else PackedBars.of(bars)
        hours = hours_of(packed, known.whole_buckets(Timeframe.M1))
        by_day = groupby(hours, key=lambda item: item[0] - item[0] % DAY_MS)
        days = ((day_ms, {at % DAY_MS // HOUR_MS: hour for at, hour in items}) for day_ms, items in by_day)
        give_up_at = monotonic() + self._budget_s
        async for batch in with_pauses(batches(days, self.write_batch)):
            fresh = {MinuteKey(series_id, revision, day_ms): newer for day_ms, newer in batch}
            if not await self._lay_over(fresh) or monotonic() > give_up_at:
                break

    def _count(self, *, found: bool) -> None:
        self._hits += found
        self._misses += not found


class MemoryCache(BlockCache):
    """Entries in this process: the least recently used give way where they would take more than `max_bytes`.

    Minutes are kept with their text, so that an answer is put together without a look at a bar.
    """

    #: What an entry takes besides its value: the key, the tuple, the numbers, the slots of the ordered dictionary.
    _OVERHEAD_BYTES = 640

    def __init__(self, *, max_bytes: int, ttl_s: float, clock: Clock, max_value_bytes: int = MAX_VALUE_BYTES) -> None:
        """Bound the cache; an entry is forgotten `ttl_s` after it was last written."""
        super().__init__(max_value_bytes=max_value_bytes)
        self._max_bytes = max_bytes
        self._ttl_ms = int(ttl_s * 1000)
        self._clock = clock
        self._entries: OrderedDict[MinuteKey | AnswerKey, tuple[int, WrittenDay | PackedBars, int]] = OrderedDict()
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

    async def get_1m_bars(self, series_id: int, revision: int, wanted: RangeSet) -> CachedBars:
        """Take what is wanted out of the blocks of its days; others get their turn now and then."""
        found = Findings()
        for number, (day_ms, part) in enumerate(parts_of(wanted.whole_buckets(Timeframe.M1), DAY_MS), start=1):
            block = self._find(MinuteKey(series_id, revision, day_ms))
            self._count(found=block is not None)
            if isinstance(block, WrittenDay):
                block.take(part, found)
            if number % self.batch == 0:
                await asyncio.sleep(0)
        return CachedBars(found.bars, found.known)

    async def _lay_over(self, fresh: Mapping[MinuteKey, Mapping[int, Hour]]) -> bool:
        for key, hours in fresh.items():
            block = self._find(key)
            if not isinstance(block, WrittenDay):
                block = WrittenDay(key.day_ms)
            for number, newer in hours.items():
                block.lay(number, newer)
            block.finish()
            self._put(key, block, block.size)
        return True

    async def get_resampled(
        self, series_id: int, revision: int, timeframe: Timeframe, wanted: TimeRange
    ) -> Sequence[Bar] | None:
        """The answer for exactly this range."""
        found = self._find(AnswerKey(series_id, revision, timeframe, wanted))
        self._count(found=found is not None)
        return found if isinstance(found, PackedBars) else None

    async def set_resampled(
        self, series_id: int, revision: int, timeframe: Timeframe, wanted: TimeRange, bars: Sequence[Bar]
    ) -> None:
        """Keep the answer for exactly this range."""
        packed = bars if isinstance(bars, PackedBars) else PackedBars.of(bars)
        self._put(AnswerKey(series_id, revision, timeframe, wanted), packed, len(packed.raw()) + len(packed.json()))

    def _find(self, key: MinuteKey | AnswerKey) -> WrittenDay | PackedBars | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry[0] <= self._clock.now_ms():
            self._forget(key)
            return None
        self._entries.move_to_end(key)
        return entry[1]

    def _put(self, key: MinuteKey | AnswerKey, value: WrittenDay | PackedBars, size: int) -> None:
        self._forget(key)
        size += self._OVERHEAD_BYTES
        if size > min(self._max_bytes, self._max_value_bytes + self._OVERHEAD_BYTES):
            return
        self._entries[key] = (self._clock.now_ms() + self._ttl_ms, value, size)
        self._bytes += size
        while self._bytes > self._max_bytes:
            self._forget(next(iter(self._entries)))

    def _forget(self, key: MinuteKey | AnswerKey) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry[2]


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items, so many at a time."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


async def with_pauses(batches: Iterator[T]) -> AsyncIterator[T]:
    """The batches; others get their turn before each."""
    for batch in batches:
        await asyncio.sleep(0)
        yield batch
