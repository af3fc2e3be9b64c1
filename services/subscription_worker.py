"""Follows one series for as long as this process holds its claim: from the venue's word to closed, stored minutes."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from domain.bar import Bar
from domain.clock import Clock
from domain.errors import CandleryError, DatabaseUnavailableError
from domain.packed import runs_of
from domain.series import Verdict
from domain.time_range import TimeRange
from domain.timeframe import DAY_MS, MINUTE_MS, Timeframe
from plugins.base import Capabilities, LiveBars, PluginError
from services.cache_manager import Cache
from services.database import FencedError
from services.live import FeedState, Forming, LostRange, Message, Revised, Settled, Status
from services.live_questions import Questions
from services.live_store import FeedClaim, LiveStore, Settlement
from services.market_service import MarketService
from services.minute_book import Batch, MinuteBook, Patience
from services.ohlcv import OhlcvService
from services.open_hours import OpenHours
from services.rhythm import Rhythm, learn
from services.sessions import SessionService, UnknownCalendarError
from services.upstream import Pollers, Upstream, WorkerTiming, backoff_s

log = logging.getLogger(__name__)
T = TypeVar("T")

M1 = Timeframe.M1
#: How far back a series' rhythm is looked for; a venue that closes may have been closed for days.
_RHYTHM_MS, _RHYTHM_MS_OF_SESSIONS = DAY_MS, 4 * DAY_MS
#: Opening hours are looked up so far ahead, and again when less is left.
_HOURS_AHEAD_MS, _HOURS_LEFT_MS = 10 * DAY_MS, 5 * DAY_MS


class SubscriptionWorker:
    """The follower of one series.

    Three things go on at once and meet in the book: the upstream is listened to, what only the provider's REST can
    tell is asked for, and what is closed is written and published, in this order.
    """

    def __init__(
        self,
        claim: FeedClaim,
        *,
        markets: MarketService,
        ohlcv: OhlcvService,
        store: LiveStore,
        cache: Cache,
        publish: Callable[[Message], None],
        clock: Clock,
        sessions: SessionService,
        timing: WorkerTiming = WorkerTiming(),  # noqa: B008 - immutable
        pollers: Pollers | None = None,
    ) -> None:
        """Take the claim and what it is followed with; `pollers` is shared by all workers of the process."""
        self.claim = claim
        self._markets = markets
        self._ohlcv = ohlcv
        self._store = store
        self._cache = cache
        self._publish = publish
        self._clock = clock
        self._sessions = sessions
        self._timing = timing
        self._upstream = Upstream(
            claim.series, self, markets=markets, clock=clock, timing=timing, pollers=pollers or Pollers()
        )
        self._questions = Questions(claim.series, ohlcv, clock, timing)
        self._settle_ms = Capabilities(timeframes=(), bars_per_call=1).settle_ms
        self._calendar: str | None = None
        self._book = MinuteBook(0, Rhythm(), OpenHours())
        self._to_ask = asyncio.Event()
        self._to_write = asyncio.Event()
        self._late: dict[int, Bar] = {}
        self._said: tuple[FeedState, str | None] | None = None
        self._to_say = False
        self._mute = False
        self._quiet_ms = self._quiet_until_ms = 0
        #: How the upstream fares, and why it does not where it does not.
        self.state = FeedState.RECOVERING
        self.detail: str | None = None
        #: When something was heard last, by our own clock.
        self.last_heard_ms: int | None = None
        #: How often something missed was fetched; minutes given up; corrections written.
        self.heals = self.lost = self.corrections = 0

    @property
    def settled_ms(self) -> int | None:
        """Every minute before here is closed and stored; None: it has not begun."""
        return self._book.frontier_ms or None

    @property
    def reconnects(self) -> int:
        """How often the upstream was connected again."""
        return self._upstream.reconnects

    @property
    def polling(self) -> bool:
        """Whether the series is polled now."""
        return self._upstream.polling

    async def run(self) -> None:
        """Follow until cancelled, when everything upstream is let go; returns when the claim is another's."""
        try:
            await self._insist(self._begin_or_say)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._upstream.run(), name=f"listen to {self.claim.series}")
                tasks.create_task(self._ask(), name=f"ask for {self.claim.series}")
                tasks.create_task(self._write(), name=f"write {self.claim.series}")
        except* FencedError:
            log.info("%s is followed by another process from now on", self.claim.series)

    # What the upstream tells.

    def heard(self, live: LiveBars) -> None:
        """Take what the stream said."""
        now_ms = self.last_heard_ms = self._clock.now_ms()
        refused = self._book.refused
        word = self._book.hear(live, now_ms)
        if self._book.refused > refused == 0:
            log.warning("%s: its stream tells of the future, or the clock here is slow", self.claim.series)
        self._mute, self._quiet_ms, self._quiet_until_ms = False, 0, 0
        if word.forming is not None:
            self._publish(Forming(self.claim.series_id, self.claim.fence, word.forming, live.venue_ms))
        self._late.update((bar.ts, bar) for bar in word.late)
        if word.turned or word.late:
            self._to_write.set()
            self._to_ask.set()
        self._review()

    def parted(self) -> None:
        """The connection is gone."""
        self._book.drop()
        self._to_ask.set()

    def failed(self, fault: PluginError) -> None:
        """Say that the upstream is in trouble."""
        lasting = not fault.retryable or self._upstream.failures >= self._timing.down_after
        self._say(FeedState.DOWN if lasting else FeedState.RECOVERING, fault.detail)

    async def poll(self) -> float:
        """Ask for what is closed and for what forms."""
        now_ms = self._clock.now_ms()
        opens_ms = self._book.hours.next_open(self._book.open_ms)
        is_open = opens_ms <= now_ms
        if not is_open and self._due_ms() > now_ms:
            self._review(polled=True)
            return min(self._timing.look_s, (opens_ms - now_ms) / 1000)
        try:
            await self._keep_ready()
            reply = await self._questions.put(self._book, self._settle_ms, forming=is_open)
        except DatabaseUnavailableError as exc:
            log.info("%s cannot be polled now: %s", self.claim.series, exc)
            return self._timing.database_backoff_limit_s
        self._to_write.set()
        if reply.fault is not None:
            raise reply.fault
        self.last_heard_ms = now_ms
        shown = None if reply.forming is None else self._book.show(reply.forming)
        if shown is not None:
            self._publish(Forming(self.claim.series_id, self.claim.fence, shown))
        self._review(polled=True)
        return 0.0

    # Asking.

    async def _ask(self) -> None:
        """Ask the provider whenever that is due."""
        while True:
            await self._until_due()
            await self._insist(self._look)

    async def _until_due(self) -> None:
        """Sleep until there may be something to ask, or to look at."""
        wait_s = self._timing.look_s
        if not self._upstream.polling:
            due_s = (self._due_ms() - self._clock.now_ms()) / 1000
            wait_s = min(wait_s, max(due_s, self._questions.from_s - time.monotonic(), 0.0))
        if self.state is not FeedState.UP and self._upstream.spoke_s is None:
            wait_s = min(wait_s, self._timing.presume_ms / 1000)
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._to_ask.wait()
        self._to_ask.clear()

    def _due_ms(self) -> int:
        spread_ms = self.claim.series_id * 397 % self._timing.spread_ms if self._timing.spread_ms else 0
        patience = Patience(self._settle_ms, self._timing.grace_ms + spread_ms)
        alive = self._upstream.is_up and not self._mute
        return self._book.due_ms(patience, alive=alive, quiet_until_ms=self._quiet_until_ms)

    async def _look(self) -> None:
        """Ask, if it is time to, and see how things stand."""
        await self._keep_ready()
        is_time = time.monotonic() >= self._questions.from_s and self._clock.now_ms() >= self._due_ms()
        if is_time and not self._upstream.polling:
            await self._question()
        if self._late:
            self._to_write.set()
        self._review()

    async def _question(self) -> None:
        """Ask for all that has ended, and judge the stream by the answer."""
        upstream, book, heard_ms, hole = self._upstream, self._book, self.last_heard_ms, self._has_hole()
        connection, blocked = upstream.connections, book.is_blocked()
        since_ms = self._reliable_since_ms()
        reply = await self._questions.put(book, self._settle_ms, spoke_s=upstream.spoke_s, since_ms=since_ms)
        self._to_write.set()
        if connection == upstream.connections:
            self._blame(reply.untold)
        if reply.fault is not None:
            return
        self.heals += hole and bool(reply.bars)
        if not blocked and not self._mute and self.last_heard_ms == heard_ms:
            self._quiet_ms = min(max(self._timing.quiet_ms, 2 * self._quiet_ms), self._timing.quiet_limit_ms)
            self._quiet_until_ms = self._clock.now_ms() + self._quiet_ms

    def _blame(self, untold: Sequence[Bar]) -> None:
        """The provider has bars that the stream kept to itself."""
        if untold:
            self._mute = True
            why = f"the stream told nothing of {len(untold)} minutes that have a bar"
            log.info("%s is connected again: %s", self.claim.series, why)
            self._upstream.reconnect(why)

    def _reliable_since_ms(self) -> int | None:
        """From when on the connection of now should have told of every bar."""
        since_ms = self._book.watched_from_ms
        if since_ms is None and (since_ms := self._upstream.presumed_ms) is not None:
            since_ms = M1.ceil(since_ms)
        return since_ms

    def _has_hole(self) -> bool:
        return self._book.has_hole(M1.floor(self._clock.now_ms() - self._settle_ms))

    # Writing.

    async def _write(self) -> None:
        """Write and publish whatever is closed."""
        while True:
            await self._to_write.wait()
            self._to_write.clear()
            await self._insist(self._write_status)
            while (batch := self._book.batch()) is not None:
                done = await self._insist(self._settle, batch)
                known = runs_of(done.bars, M1)
                await self._cache.store_1m_bars(self.claim.series_id, done.revision, done.bars, known)
            await self._correct_or_leave()
            self._review()

    async def _settle(self, batch: Batch) -> Settlement:
        """Store first, then tell."""
        claim, book = self.claim, self._book
        done = await self._store.settle(
            claim,
            start_ms=batch.start_ms,
            end_ms=batch.end_ms,
            bars=batch.told,
            answered=batch.answered,
            unhealed=batch.lost,
            why="missed by the stream" if self._questions.fault is None else self._questions.fault.detail,
        )
        self._late.update((bar.ts, bar) for bar in book.commit(batch, done.bars))
        lost = batch.lost - runs_of(done.bars, M1)
        self.lost += lost.length_ms // MINUTE_MS
        self._publish(
            Settled(
                claim.series_id,
                claim.fence,
                batch.start_ms,
                batch.end_ms,
                tuple(done.bars),
                tuple(LostRange(part.start_ms, part.end_ms, Verdict.FETCH_FAILED) for part in lost),
                batch.venue_ms,
            )
        )
        self._to_ask.set()
        return done

    async def _correct(self) -> None:
        """Write closed minutes that the venue changed or told of late."""
        if not self._late:
            return
        bars = [self._late[ts] for ts in sorted(self._late) if ts < self._book.frontier_ms]
        if await self._store.correct(self.claim, bars):
            self.corrections += 1
            self._publish(Revised(self.claim.series_id))
        self._book.corrected(bars)
        self._late = {ts: bar for ts, bar in self._late.items() if bar not in bars}

    async def _correct_or_leave(self) -> None:
        """What cannot be corrected now holds up no new minutes; it is tried again with the next ones, or soon."""
        try:
            await self._correct()
        except FencedError:
            raise
        except CandleryError as exc:
            log.info("%s is corrected later: %s", self.claim.series, exc)
        except Exception:
            log.exception("%s could not be corrected; it is tried again", self.claim.series)

    async def _write_status(self) -> None:
        if self._to_say:
            state, detail = self.state, self.detail
            await self._store.say(self.claim, state, detail)
            self._to_say = (state, detail) != (self.state, self.detail)

    # Status.

    def _review(self, *, polled: bool = False) -> None:
        """Say that it is up, when it is."""
        if self._said == (FeedState.UP, None):
            return
        listening = self._upstream.is_up and not self._mute
        if (listening or polled) and not self._has_hole():
            self._say(FeedState.UP, None)

    def _say(self, state: FeedState, detail: str | None) -> None:
        if self._said != (state, detail):
            self._said = self.state, self.detail = state, detail
            self._to_say = True
            self._to_write.set()
            self._publish(Status(self.claim.series_id, self.claim.fence, state, detail))

    # Beginning, and keeping ready.

    async def _begin_or_say(self) -> None:
        try:
            await self._begin()
        except (DatabaseUnavailableError, FencedError):
            raise
        except CandleryError as exc:
            self._say(FeedState.DOWN, exc.detail)
            await self._write_status()
            raise

    async def _begin(self) -> None:
        """Find where to go on, or begin afresh, and learn the series' rhythm."""
        claim, now_ms = self.claim, self._clock.now_ms()
        listing = await self._markets.find(claim.series)
        self._calendar = listing.stored.calendar
        if listing.feed is not None:
            self._settle_ms = listing.feed.capabilities.settle_ms
        frontier_ms = claim.settled_ms
        if frontier_ms is None or frontier_ms < now_ms - self._timing.resume_ms:
            frontier_ms = M1.floor(now_ms - self._settle_ms)
            await self._store.begin(claim, frontier_ms)
        hours = await self._hours(frontier_ms)
        length_ms = _RHYTHM_MS if self._calendar is None else _RHYTHM_MS_OF_SESSIONS
        past = TimeRange(frontier_ms - length_ms, frontier_ms)
        rhythm, last_bar_ms = learn(await self._ohlcv.coverage(claim.series, M1, past))
        self._book = MinuteBook(frontier_ms, rhythm, hours, last_bar_ms=last_bar_ms)

    async def _keep_ready(self) -> None:
        """Keep the provider open, and the opening hours known."""
        series = self.claim.series
        try:
            feed = await self._markets.feed(series.market, series.provider)
        except PluginError as exc:
            log.debug("%s: the provider is not open: %s", series, exc)
        else:
            self._settle_ms = feed.capabilities.settle_ms
        known = self._book.hours.known
        if known is not None and known.end_ms - self._clock.now_ms() < _HOURS_LEFT_MS:
            self._book.hours = await self._hours(self._book.frontier_ms)

    async def _hours(self, from_ms: int) -> OpenHours:
        if self._calendar is None:
            return OpenHours()
        wanted = TimeRange(from_ms - DAY_MS, max(from_ms, self._clock.now_ms()) + _HOURS_AHEAD_MS)
        try:
            return OpenHours(wanted, await self._sessions.open_ranges(self._calendar, M1, wanted))
        except UnknownCalendarError as exc:
            log.warning("%s counts as open at all hours: %s", self.claim.series, exc)
            return OpenHours()

    async def _insist(self, do: Callable[..., Awaitable[T]], *args: object) -> T:
        """Do it until it is done; only losing the claim ends that."""
        tries = 0
        while True:
            try:
                return await do(*args)
            except FencedError:
                raise
            except DatabaseUnavailableError as exc:
                log.info("%s waits for the database: %s", self.claim.series, exc)
            except CandleryError as exc:
                log.warning("%s: %s", self.claim.series, exc)
            except Exception:
                log.exception("following %s failed; it is tried again", self.claim.series)
            tries += 1
            first_s, limit_s = self._timing.database_backoff_s, self._timing.database_backoff_limit_s
            await asyncio.sleep(backoff_s(tries, first_s, limit_s))
