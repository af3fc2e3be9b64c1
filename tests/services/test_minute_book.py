"""The book of minutes: what is closed, by which evidence, and when to ask."""

import random
from collections.abc import Iterable

import pytest

from domain.bar import Bar
from domain.packed import runs_of
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import MINUTE_MS
from plugins.base import LiveBars
from services import minute_book
from services.minute_book import M1, Batch, MinuteBook, Patience
from services.open_hours import OpenHours
from services.rhythm import Rhythm
from tests.support.live_plugin import flat, part_of
from tests.support.market import START_MS, random_minutes

M = MINUTE_MS
PATIENCE = Patience(settle_ms=2_000, grace_ms=3_000)
SETTLED_MS, LATE_MS = 2_000, 5_000


def at(n: float) -> int:
    """An instant, in minutes since the book's beginning."""
    return START_MS + int(n * M)


def a_book(*, busy: bool = True, hours: OpenHours | None = None, last_bar_ms: int | None = None) -> MinuteBook:
    rhythm = Rhythm()
    rhythm.note([busy] * 120)
    return MinuteBook(START_MS, rhythm, hours or OpenHours(), last_bar_ms=last_bar_ms)


def say(book: MinuteBook, *bars: Bar, closed: bool | None = None, now_ms: int = 0, venue_ms: int | None = None):
    return book.hear(LiveBars("A/B", bars, closed, venue_ms), now_ms or bars[-1].ts + 1_000)


def listening(**options: object) -> MinuteBook:
    """A book whose connection has spoken a minute before its first one."""
    book = a_book(**options)  # type: ignore[arg-type]
    say(book, flat(at(-1)), now_ms=at(-0.5))
    return book


def take(book: MinuteBook, *stored: Bar) -> Batch:
    """Write what is closed."""
    batch = book.batch()
    assert batch is not None
    book.commit(batch, sorted([*batch.told, *stored], key=lambda bar: bar.ts))
    return batch


def asked(book: MinuteBook, start: float, end: float, *bars: Bar) -> None:
    book.answer(RangeSet.of(at(start), at(end)), bars)


# Evidence


def test_a_bar_that_the_venue_calls_final_is_closed() -> None:
    book = a_book()
    word = say(book, flat(at(0)), closed=True, venue_ms=at(1) + 5)
    assert word.forming is None
    assert take(book) == Batch(at(0), at(1), [flat(at(0))], RangeSet.of(at(0), at(1)), RangeSet(), at(1) + 5)
    assert book.frontier_ms == at(1)


def test_time_alone_closes_nothing() -> None:
    book = listening()
    say(book, flat(at(0)), now_ms=at(0.5))
    say(book, flat(at(0)), now_ms=at(50))
    assert book.batch() is None


def test_a_successor_closes_a_minute_of_which_the_venue_does_not_say() -> None:
    book = listening()
    say(book, flat(at(0), 1))
    say(book, flat(at(0), 2))
    assert book.batch() is None
    say(book, flat(at(1)))
    assert take(book).told == [flat(at(0), 2)]


def test_the_first_minute_of_a_connection_may_be_heard_in_part_and_is_asked_for() -> None:
    book = a_book()
    say(book, part_of(flat(at(0)), 0.5), now_ms=at(0.5))
    say(book, flat(at(1)))
    assert book.batch() is None
    assert book.has_hole(at(1))
    assert book.due_ms(PATIENCE, alive=True) == at(1) + SETTLED_MS
    asked(book, 0, 1, flat(at(0)))
    assert take(book, flat(at(0))) == Batch(at(0), at(1), [], RangeSet(), RangeSet(), None)


def test_history_sent_at_the_beginning_closes_nothing_that_began_before_the_connection() -> None:
    book = a_book()
    say(book, flat(at(0)), flat(at(1)), flat(at(2)), now_ms=at(5.5))
    say(book, flat(at(6)), now_ms=at(6.1))
    say(book, flat(at(7)), now_ms=at(7.1))
    assert book.batch() is None
    asked(book, 0, 6, *(flat(at(n)) for n in range(6)))
    batch = take(book, *(flat(at(n)) for n in range(6)))
    assert (batch.end_ms, batch.told) == (at(7), [flat(at(6))])


