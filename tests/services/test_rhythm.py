"""How long a silence is normal."""

import pytest

from services.rhythm import LONGEST, MEMORY, Rhythm


def rhythm(*minutes: bool) -> Rhythm:
    made = Rhythm()
    made.note(minutes)
    return made


@pytest.mark.parametrize(
    ("every", "patience"),
    [(1, 2), (2, 7), (3, 11), (10, 37), (50, LONGEST)],
)
def test_a_series_is_asked_about_when_its_silence_has_a_chance_below_a_hundredth(every: int, patience: int) -> None:
    made = rhythm(*(n % every == 0 for n in range(MEMORY)))
    assert made.patience == patience
    assert not made.is_suspicious(patience - 1)
    assert made.is_suspicious(patience)
    if patience < LONGEST:
        assert (1 - made.share) ** patience < 0.01 <= (1 - made.share) ** (patience - 1)


def test_one_silent_minute_is_never_suspicious_of_however_busy_a_series() -> None:
    assert not rhythm(*[True] * 1_000).is_suspicious(1)


def test_of_an_unknown_series_a_few_silent_minutes_are_normal() -> None:
    assert rhythm().patience == 6


def test_a_series_that_falls_quiet_is_soon_left_alone_longer() -> None:
    made = rhythm(*[True] * 500)
    seen = [made.patience]
    for _ in range(MEMORY):
        made.note([False])
        seen.append(made.patience)
    assert seen == sorted(seen)
    assert seen[-1] == LONGEST


def test_only_the_last_two_hours_count() -> None:
    made = rhythm(*[False] * 1_000, *[True] * MEMORY)
    assert made.patience == rhythm(*[True] * MEMORY).patience
    assert made.share > 0.98
