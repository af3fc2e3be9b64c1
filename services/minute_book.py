"""What was heard and asked about the newest minutes of one series, and which of them are closed by that. Pure.

A minute is closed by evidence, never by the clock alone: the venue called its bar final; or a later minute was heard
on a connection that had been up since before the minute began; or the provider was asked for it after its end. A
silent minute between heard ones is closed and empty unless the silence is out of the series' rhythm.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from domain.bar import Bar, within
from domain.packed import runs_of
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from plugins.base import LiveBars
from services.open_hours import OpenHours
from services.rhythm import MEMORY, Rhythm

M1 = Timeframe.M1
#: Most minutes that are closed in one go.
MOST_AT_ONCE = 2_000
#: Most minutes that wait to be written; beyond, they are given up, and asked for when they can be written again.
MOST_HEARD = 3 * DAY_MS // MINUTE_MS
#: What was closed is remembered for so long, to tell a correction from a repetition.
MEMORY_MS = 2 * HOUR_MS
#: A minute that begins later than so long from now is nonsense.
FUTURE_MS = 2 * MINUTE_MS
#: A bar of such a bucket is waited for, so its end is a reason to ask in a silence.
BUCKETS = (Timeframe.M5, Timeframe.M15, Timeframe.M30, Timeframe.H1, Timeframe.H4, Timeframe.D1)


class Heard(NamedTuple):
    """The last word of the stream about a minute; `closed` and `venue_ms` as in `LiveBars`."""

    bar: Bar
    closed: bool | None
    venue_ms: int | None


class Word(NamedTuple):
    """What a message of the stream amounts to.

    Attributes:
        forming: the newest minute, where it is not closed and has changed.
        late: bars of minutes closed before, that were closed differently.
        turned: something may be closed now, or due at another time.
    """

    forming: Bar | None = None
    late: Sequence[Bar] = ()
    turned: bool = False


class Batch(NamedTuple):
    """Minutes `[start_ms, end_ms)` that are closed now.

    Attributes:
        told: bars that only the stream has given, ascending.
        answered: their minutes, and those that the stream passed over in silence.
        lost: minutes that could not be had.
        venue_ms: the venue's clock when it told of the last of `told`.
    """

    start_ms: int
    end_ms: int
    told: list[Bar]
    answered: RangeSet
    lost: RangeSet
    venue_ms: int | None


class Patience(NamedTuple):
    """How long after the end of a minute the provider is asked for it: when its bar is final, and the word's delay."""

    settle_ms: int
    grace_ms: int