def test_a_minute_that_the_venue_called_forming_last_is_asked_for_after_a_grace() -> None:
    book = listening()
    say(book, flat(at(0)), closed=False)
    say(book, flat(at(1)), closed=False)
    assert book.batch() is None
    assert book.due_ms(PATIENCE, alive=True) == at(1) + LATE_MS
    assert not book.has_hole(at(1))
    say(book, flat(at(0), 5), closed=True, now_ms=at(1.01))
    assert take(book).told == [flat(at(0), 5)]


def test_a_silent_minute_between_heard_ones_is_empty_and_answered() -> None:
    book = listening()
    say(book, flat(at(0)), closed=True)
    say(book, flat(at(2)), closed=True)
    batch = take(book)
    assert (batch.told, batch.answered, batch.lost) == (
        [flat(at(0)), flat(at(2))],
        RangeSet.of(at(0), at(3)),
        RangeSet(),
    )


def test_a_silence_out_of_rhythm_is_asked_about_even_when_the_stream_speaks_again() -> None:
    book = listening()
    say(book, flat(at(0)), closed=True)
    say(book, flat(at(3)), closed=True)
    assert take(book).end_ms == at(1)
    assert book.batch() is None
    assert book.due_ms(PATIENCE, alive=True) == at(2) + SETTLED_MS
    asked(book, 1, 3, flat(at(2)))
    assert take(book, flat(at(2))).end_ms == at(4)


def test_a_quiet_series_has_its_silence_believed() -> None:
    book = listening(busy=False)
    say(book, flat(at(40)), closed=True)
    assert take(book).end_ms == at(41)


def test_a_silence_over_a_lost_connection_is_not_believed() -> None:
    book = listening(busy=False)
    say(book, flat(at(0)), closed=True)
    book.drop()
    say(book, flat(at(3)), closed=None, now_ms=at(3.2))
    say(book, flat(at(4)))
    say(book, flat(at(5)))
    assert take(book).end_ms == at(1)
    assert book.is_blocked()
    asked(book, 1, 4, flat(at(3), 3))
    batch = take(book, flat(at(3), 3))
    assert (batch.end_ms, batch.told) == (at(5), [flat(at(4))])


def test_the_minute_in_which_the_connection_broke_is_asked_for() -> None:
    book = listening()
    say(book, flat(at(0)))
    book.drop()
    say(book, flat(at(0), 2), now_ms=at(0.7))
    say(book, flat(at(1)))
    assert book.batch() is None
    asked(book, 0, 1, flat(at(0), 3))
    assert take(book, flat(at(0), 3)).told == []


def test_what_the_provider_says_later_counts_more_and_what_it_lacks_is_taken_from_the_stream() -> None:
    book = listening()
    say(book, flat(at(0), 1), closed=True)
    say(book, flat(at(1), 1), closed=True)
    asked(book, 0, 2, flat(at(0), 2))
    batch = take(book, flat(at(0), 2))
    assert (batch.told, batch.answered) == ([flat(at(1), 1)], RangeSet.of(at(1), at(2)))


def test_a_bar_heard_in_part_that_the_provider_does_not_have_is_not_stored() -> None:
    book = a_book()
    say(book, part_of(flat(at(0)), 0.5), now_ms=at(0.5))
    asked(book, 0, 1)
    batch = take(book)
    assert (batch.told, batch.answered) == ([], RangeSet())


def test_a_final_word_after_the_answer_counts_more() -> None:
    book = listening()
    asked(book, 0, 1, flat(at(0), 1))
    say(book, flat(at(0), 2), closed=True)
    assert take(book).told == [flat(at(0), 2)]


def test_a_final_word_while_the_provider_is_asked_counts_more_than_its_answer() -> None:
    book = listening()
    say(book, flat(at(0), 1), closed=False)
    question = book.question()
    say(book, flat(at(0), 2), closed=True)
    book.answer(RangeSet.of(at(0), at(1)), [flat(at(0), 1)], question=question)
    assert take(book).told == [flat(at(0), 2)]


def test_what_was_called_final_does_not_form_again() -> None:
    book = listening()
    say(book, flat(at(0), 1), closed=True)
    assert say(book, flat(at(0), 2), closed=False).forming is None
    assert take(book).told == [flat(at(0), 1)]


