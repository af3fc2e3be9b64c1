"""What only the provider's REST can tell about the newest minutes of a series, and patience where it does not."""

import logging
import time
from typing import NamedTuple

from domain.bar import Bar
from domain.clock import Clock
from domain.errors import CandleryError, DatabaseUnavailableError
from domain.series import Series, Verdict
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import Timeframe
from plugins.base import PluginError, RateLimitPluginError
from services.bar_walk import OhlcvAnswer, OhlcvQuery
from services.minute_book import MinuteBook
from services.ohlcv import OhlcvService
from services.upstream import WorkerTiming, backoff_s

log = logging.getLogger(__name__)

M1 = Timeframe.M1
#: Minutes asked for at once.
_MOST_BARS = 10_000
_UNKNOWN = frozenset({Verdict.FETCH_FAILED, Verdict.NEVER_FETCHED})


class Reply(NamedTuple):
    """What came of a question.

    Attributes:
        bars: of the minutes that have ended; they are in the store.
        forming: the newest bar that is not final, where it was asked for.
        untold: bars that the stream should have told of.
        fault: why not everything could be had.
    """

    bars: list[Bar]
    forming: Bar | None
    untold: list[Bar]
    fault: PluginError | None


class Questions:
    """Asks for the minutes of one series."""

    def __init__(self, series: Series, ohlcv: OhlcvService, clock: Clock, timing: WorkerTiming) -> None:
        """Take whose minutes they are, and who is asked."""
        self._series = series
        self._ohlcv = ohlcv
        self._clock = clock
        self._timing = timing
        self._refusals = 0
        #: Since when the provider fails to account for minutes, and since when it does so for later ones.
        self._failing_s: float | None = None
        self._torn_s: float | None = None
        #: By the monotonic clock, when it may be asked next.
        self.from_s = 0.0
        #: Why it last did not tell everything.
        self.fault: PluginError | None = None

    async def put(
        self,
        book: MinuteBook,
        settle_ms: int,
        *,
        spoke_s: float | None = None,
        since_ms: int | None = None,
        forming: bool = False,
    ) -> Reply:
        """Ask for the minutes that have ended and are not closed; what is answered goes into the book.

        Args:
            book: with the minutes.
            settle_ms: how long after its end a minute is final.
            spoke_s: since when the stream speaks, where it does.
            since_ms: what began since then the stream should have told of.
            forming: ask for the minute of the present, too.

        Raises:
            DatabaseUnavailableError: the answer cannot be kept, or found.
        """
        now_ms, start_ms = self._clock.now_ms(), book.sure_ms
        end_ms = max(start_ms, M1.floor(now_ms - settle_ms))
        question = book.question()
        answer, fault = await self._ask(start_ms, None if forming else end_ms, forming=forming)
        wanted = RangeSet.of(start_ms, end_ms if answer.next_ms is None else min(end_ms, answer.next_ms))
        covered = wanted - RangeSet(gap.range for gap in answer.gaps if gap.verdict in _UNKNOWN)
        bars = [bar for bar in answer.bars if bar.ts < end_ms]
        untold = [] if since_ms is None else book.untold(bars, since_ms, now_ms - self._timing.mute_ms)
        book.answer(covered, bars, question=question)
        if fault is None and not covered.covers(wanted):
            # What failed is left alone for a while: then the last failure stands.
            fault = self.fault or PluginError("the provider does not account for all minutes that have ended")
        self.fault = fault
        self._note()
        since_s = self._in_vain_since_s(book, spoke_s)
        if since_s is not None and await self._was_tried(TimeRange(start_ms, end_ms), now_ms, since_s):
            log.warning("%s: minutes before %d are lost for now: %s", self._series, end_ms, fault)
            book.give_up(end_ms)
            self._failing_s = self._torn_s = None
        newest = answer.bars[-1] if answer.forming and answer.bars[-1].ts == answer.forming[-1] else None
        return Reply(bars, newest, untold, fault)

    async def _ask(self, start_ms: int, end_ms: int | None, *, forming: bool) -> tuple[OhlcvAnswer, PluginError | None]:
        query = OhlcvQuery(
            series=self._series,
            timeframe=M1,
            start_ms=start_ms,
            end_ms=end_ms,
            limit=_MOST_BARS,
            include_forming=forming,
        )
        try:
            answer = await self._ohlcv.bars(query)
        except DatabaseUnavailableError:
            raise
        except PluginError as exc:
            return OhlcvAnswer(next_ms=start_ms), exc
        except CandleryError as exc:
            return OhlcvAnswer(next_ms=start_ms), PluginError(exc.detail)
        return answer, answer.error

    def _note(self) -> None:
        """Wait longer and longer for a provider that fails."""
        fault, now_s, timing = self.fault, time.monotonic(), self._timing
        if fault is None:
            self._refusals, self._failing_s, self._torn_s, self.from_s = 0, None, None, 0.0
            return
        self._refusals += 1
        self._failing_s = now_s if self._failing_s is None else self._failing_s
        pause_s = backoff_s(self._refusals, timing.ask_backoff_s, timing.ask_backoff_limit_s)
        self.from_s = now_s + max(pause_s, fault.retry_after_s or 0.0)

    def _in_vain_since_s(self, book: MinuteBook, spoke_s: float | None) -> float | None:
        """Since when it was waited for minutes that others have passed, when patience has run out; else None."""
        if self._failing_s is None:
            return None
        crowded = isinstance(self.fault, RateLimitPluginError)
        patience_s = self._timing.crowded_patience_s if crowded else self._timing.heal_patience_s
        now_s = time.monotonic()
        passed_s = self._passed_over_since_s(book, now_s, spoke_s)
        since_s = None if passed_s is None else max(passed_s, self._failing_s)
        return since_s if since_s is not None and now_s - since_s >= patience_s else None

    async def _was_tried(self, missing: TimeRange, now_ms: int, since_s: float) -> bool:
        """Whether the provider was really asked since then: what failed often is left alone for up to a minute."""
        since_ms = now_ms - int((time.monotonic() - since_s) * 1000)
        tiles = await self._ohlcv.coverage(self._series, M1, missing)
        tried = (tile.checked_ms or 0 for tile in tiles if tile.verdict is Verdict.FETCH_FAILED)
        return all(checked_ms >= since_ms for checked_ms in tried)

    def _passed_over_since_s(self, book: MinuteBook, now_s: float, spoke_s: float | None) -> float | None:
        """Since when there is more to come after the minutes that are missing; None: all is down, or waits."""
        if not book.is_torn():
            self._torn_s = None
        elif self._torn_s is None:
            self._torn_s = now_s
        return spoke_s if spoke_s is not None and book.is_blocked() else self._torn_s
