"""Second looks at emptiness: an empty answer counts as "no trades" once it was given again an hour later.

A chore in the background. It asks for nothing but the buckets that are still empty, politely and within a budget, and
what it learns goes through the ledger like any other answer: late bars are stored, the rest is confirmed. It also
asks for what the search for a symbol's first bar has left to ask.
"""

import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import uuid4

from domain.clock import Clock
from domain.errors import CandleryError, DatabaseUnavailableError
from domain.series import Series
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, MINUTE_MS, Timeframe
from plugins.base import PluginError
from services.bar_store import BarStore, StoredSeries
from services.feed import Feed
from services.fetch import ErrandLimits, Fetch, joined_windows, page_length_ms
from services.listing_search import CountingKeeper, ListingSearch, beyond_memory, search_timeframe
from services.market_service import Listing, MarketService
from services.sql import load_queries
from services.turns import Turns

log = logging.getLogger(__name__)

#: A look reads so many buckets at most: a month of minutes.
WINDOW_BUCKETS = 31 * 1440
#: One run looks at so many windows at most, calls or not, to leave the database to others.
WINDOWS_PER_RUN = 200
#: In a fleet one process takes second looks; when it is not heard of for so long, another does.
LEASE_S = 120.0
#: One look may begin new calls for so long, well within the lease.
LOOK_S = 30.0
#: A provider that could not be opened is left alone so long, by this process.
CLOSED_REST_MS = 10 * MINUTE_MS
#: So many failed looks in a row, of different series, and a provider is left alone for the rest of the run.
_FAULTS_IN_A_ROW = 3
_NOT_CLOSED = "the provider has not closed these minutes yet"


class Due(NamedTuple):
    """A stretch whose second look is due."""

    series: Series
    series_id: int
    timeframe: Timeframe
    range: TimeRange


class _Todo(NamedTuple):
    """What is due in a window, and what of it has neither a bar nor a final verdict."""

    due: RangeSet
    empty: RangeSet


@dataclass
class _Run:
    """What one run has used, and whom it leaves alone from now on."""

    calls_left: int
    bad_series: set[int] = field(default_factory=set)
    bad_providers: set[tuple[str, str]] = field(default_factory=set)
    faults: Counter[tuple[str, str]] = field(default_factory=Counter)
    seen: set[Due] = field(default_factory=set)

    def failed(self, due: Due) -> None:
        """Leave the series alone, and its provider where it fails for one series after the other."""
        self.bad_series.add(due.series_id)
        provider = due.series[:2]
        self.faults[provider] += 1
        if self.faults[provider] >= _FAULTS_IN_A_ROW:
            self.bad_providers.add(provider)


