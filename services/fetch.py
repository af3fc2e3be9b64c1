"""Fetching missing ranges from a provider into the store, page by page: the same for a query and for a backfill."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from domain.bar import Bar, within
from domain.clock import Clock
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import Timeframe
from plugins.base import Page, PluginError
from services.bar_store import BarStore
from services.feed import Feed

log = logging.getLogger(__name__)

_LEFT_OUT = "the provider's answer left it out"


class ErrandLimits(NamedTuple):
    """How many calls one errand may make, and for how many seconds it may begin new ones."""

    calls: int
    seconds: float


class Keeper(Protocol):
    """Where an errand leaves what it got. Each call is all or nothing."""

    async def keep(self, bars: Sequence[Bar], covered: RangeSet, *, vouched: bool, asked_ms: int) -> None:
        """Store final bars and that the provider, asked at `asked_ms`, accounted for `covered`.

        `vouched`: its silence is proof.
        """
        ...

    async def fail(self, ranges: RangeSet, why: str) -> None:
        """Write down that these could not be had."""
        ...


class StoreKeeper:
    """Straight into the store."""

    def __init__(self, store: BarStore, series_id: int, timeframe: Timeframe) -> None:
        """Take the store, and whose bars they are."""
        self._store = store
        self._series_id = series_id
        self._timeframe = timeframe

    async def keep(self, bars: Sequence[Bar], covered: RangeSet, *, vouched: bool, asked_ms: int) -> None:
        """Record bars and coverage in one transaction."""
        await self._store.record(
            self._series_id, self._timeframe, bars=bars, answered=covered, vouched=vouched, asked_ms=asked_ms
        )

    async def fail(self, ranges: RangeSet, why: str) -> None:
        """Record the failure."""
        await self._store.record_failure(self._series_id, self._timeframe, ranges, why)


class Fetch:
    """One errand to a provider. Every page is kept, with its coverage, before the next is asked for.

    What could not be had is written down as failed, never as empty.
    """

    def __init__(
        self,
        keeper: Keeper,
        feed: Feed,
        clock: Clock,
        *,
        symbol: str,
        timeframe: Timeframe,
        limits: ErrandLimits,
        polite: bool = False,
        check: Callable[[], None] | None = None,
    ) -> None:
        """Take where to fetch from and to; what lies beyond the limits stays never fetched.

        `polite`: nobody waits for it, so callers for whom somebody does go first. `check` is called before each try of
        a call; what it raises ends the errand.
        """
        self._keeper = keeper
        self._feed = feed
        self._clock = clock
        self._symbol = symbol
        self._timeframe = timeframe
        self._polite = polite
        self._check = check
        self._calls_left = limits.calls
        self._deadline = time.monotonic() + limits.seconds
        self._done = RangeSet()
        #: Whether the provider answered at all.
        self.answered = False

    async def run(self, missing: RangeSet, *, newest_first: bool = False) -> PluginError | None:
        """Fetch the ranges; what the provider failed with, where it did.

        Oldest first they are few long windows, and the provider decides how far an answer reaches; newest first they
        are windows of one answer each.
        """
        page_ms = page_length_ms(self._feed, self._timeframe)
        windows = joined_windows(missing, page_ms)
        try:
            for window in newest_pages(windows, page_ms, self._timeframe) if newest_first else windows:
                await self._window(window)
        except PluginError as exc:
            log.warning("%s %s could not be fetched: %s", self._symbol, self._timeframe.value, exc)
            await self._fail(missing - self._done, exc.detail)
            return exc
        return None

    async def _window(self, window: TimeRange) -> None:
        """Page through a window; what the pages skipped is asked for once more, alone."""
        skipped, why = await self._pages(window, _LEFT_OUT)
        for part in skipped:
            left, why = await self._pages(part, why)
            await self._fail(left, why)

    async def _pages(self, window: TimeRange, why: str) -> tuple[RangeSet, str]:
        """Ask page after page; return what they skipped, and why."""
        start, skipped = window.start_ms, RangeSet()
        while start < window.end_ms and self._may_call():
            self._calls_left -= 1
            wanted = TimeRange(start, window.end_ms)
            # From before the call: a machine may sleep between an answer and its keeping.
            asked_ms = self._clock.now_ms()
            page = await self._feed.page(self._symbol, self._timeframe, wanted, polite=self._polite, check=self._check)
            self.answered = True
            await self._keep(page, asked_ms)
            why = page.rejected[0] if page.rejected else why
            reach = page.covered.span.end_ms if page.covered.span else start
            if reach <= start:
                return skipped | RangeSet.of(start, window.end_ms), why
            skipped |= RangeSet.of(start, reach) - page.covered
            start = reach
        return skipped, why

    def _may_call(self) -> bool:
        return self._calls_left > 0 and time.monotonic() < self._deadline

    async def _keep(self, page: Page, asked_ms: int) -> None:
        covered, bars = self._final_part(page, asked_ms)
        vouched = self._feed.capabilities.vouches_empty and page.vouched
        await self._keeper.keep(bars, covered, vouched=vouched, asked_ms=asked_ms)
        self._done |= covered

    def _final_part(self, page: Page, asked_ms: int) -> tuple[RangeSet, list[Bar]]:
        """The part of a page that cannot change any more, by the earlier of the provider's clock and ours."""
        present = asked_ms if page.venue_ms is None else min(asked_ms, page.venue_ms)
        end = self._timeframe.floor(present - self._feed.capabilities.settle_ms)
        covered = page.covered & RangeSet.of(0, end)
        return covered, within(page.bars, covered)

    async def _fail(self, ranges: RangeSet, why: str) -> None:
        if ranges:
            await self._keeper.fail(ranges, why)
            self._done |= ranges


def page_length_ms(feed: Feed, timeframe: Timeframe) -> int:
    """How long a stretch one answer of the provider can span."""
    return feed.capabilities.bars_per_call * timeframe.nominal_ms


def joined_windows(missing: RangeSet, page_ms: int) -> Sequence[TimeRange]:
    """Join missing ranges wherever one page can span them, so that scattered minutes cost few calls."""
    out: list[TimeRange] = []
    for part in missing:
        if out and part.end_ms - out[-1].start_ms <= page_ms:
            out[-1] = TimeRange(out[-1].start_ms, part.end_ms)
        else:
            out.append(part)
    return out


def newest_pages(windows: Sequence[TimeRange], page_ms: int, timeframe: Timeframe) -> Iterator[TimeRange]:
    """The windows in parts of one page each, newest first."""
    for window in reversed(windows):
        end = window.end_ms
        while end > window.start_ms:
            start = max(window.start_ms, timeframe.ceil(end - page_ms))
            yield TimeRange(start, end)
            end = start