def test_minutes_of_a_closed_session_need_no_answer() -> None:
    hours = OpenHours(TimeRange(at(-100), at(2_000)), RangeSet([(at(-100), at(1)), (at(900), at(2_000))]))
    book = listening(hours=hours)
    say(book, flat(at(0)), closed=True)
    assert take(book).end_ms == at(1)
    book.drop()
    say(book, flat(at(900)), closed=True, now_ms=at(901))
    batch = take(book)
    assert (batch.end_ms, batch.told, batch.answered) == (at(901), [flat(at(900))], RangeSet.of(at(900), at(901)))


def test_a_bar_outside_of_the_session_is_a_bar() -> None:
    hours = OpenHours(TimeRange(at(-100), at(2_000)), RangeSet.of(at(-100), at(1)))
    book = listening(hours=hours)
    say(book, flat(at(0)), closed=True)
    say(book, flat(at(5)), closed=True)
    batch = take(book)
    assert (batch.told, batch.answered) == (
        [flat(at(0)), flat(at(5))],
        RangeSet([(at(0), at(1)), (at(5), at(6))]),
    )


def test_what_cannot_be_had_is_given_up_up_to_what_was_heard_since() -> None:
    book = listening()
    book.drop()
    say(book, flat(at(3)), now_ms=at(3.5))
    say(book, flat(at(4)))
    say(book, flat(at(5)))
    book.give_up(at(9))
    batch = take(book)
    assert (batch.end_ms, batch.told, batch.lost) == (at(5), [flat(at(4))], RangeSet.of(at(0), at(4)))
    assert batch.answered == RangeSet.of(at(4), at(5))


def test_nothing_is_given_up_that_nobody_has_passed() -> None:
    book = listening()
    book.give_up(at(9))
    assert book.batch() is None


def test_what_the_provider_leaves_out_can_be_given_up_when_it_gave_later_minutes() -> None:
    book = a_book()
    asked(book, 3, 5, flat(at(3)))
    assert book.is_torn()
    book.give_up(at(5))
    batch = take(book, flat(at(3)))
    assert (batch.end_ms, batch.lost) == (at(5), RangeSet.of(at(0), at(3)))
    assert not book.is_torn()


# Forming


def test_the_newest_minute_is_told_as_it_changes() -> None:
    book = a_book()
    one, two = flat(at(0), 1), flat(at(0), 2)
    assert say(book, one, closed=False).forming == one
    assert say(book, one, closed=False).forming is None
    assert say(book, two).forming == two
    assert say(book, flat(at(1)), closed=False).forming == flat(at(1))
    assert say(book, flat(at(0), 3), closed=False).forming is None


def test_a_minute_that_is_closed_does_not_form() -> None:
    book = a_book()
    asked(book, 0, 1, flat(at(0)))
    assert say(book, flat(at(0), 2)).forming is None
    take(book, flat(at(0)))
    assert say(book, flat(at(0), 3)).forming is None
    assert book.show(flat(at(0), 3)) is None
    assert book.show(flat(at(1), 3)) == flat(at(1), 3)


def test_what_begins_in_the_future_is_not_believed() -> None:
    book = listening()
    assert say(book, flat(at(60 * 24)), now_ms=at(0.5)).forming is None
    assert (book.refused, book.is_blocked()) == (1, False)
    assert say(book, flat(at(30)), now_ms=at(0.5), venue_ms=at(30.5)).forming == flat(at(30))


# Late and corrected


def test_a_final_bar_of_a_closed_minute_is_late_if_it_differs() -> None:
    book = listening()
    say(book, flat(at(0)), closed=True)
    take(book)
    assert say(book, flat(at(0)), closed=True).late == []
    assert say(book, flat(at(0), 2), closed=False).late == []
    assert say(book, flat(at(0), 2), closed=True).late == [flat(at(0), 2)]
    book.corrected([flat(at(0), 2)])
    assert say(book, flat(at(0), 2), closed=True).late == []


def test_an_unlabelled_bar_is_late_only_within_memory() -> None:
    book = listening(busy=False)
    assert say(book, flat(at(-5))).late == []
    say(book, flat(at(0)), closed=True)
    say(book, flat(at(2)), closed=True)
    take(book)
    assert say(book, flat(at(0))).late == []
    assert say(book, flat(at(1))).late == [flat(at(1))]
    say(book, flat(at(50)), closed=True, now_ms=at(51))
    take(book)
    for n in range(100, 301, 50):
        say(book, flat(at(n)), closed=True)
        asked(book, n - 50, n)
        take(book)
    assert say(book, flat(at(0), 9)).late == []
    assert say(book, flat(at(0), 9), closed=True).late == [flat(at(0), 9)]