class Rechecker:
    """Takes second looks, the longest due first. A crash in between loses nothing: what is due stays due."""

    def __init__(
        self,
        store: BarStore,
        markets: MarketService,
        listings: ListingSearch,
        clock: Clock,
        *,
        turns: Turns,
        calls_per_run: int = 60,
    ) -> None:
        """Take the parts and how many calls one run may make; 0 turns it off.

        `turns` are those of the queries: a query and a second look never ask for the same at once.
        """
        self._store = store
        self._markets = markets
        self._listings = listings
        self._clock = clock
        self._turns = turns
        self._calls_per_run = calls_per_run
        self._holder = f"rechecker-{uuid4()}"
        self._held_until = 0.0
        self._closed_until_ms: dict[tuple[str, str], int] = {}
        self._sql = load_queries("rechecks")

    async def run(self) -> int:
        """Look at what is due, as far as the budget goes; the calls made.

        Raises:
            DatabaseUnavailableError: nothing can be done now.
        """
        if self._calls_per_run == 0 or not await self._hold():
            return 0
        run = _Run(self._calls_per_run)
        try:
            for _ in range(WINDOWS_PER_RUN):
                due = await self._next(run) if run.calls_left > 0 and await self._hold() else None
                if due is None:
                    break
                await self._look(run, due)
        finally:
            await self._release()
        return self._calls_per_run - run.calls_left

    async def _hold(self) -> bool:
        """Take the lease, or keep it; a row and not a session's lock, so that no connection is held between looks."""
        now_s = time.monotonic()
        if now_s < self._held_until - LEASE_S / 2:
            return True
        async with self._store.database.connection() as db:
            held = bool(await db.fetchval(self._sql["hold"], self._holder, LEASE_S))
        self._held_until = now_s + LEASE_S if held else 0.0
        return held

    async def _release(self) -> None:
        self._held_until = 0.0
        try:
            async with self._store.database.connection() as db:
                await db.execute(self._sql["release"], self._holder)
        except DatabaseUnavailableError as exc:
            log.warning("the lease of second looks was not given back, and ends by itself: %s", exc)

    async def _next(self, run: _Run) -> Due | None:
        """What is due the longest, of those that are not left alone."""
        now_ms = self._clock.now_ms()
        shut = run.bad_providers | {key for key, until_ms in self._closed_until_ms.items() if until_ms > now_ms}
        markets, providers = [key[0] for key in shut], [key[1] for key in shut]
        while True:
            async with self._store.database.connection() as db:
                row = await db.fetchrow(self._sql["due"], now_ms, list(run.bad_series), markets, providers)
            if row is None:
                return None
            series = Series(row["market"], row["provider"], row["symbol"])
            part = TimeRange(row["starts"], row["ends"])
            due = Due(series, row["series_id"], Timeframe(row["timeframe"]), part)
            if due not in run.seen:
                run.seen.add(due)
                return due
            # A look that changed nothing would not the second time either.
            run.bad_series.add(due.series_id)

    async def _look(self, run: _Run, due: Due) -> None:
        """Look at a window of the stretch. What goes wrong with one series does not stop the others."""
        try:
            listing = await self._listing(due)
            if listing is None or listing.feed is None:
                self._closed_until_ms[due.series[:2]] = self._clock.now_ms() + CLOSED_REST_MS
                return
            async with self._turns.of((due.series, due.timeframe)):
                error = await self._second_look(run, due, listing.feed, listing.stored)
        except DatabaseUnavailableError:
            raise
        except CandleryError as exc:
            log.warning("no second look at %s %s: %s", due.series, due.timeframe.value, exc)
            run.failed(due)
        except Exception:
            log.exception("no second look at %s %s", due.series, due.timeframe.value)
            run.failed(due)
        else:
            if error is None:
                run.faults[due.series[:2]] = 0
            else:
                run.failed(due)

    async def _listing(self, due: Due) -> Listing | None:
        """The series and its provider; None where there is no such provider (any more)."""
        try:
            return await self._markets.find(due.series)
        except DatabaseUnavailableError:
            raise
        except CandleryError as exc:
            log.info("no second look at %s: %s", due.series, exc)
            return None

    async def _second_look(self, run: _Run, due: Due, feed: Feed, stored: StoredSeries) -> PluginError | None:
        """Ask for what of a window is still empty; what the provider failed with, where it did."""
        now_ms = self._clock.now_ms()
        timeframe = due.timeframe
        window = _window(due, now_ms)
        if timeframe not in feed.capabilities.timeframes:
            await self._put_off(due, RangeSet((window,)), now_ms, recheck_ms=now_ms + DAY_MS)
            return None
        todo = await self._todo(due, feed, stored, window, now_ms)
        page_ms = page_length_ms(feed, timeframe)
        error: PluginError | None = None
        left = RangeSet()
        if todo.empty:
            # Whole windows, so that the ledger is not cut into single minutes.
            asked = RangeSet(joined_windows(todo.empty, page_ms)) & todo.due
            error, in_time = await self._ask(run, due, feed, asked)
            todo_after = await self._todo(due, feed, stored, window, now_ms)
            left = RangeSet(joined_windows(todo_after.empty, page_ms)) & todo_after.due
            if left and in_time and error is None:
                await self._store.record_failure(due.series_id, timeframe, left, _NOT_CLOSED)
        await self._put_off(due, todo.due - left, now_ms, recheck_ms=None)
        if timeframe is search_timeframe(feed.capabilities):
            await self._listings.infer(stored, feed.capabilities)
        return error

    async def _ask(self, run: _Run, due: Due, feed: Feed, asked: RangeSet) -> tuple[PluginError | None, bool]:
        """Fetch into the store; what failed, and whether there was leave for all the calls it took."""
        keeper = CountingKeeper(self._store, due.series_id, due.timeframe)
        errand = Fetch(
            keeper,
            feed,
            self._clock,
            symbol=due.series.symbol,
            timeframe=due.timeframe,
            limits=ErrandLimits(run.calls_left, LOOK_S),
            polite=True,
        )
        begun_s = time.monotonic()
        error = None
        try:
            error = await errand.run(asked)
        finally:
            run.calls_left -= keeper.answers + (error is not None)
        return error, run.calls_left > 0 and time.monotonic() - begun_s < LOOK_S

    async def _todo(self, due: Due, feed: Feed, stored: StoredSeries, window: TimeRange, now_ms: int) -> _Todo:
        """What is due in the window by `now_ms`. What the provider has forgotten can never be confirmed."""
        store, timeframe = self._store, due.timeframe
        knowledge = await store.knowledge(stored.id, timeframe, window)
        ripe = (check.range for check in knowledge.checks if (check.recheck_ms or now_ms + 1) <= now_ms)
        wanted = RangeSet(ripe) & RangeSet((window,))
        data = await store.runs(stored.id, timeframe, window, folded=False)
        closed = await self._listings.closed(stored, timeframe, window)
        final = data | closed | knowledge.confirmed | knowledge.not_listed
        return _Todo(wanted, wanted - final - beyond_memory(feed.capabilities, timeframe, now_ms))

    async def _put_off(self, due: Due, ranges: RangeSet, now_ms: int, *, recheck_ms: int | None) -> None:
        async with self._store.database.transaction() as db:
            await db.fetchval(self._sql["lock_series"], due.series_id)
            await self._store.ledger.put_off(
                db, due.series_id, due.timeframe, ranges, due_by_ms=now_ms, recheck_ms=recheck_ms
            )


def _window(due: Due, now_ms: int) -> TimeRange:
    """From the start of the stretch on, so much as one look may read."""
    start_ms, timeframe = due.range.start_ms, due.timeframe
    end_ms = timeframe.ceil(min(start_ms + WINDOW_BUCKETS * timeframe.nominal_ms, now_ms))
    return TimeRange(start_ms, max(end_ms, timeframe.next(start_ms)))
