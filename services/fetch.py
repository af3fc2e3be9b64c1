"""Fetching missing ranges from a provider into the store, page by page: the same for a query and for a backfill."""

import logging
from collections.abc import Sequence

from domain.bar import Bar, within
from domain.clock import Clock
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import Timeframe
from plugins.base import Page, PluginError
from services.bar_store import BarStore
from services.feed import Feed

log = logging.getLogger(__name__)

_LEFT_OUT = "the provider's answer left it out"


class Fetch:
    """One errand to a provider. Every page is stored, with its coverage, before the next is asked for.

    What could not be had is written down as failed, never as empty.
    """

    def __init__(
        self,
        store: BarStore,
        feed: Feed,
        clock: Clock,
        *,
        series_id: int,
        symbol: str,
        timeframe: Timeframe,
        max_calls: int,
    ) -> None:
        """Take where to fetch from and to; what lies beyond `max_calls` calls stays never fetched."""
        self._store = store
        self._feed = feed
        self._clock = clock
        self._series_id = series_id
        self._symbol = symbol
        self._timeframe = timeframe
        self._calls_left = max_calls
        self._done = RangeSet()
        #: Whether the provider answered at all.
        self.answered = False

    async def run(self, missing: RangeSet) -> PluginError | None:
        """Fetch the ranges, oldest first; what the provider failed with, where it did."""
        windows = _windows(missing, self._feed.capabilities.bars_per_call * self._timeframe.nominal_ms)
        try:
            for window in windows:
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
        while start < window.end_ms and self._calls_left > 0:
            self._calls_left -= 1
            page = await self._feed.page(self._symbol, self._timeframe, TimeRange(start, window.end_ms))
            self.answered = True
            await self._keep(page)
            why = page.rejected[0] if page.rejected else why
            reach = page.covered.span.end_ms if page.covered.span else start
            if reach <= start:
                return skipped | RangeSet.of(start, window.end_ms), why
            skipped |= RangeSet.of(start, reach) - page.covered
            start = reach
        return skipped, why

    async def _keep(self, page: Page) -> None:
        covered, bars = self._final_part(page)
        vouched = self._feed.capabilities.vouches_empty
        await self._store.record(self._series_id, self._timeframe, bars=bars, answered=covered, vouched=vouched)
        self._done |= covered

    def _final_part(self, page: Page) -> tuple[RangeSet, list[Bar]]:
        """The part of a page that cannot change any more, by the earlier of the provider's clock and ours."""
        now_ms = self._clock.now_ms()
        present = now_ms if page.venue_ms is None else min(now_ms, page.venue_ms)
        end = self._timeframe.floor(present - self._feed.capabilities.settle_ms)
        covered = page.covered & RangeSet.of(0, end)
        return covered, within(page.bars, covered)

    async def _fail(self, ranges: RangeSet, why: str) -> None:
        if ranges:
            await self._store.record_failure(self._series_id, self._timeframe, ranges, why)
            self._done |= ranges


def _windows(missing: RangeSet, page_ms: int) -> Sequence[TimeRange]:
    """Join missing ranges wherever one page can span them, so that scattered minutes cost few calls."""
    out: list[TimeRange] = []
    for part in missing:
        if out and part.end_ms - out[-1].start_ms <= page_ms:
            out[-1] = TimeRange(out[-1].start_ms, part.end_ms)
        else:
            out.append(part)
    return out