class MinuteBook:
    """The minutes of one series from its frontier on."""

    def __init__(self, frontier_ms: int, rhythm: Rhythm, hours: OpenHours, *, last_bar_ms: int | None = None) -> None:
        """Begin at a frontier. `last_bar_ms`: the newest bar before it, where that is known."""
        self.frontier_ms = frontier_ms
        self.rhythm = rhythm
        self.hours = hours
        #: From here on the connection of now hears every minute in full; None: it has not spoken.
        self.watched_from_ms: int | None = None
        #: The newest minute heard at all.
        self.newest_ms = frontier_ms - MINUTE_MS
        self._connection_newest_ms = 0
        self._watched = RangeSet()
        self._heard: dict[int, Heard] = {}
        #: What the provider accounted for when it was asked, and which of these minutes have a bar.
        self._asked = RangeSet()
        self._asked_bars: set[int] = set()
        #: Words that call a minute final are counted, and of which one a minute was called so.
        self._calls = 0
        self._called: dict[int, int] = {}
        self._lost = RangeSet()
        self._last_bar_ms = last_bar_ms
        self._recent: dict[int, Bar] = {}
        self._recent_from_ms = frontier_ms
        self._flying_to_ms = 0
        self._changed: dict[int, Bar] = {}
        self._formed: Bar | None = None
        self._sure_ms: int | None = None
        #: Minutes that were thrown away because they lay in the future.
        self.refused = 0

    # What happens.

    def hear(self, live: LiveBars, now_ms: int) -> Word:
        """Take what the stream said; `now_ms` by our own clock."""
        present_ms = now_ms if live.venue_ms is None else max(now_ms, live.venue_ms)
        bars = [bar for bar in live.bars if bar.ts <= present_ms + FUTURE_MS]
        self.refused += len(live.bars) - len(bars)
        if not bars:
            return Word()
        turned = self._note_connection(bars[-1].ts, present_ms)
        late: list[Bar] = []
        for bar in bars:
            # It is the last one of which the venue says that it still forms.
            closed = None if live.closed is False and bar is not bars[-1] else live.closed
            if bar.ts < self.frontier_ms:
                late += [bar] if self._is_late(bar, closed) else []
            elif self._enter(Heard(bar, closed, live.venue_ms)):
                turned = True
        if len(self._heard) > MOST_HEARD:
            self._forget()
        if turned:
            self._sure_ms = None
        return Word(self._forming(bars[-1], live.closed), late, turned)

    def drop(self) -> None:
        """The connection is gone: what it was in the middle of it has not heard in full."""
        self._watched = self.watched
        self.watched_from_ms, self._connection_newest_ms = None, 0
        self._sure_ms = None

    def question(self) -> int:
        """The provider is being asked now; goes with the answer."""
        return self._calls

    def answer(self, covered: RangeSet, bars: Iterable[Bar], *, question: int | None = None) -> None:
        """The provider, asked after their end, accounted for these minutes, and this is in the store by now.

        What the stream called final since `question` is newer.
        """
        newer = [] if question is None else [ts for ts, call in self._called.items() if call > question]
        covered -= RangeSet((ts, ts + MINUTE_MS) for ts in newer)
        ahead = covered & RangeSet.of(self.frontier_ms, 1 << 62)
        self._asked |= ahead
        self._asked_bars |= {bar.ts for bar in within(bars, ahead)}
        self._sure_ms = None

    def give_up(self, end_ms: int) -> None:
        """Call lost what is not closed before `end_ms`, and before the newest minute that is known of."""
        asked = self._asked.span
        newest_ms = self.newest_ms if asked is None else max(self.newest_ms, asked.end_ms)
        self._lost |= RangeSet.of(self.frontier_ms, min(end_ms, newest_ms)) - self._closed()
        self._sure_ms = None

    def show(self, bar: Bar) -> Bar | None:
        """Take the bar of a minute that forms, as it was asked for; None where it is no news."""
        if bar.ts < max(self.sure_ms, self.newest_ms) or bar == self._formed:
            return None
        if self._formed is not None and bar.ts < self._formed.ts:
            return None
        self._formed = bar
        return bar

    def batch(self) -> Batch | None:
        """The minutes that are closed now; None: no more than before. Until `commit` it stays under way."""
        end_ms = min(self.sure_ms, self.frontier_ms + MOST_AT_ONCE * MINUTE_MS)
        if end_ms <= self.frontier_ms:
            return None
        self._flying_to_ms, self._changed = end_ms, {}
        span = RangeSet.of(self.frontier_ms, end_ms)
        told = self._told(span)
        minutes = runs_of(told, M1)
        silent = span - self._asked - self._lost - self.hours.shut(*TimeRange(self.frontier_ms, end_ms))
        return Batch(
            self.frontier_ms,
            end_ms,
            told,
            minutes | silent,
            (self._lost & span) - minutes,
            self._heard[told[-1].ts].venue_ms if told else None,
        )

    def commit(self, batch: Batch, stands: Sequence[Bar]) -> list[Bar]:
        """The batch is in the store, with these bars; returns what the venue has changed meanwhile."""
        by_ts = {bar.ts: bar for bar in stands}
        late = [bar for ts, bar in sorted(self._changed.items()) if by_ts.get(ts) != bar]
        self._note_rhythm(batch, by_ts)
        self._flying_to_ms, self._changed = 0, {}
        self.frontier_ms = end_ms = batch.end_ms
        ahead = RangeSet.of(end_ms, 1 << 62)
        self._watched, self._asked, self._lost = self._watched & ahead, self._asked & ahead, self._lost & ahead
        self._heard = {ts: heard for ts, heard in self._heard.items() if ts >= end_ms}
        self._asked_bars = {ts for ts in self._asked_bars if ts >= end_ms}
        self._called = {ts: call for ts, call in self._called.items() if ts >= end_ms}
        self._last_bar_ms = stands[-1].ts if stands else self._last_bar_ms
        self._remember(stands, end_ms)
        self.newest_ms = max(self.newest_ms, end_ms - MINUTE_MS)
        self._sure_ms = None
        return late

    def corrected(self, bars: Iterable[Bar]) -> None:
        """These closed minutes were altered in the store."""
        self._recent.update((bar.ts, bar) for bar in bars if bar.ts >= self._recent_from_ms)

    # What follows from it.

    @property
    def watched(self) -> RangeSet:
        """The minutes that passed while a connection heard everything."""
        if self.watched_from_ms is None:
            return self._watched
        start_ms = max(self.watched_from_ms, self.frontier_ms)
        return self._watched | RangeSet.of(start_ms, self._connection_newest_ms)

    @property
    def sure_ms(self) -> int:
        """Every minute before here is closed, written or not."""
        if self._sure_ms is None:
            first = next(iter(self._closed()), None)
            begins = first is not None and first.start_ms == self.frontier_ms
            self._sure_ms = first.end_ms if first is not None and begins else self.frontier_ms
        return self._sure_ms

    @property
    def open_ms(self) -> int:
        """The first minute that is not closed and may have a bar."""
        sure_ms = self.sure_ms
        return sure_ms if sure_ms in self._heard else self.hours.next_open(sure_ms)

    def is_blocked(self) -> bool:
        """Whether a later minute was heard, and one before it is not closed."""
        return self.newest_ms > self.open_ms

    def is_torn(self) -> bool:
        """Whether the provider accounted for a later minute, but not for one before it."""
        asked = self._asked.span
        return asked is not None and asked.end_ms > self.open_ms

    def has_hole(self, end_ms: int) -> bool:
        """Whether minutes that ended before `end_ms`, and that no connection heard in full, are not closed."""
        at_ms, watched_from_ms = self.open_ms, self.watched_from_ms
        limit_ms = end_ms if watched_from_ms is None else min(end_ms, watched_from_ms)
        return at_ms < limit_ms and not (self.watched & RangeSet.of(at_ms, at_ms + MINUTE_MS))

    def due_ms(self, patience: Patience, *, alive: bool, quiet_until_ms: int = 0) -> int:
        """When the provider is to be asked next, unless more is heard.

        Args:
            patience: with the minutes that are asked for.
            alive: the stream is taken to be in order; if not, each minute is asked for.
            quiet_until_ms: a silence is normal until then.
        """
        at_ms, late_ms = self.open_ms, sum(patience)
        heard = self._heard.get(at_ms)
        end_ms = at_ms + MINUTE_MS
        if self.newest_ms > at_ms:
            awaited = heard is not None and heard.closed is False and self._was_watched(at_ms)
            return end_ms + (late_ms if awaited else patience.settle_ms)
        if heard is None and alive:
            end_ms = max(self.hours.after(at_ms, self.rhythm.patience), quiet_until_ms - late_ms)
        return min(end_ms, self._bucket_end_ms()) + late_ms

    def untold(self, bars: Iterable[Bar], since_ms: int, until_ms: int) -> list[Bar]:
        """Those of the provider's bars that a stream should have told of, of minutes between two instants.

        A bar without volume is no sign: some venues fill their answers with them.
        """
        first_ms = max(since_ms, self.sure_ms)
        return [
            bar
            for bar in bars
            if first_ms <= bar.ts <= until_ms - MINUTE_MS and bar.ts not in self._heard and bar.volume > 0
        ]

    # Inside.

    def _note_connection(self, newest_ms: int, present_ms: int) -> bool:
        """Whether a connection or a minute is new."""
        turned = newest_ms > self._connection_newest_ms
        if self.watched_from_ms is None:
            # Of what it says first it may not have heard the beginning.
            self.watched_from_ms = max(M1.next(newest_ms), M1.ceil(present_ms))
        self._connection_newest_ms = max(self._connection_newest_ms, newest_ms)
        self.newest_ms = max(self.newest_ms, newest_ms)
        return turned

    def _enter(self, heard: Heard) -> bool:
        """Take the word about a minute that is not closed; whether it may close it."""
        ts = heard.bar.ts
        before = self._heard.get(ts)
        final = before is not None and before.closed is True
        if final and (heard.closed is not True or before == heard):
            return False
        changes = before is None or before.bar != heard.bar
        if ts < self._flying_to_ms and heard.closed is not False and changes:
            self._changed[ts] = heard.bar
        self._heard[ts] = heard
        if heard.closed is True:
            # It is newer than what the provider gave when it was asked, and better than nothing.
            minute = RangeSet.of(ts, ts + MINUTE_MS)
            self._lost -= minute
            if changes or not final:
                self._calls += 1
                self._called[ts] = self._calls
                self._asked -= minute
                self._asked_bars.discard(ts)
        return heard.closed is True or before is None

    def _is_late(self, bar: Bar, closed: bool | None) -> bool:  # noqa: FBT001 - as in LiveBars
        if closed is False or (closed is None and bar.ts < self._recent_from_ms):
            return False
        return self._recent.get(bar.ts) != bar

    def _forming(self, bar: Bar, closed: bool | None) -> Bar | None:  # noqa: FBT001
        return None if closed is True else self.show(bar)

    def _forget(self) -> None:
        """Nothing can be written for days: begin anew, and have the rest asked for."""
        self._heard, self._called, self._watched = {}, {}, RangeSet()
        if self.watched_from_ms is not None:
            self.watched_from_ms = M1.next(self.newest_ms)

    def _told(self, span: RangeSet) -> list[Bar]:
        """The bars of a closed span that the stream alone has given."""
        bars = within((self._heard[ts].bar for ts in sorted(self._heard)), self._final() & span)
        asked = {bar.ts for bar in within(bars, self._asked)} & self._asked_bars
        return [bar for bar in bars if bar.ts not in asked]

    def _final(self) -> RangeSet:
        """Minutes whose bars the stream has told in full."""
        called = RangeSet((ts, ts + MINUTE_MS) for ts, heard in self._heard.items() if heard.closed is True)
        passed = RangeSet((ts, ts + MINUTE_MS) for ts, heard in self._heard.items() if heard.closed is None)
        return called | (passed & self.watched)

    def _was_watched(self, ts_ms: int) -> bool:
        return bool(self.watched & RangeSet.of(ts_ms, ts_ms + MINUTE_MS))

    def _closed(self) -> RangeSet:
        """All minutes from the frontier on that are closed, in whatever way."""
        heard = RangeSet((ts, ts + MINUTE_MS) for ts in self._heard)
        shut = self.hours.shut(self.frontier_ms, self.newest_ms) - heard
        certain = self._asked | self._lost | shut
        silent = self.watched & RangeSet.of(self.frontier_ms, 1 << 62)
        quiet = RangeSet(run for run in silent - heard if not self._is_suspicious(run, certain))
        return self._final() | quiet | certain

    def _is_suspicious(self, run: TimeRange, certain: RangeSet) -> bool:
        silence = RangeSet((run,)) - certain
        return self.rhythm.is_suspicious(silence.length_ms // MINUTE_MS)

    def _bucket_end_ms(self) -> int:
        """The end of the first bucket with a bar that is not closed; far away where there is none."""
        last_ms = self._last_bar_ms
        if last_ms is None:
            return 1 << 62
        sure_ms = self.sure_ms
        return next((end for tf in BUCKETS if (end := tf.next(last_ms)) > sure_ms), 1 << 62)

    def _remember(self, stands: Sequence[Bar], end_ms: int) -> None:
        self._recent.update((bar.ts, bar) for bar in stands)
        from_ms = max(self._recent_from_ms, end_ms - MEMORY_MS)
        if from_ms > self._recent_from_ms:
            self._recent = {ts: bar for ts, bar in self._recent.items() if ts >= from_ms}
        self._recent_from_ms = from_ms

    def _note_rhythm(self, batch: Batch, by_ts: Mapping[int, Bar]) -> None:
        """Learn from the closed minutes of open hours."""
        span = RangeSet.of(batch.start_ms, batch.end_ms)
        known = span - batch.lost - self.hours.shut(batch.start_ms, batch.end_ms)
        minutes = [ts for part in known for ts in range(part.start_ms, part.end_ms, MINUTE_MS)]
        self.rhythm.note(ts in by_ts for ts in minutes[-MEMORY:])
