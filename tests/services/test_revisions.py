"""What was read holds as long as nothing is told of it, and somebody vouches that all would be told."""

from services.revisions import Revisions, Stamp


class Ticks:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def vouched() -> tuple[Revisions, Ticks]:
    ticks = Ticks()
    revisions = Revisions(now_s=ticks)
    revisions.vouch(110.0)
    return revisions, ticks


def test_nothing_holds_while_nobody_vouches():
    assert not Revisions().holds(Stamp(1, 1, 0))


def test_what_was_read_holds_until_a_newer_revision_is_told():
    revisions, _ = vouched()
    assert revisions.holds(Stamp(1, 5, revisions.era))
    revisions.changed(2, 9)
    revisions.changed(1, 5)
    assert revisions.holds(Stamp(1, 5, revisions.era)), "the news is not newer than what was read"
    revisions.changed(1, 6)
    assert not revisions.holds(Stamp(1, 5, revisions.era))
    assert revisions.holds(Stamp(1, 6, revisions.era))


def test_news_that_come_late_take_nothing_back():
    revisions, _ = vouched()
    revisions.changed(1, 7)
    revisions.changed(1, 6)
    assert not revisions.holds(Stamp(1, 6, revisions.era))


def test_a_word_is_good_for_its_time_only():
    revisions, ticks = vouched()
    ticks.now_s = 110.0
    assert not revisions.holds(Stamp(1, 5, revisions.era))
    revisions.vouch(120.0)
    assert revisions.holds(Stamp(1, 5, revisions.era)), "nothing was missed meanwhile"


def test_after_news_may_have_been_missed_nothing_holds_that_was_read_before():
    revisions, _ = vouched()
    before = Stamp(1, 5, revisions.era)
    revisions.lost()
    assert not revisions.holds(Stamp(1, 5, revisions.era))
    revisions.vouch(120.0)
    assert not revisions.holds(before)
    assert revisions.holds(Stamp(1, 5, revisions.era))


def test_nothing_older_holds_while_this_process_commits_a_change():
    revisions, _ = vouched()
    revisions.expect(1, 6)
    assert not revisions.holds(Stamp(1, 5, revisions.era))
    assert revisions.holds(Stamp(1, 6, revisions.era))
    assert revisions.holds(Stamp(2, 5, revisions.era))
    revisions.changed(1, 6)
    assert not revisions.holds(Stamp(1, 5, revisions.era))


def test_the_word_of_an_earlier_change_does_not_stand_for_a_later_one():
    revisions, _ = vouched()
    revisions.expect(1, 7)
    revisions.changed(1, 6)
    assert not revisions.holds(Stamp(1, 6, revisions.era))


def test_a_change_that_was_rolled_back_is_not_waited_for_for_ever():
    revisions, ticks = vouched()
    revisions.expect(1, 6)
    ticks.now_s = 160.0
    revisions.vouch(170.0)
    assert revisions.holds(Stamp(1, 5, revisions.era))