def test_a_correction_while_its_minute_is_being_written_is_not_lost() -> None:
    book = listening()
    say(book, flat(at(0), 1), closed=True)
    batch = book.batch()
    assert batch is not None
    say(book, flat(at(0), 2), closed=True)
    assert book.commit(batch, batch.told) == [flat(at(0), 2)]
    assert book.batch() is None


# When to ask


def test_a_heard_minute_without_its_final_word_is_asked_for_after_a_grace() -> None:
    book = listening()
    say(book, flat(at(0)))
    assert book.due_ms(PATIENCE, alive=True) == at(1) + LATE_MS


def test_while_the_stream_is_down_each_minute_is_asked_for() -> None:
    book = a_book(busy=False)
    assert book.due_ms(PATIENCE, alive=False) == at(1) + LATE_MS
    asked(book, 0, 1)
    assert book.due_ms(PATIENCE, alive=False) == at(2) + LATE_MS


def test_a_silence_is_asked_about_when_it_is_suspicious_and_not_while_it_was_found_normal() -> None:
    assert listening().due_ms(PATIENCE, alive=True) == at(2) + LATE_MS
    assert listening().due_ms(PATIENCE, alive=True, quiet_until_ms=at(7)) == at(7)
    assert listening(busy=False).due_ms(PATIENCE, alive=True) == at(60) + LATE_MS


def test_the_end_of_a_bucket_that_has_a_bar_is_a_reason_to_ask() -> None:
    book = listening(busy=False, last_bar_ms=at(-1))
    ends = []
    for _ in range(5):
        due_ms = book.due_ms(PATIENCE, alive=True)
        ends.append((due_ms - LATE_MS - START_MS) // M)
        asked(book, 0, ends[-1])
        take(book)
    # The book begins at midnight, so the bar before it lies at the end of every bucket.
    assert ends == [60, 120, 180, 240, 300]
    book = a_book(busy=False)
    book.hear(LiveBars("A/B", (flat(at(1)),), True), at(2))
    asked(book, 0, 1)
    take(book)
    ends = []
    for _ in range(5):
        ends.append((book.due_ms(PATIENCE, alive=True) - LATE_MS - START_MS) // M)
        asked(book, 0, ends[-1])
        take(book)
    assert ends == [5, 15, 30, 60, 120]


def test_nothing_is_asked_in_the_night() -> None:
    hours = OpenHours(TimeRange(at(-100), at(2_000)), RangeSet.of(at(1_000), at(2_000)))
    assert listening(hours=hours).due_ms(PATIENCE, alive=True) == at(1_002) + LATE_MS
    assert listening(hours=hours).due_ms(PATIENCE, alive=False) == at(1_001) + LATE_MS
    assert not a_book(hours=hours).has_hole(at(50))


def test_bars_that_the_stream_kept_to_itself_are_found() -> None:
    book = listening()
    say(book, flat(at(0)))
    bars = [*(flat(at(n)) for n in range(4)), flat(at(4), volume=0)]
    assert book.untold(bars, at(0), at(5)) == [flat(at(1)), flat(at(2)), flat(at(3))]
    assert book.untold(bars, at(2), at(3.5)) == [flat(at(2))]
    assert book.untold(bars[:1], at(0), at(5)) == []


def test_what_cannot_be_written_for_days_is_asked_for_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minute_book, "MOST_HEARD", 50)
    book = listening()
    for n in range(51):
        say(book, flat(at(n)), closed=True)
    assert book.batch() is None
    asked(book, 0, 51, *(flat(at(n)) for n in range(51)))
    say(book, flat(at(51)), closed=True)
    batch = take(book, *(flat(at(n)) for n in range(51)))
    assert (batch.end_ms, batch.told) == (at(52), [flat(at(51))])


def test_a_long_stretch_is_closed_in_parts() -> None:
    book = a_book()
    asked(book, 0, 5_000)
    ends = []
    while (batch := book.batch()) is not None:
        book.commit(batch, [])
        ends.append((batch.end_ms - START_MS) // M)
    assert ends == [2_000, 4_000, 5_000]


# The whole


class Venue:
    """A market, told in one of the ways venues have, over a connection that breaks."""

    def __init__(self, rng: random.Random, style: str) -> None:
        self.rng, self.style = rng, style
        holes = rng.choice((0.0, 0.1, 0.5, 0.9))
        self.truth = {bar.ts: bar for bar in random_minutes(rng.randrange(10**9), 400, holes=holes)}
        self.connected = False

    def words(self, ts: int, *, from_share: float, to_share: float) -> Iterable[tuple[float, LiveBars]]:
        """What a connection that is up during a part of a minute hears, and at which part of it."""
        bar = self.truth.get(ts)
        if bar is None:
            return
        flag = {"flags": False, "silent": None}.get(self.style)
        if self.style != "final":
            for share in sorted(self.rng.uniform(from_share, to_share) for _ in range(self.rng.randrange(1, 4))):
                yield share, LiveBars("A/B", (part_of(bar, share),), flag)
        if to_share == 1.0:
            if self.style == "silent":
                yield 0.9999, LiveBars("A/B", (bar,), None)
            elif self.rng.random() < 0.95 or self.style == "final":
                yield 1.0, LiveBars("A/B", (bar,), True)


class Life:
    """A book fed with what a venue says, and with answers of a provider that has the whole market."""

    def __init__(self, seed: int, style: str) -> None:
        self.rng = random.Random(seed)
        self.venue = Venue(self.rng, style)
        self.book = MinuteBook(START_MS, Rhythm(), OpenHours())
        self.stored: dict[int, Bar] = {}
        self.closed: list[Bar] = []
        self.closed_ms = START_MS
        self.up = self.rng.random() < 0.5

    def live(self, ts: int) -> None:
        """A minute with the connection up, down, or breaking in it; then the provider may be asked."""
        breaks = self.rng.uniform(0.05, 0.95) if self.rng.random() < 0.08 else None
        spans = [(0.0, 1.0 if breaks is None else breaks)] if self.up else []
        self.hear(ts, spans)
        if breaks is not None:
            if self.up:
                self.book.drop()
            self.up = not self.up or self.rng.random() < 0.5
            self.hear(ts, [(self.rng.uniform(breaks, 1.0), 1.0)] if self.up else [])
        now_ms = ts + M + SETTLED_MS
        if now_ms >= self.book.due_ms(PATIENCE, alive=self.up) or self.rng.random() < 0.05:
            self.ask(M1.floor(now_ms - SETTLED_MS))
        self.write(now_ms)

    def hear(self, ts: int, spans: list[tuple[float, float]]) -> None:
        for from_share, to_share in spans:
            for share, live in self.venue.words(ts, from_share=from_share, to_share=to_share):
                now_ms = ts + int(share * M)
                self.book.hear(live, now_ms)
                if self.rng.random() < 0.8:
                    self.write(now_ms)

    def ask(self, end_ms: int) -> None:
        start_ms = self.book.sure_ms
        found = {ts: bar for ts, bar in self.venue.truth.items() if start_ms <= ts < end_ms}
        self.stored.update(found)
        self.book.answer(RangeSet.of(start_ms, end_ms), found.values())

    def write(self, now_ms: int) -> None:
        while (batch := self.book.batch()) is not None:
            assert batch.start_ms == self.closed_ms < batch.end_ms <= now_ms
            assert not batch.lost
            assert not runs_of(batch.told, M1) - batch.answered
            self.stored.update((bar.ts, bar) for bar in batch.told)
            stands = [self.stored[ts] for ts in sorted(self.stored) if batch.start_ms <= ts < batch.end_ms]
            assert self.book.commit(batch, stands) == []
            self.closed += stands
            self.closed_ms = batch.end_ms


@pytest.mark.parametrize("style", ["flags", "silent", "final"])
@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_heard_dropped_and_asked_what_is_closed_is_the_market(style: str, seed: int) -> None:
    life = Life(seed, style)
    for n in range(400):
        life.live(at(n))
    life.ask(at(400))
    life.write(at(400))
    assert life.closed_ms == at(400)
    assert life.closed == sorted(life.venue.truth.values(), key=lambda bar: bar.ts)
