"""Coverage in a terminal of any kind."""

import io

import pytest
from rich.console import Console

from commands.coverage import LOOKS, SOME_DATA, UNSETTLED_LISTED, draw, sign
from commands.strip import Cell
from domain.series import Verdict
from domain.time_range import TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from services.coverage import Tile

#: 2024-03-10, a Sunday.
SUNDAY_MS = 1_710_028_800_000


def tile(verdict: Verdict, start_hour: int, hours: int, *, attempts: int = 0, error: str | None = None) -> Tile:
    start = SUNDAY_MS + start_hour * HOUR_MS
    checked = SUNDAY_MS + DAY_MS + 1000 if attempts else None
    return Tile(TimeRange(start, start + hours * HOUR_MS), verdict, attempts, checked, error)


def drawn(tiles: list[Tile], timeframe: Timeframe = Timeframe.M1, *, width: int = 80, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    out = Console(file=file, width=width, markup=False, emoji=False, highlight=False)
    draw(out, "test/fake/[b]X[/b] 1m", tiles, timeframe)
    file.flush()
    return raw.getvalue().decode(encoding)


ALL = [tile(verdict, 2 * nth, 2) for nth, verdict in enumerate(Verdict)]


def test_a_day_is_a_row_of_half_hours_with_its_sums():
    text = drawn([*ALL, tile(Verdict.DATA, 14, 10)])
    assert "test/fake/[b]X[/b] 1m, 2024-03-10 00:00 to 2024-03-11 00:00 UTC\n" in text
    assert "               00          06          12          18\n" in text
    assert "2024-03-10 Sun ████····????────////!!!!░░░░████████████████████  75.0 %\n" in text
    assert "█ data                       720 minutes   50.00 %  bars\n" in text
    assert "! fetch_failed               120 minutes    8.33 %  the provider was asked, and failed\n" in text
    assert "a cell of bars and of" not in text


def test_ascii_is_enough_and_every_sign_differs():
    text = drawn([*ALL, tile(Verdict.DATA, 14, 10)], encoding="ascii")
    assert "2024-03-10 Sun ####....????----////!!!!____####################  75.0 %\n" in text
    for ascii_only in (False, True):
        signs = {look.signs[ascii_only] for look in LOOKS.values()} | {SOME_DATA[ascii_only], " "}
        assert len(signs) == len(Verdict) + 2
    assert {look.style for look in LOOKS.values()} == {
        sign(Cell(verdict, False), ascii_only=True)[1] for verdict in LOOKS
    }


def test_bars_among_silent_minutes_have_a_sign_of_their_own():
    tiles = [
        Tile(TimeRange(SUNDAY_MS, SUNDAY_MS + MINUTE_MS), Verdict.NO_TRADES),
        Tile(TimeRange(SUNDAY_MS + MINUTE_MS, SUNDAY_MS + HOUR_MS), Verdict.DATA),
    ]
    text = drawn(tiles)
    assert "2024-03-10 Sun ▓█" in text
    assert "▓ a cell of bars and of settled stretches without any\n" in text
    assert "All of it is settled.\n" in text


def test_what_is_not_settled_is_listed_the_worst_first_with_its_tries_and_error():
    text = drawn(
        [
            tile(Verdict.NEVER_FETCHED, 0, 1),
            tile(Verdict.UNCONFIRMED_EMPTY, 1, 1, attempts=1),
            tile(Verdict.FETCH_FAILED, 2, 1, attempts=3, error="the venue [red]burns[/red] :fire:"),
        ]
    )
    assert text.endswith(
        "Not settled (UTC):\n"
        "  2024-03-10 02:00 to 2024-03-10 03:00  fetch_failed  60 minutes, asked 3 times, last at 2024-03-11 00:00:01: "
        "the venue [red]burns[/red] :fire:\n"
        "  2024-03-10 00:00 to 2024-03-10 01:00  never_fetched  60 minutes\n"
        "  2024-03-10 01:00 to 2024-03-10 02:00  unconfirmed_empty  60 minutes, asked 1 time, "
        "last at 2024-03-11 00:00:01\n"
    )


def test_a_long_list_is_cut_and_counted():
    tiles = [
        tile(Verdict.DATA if hour % 2 else Verdict.UNCONFIRMED_EMPTY, hour, 1)
        for hour in range(2 * UNSETTLED_LISTED + 2)
    ]
    text = drawn(tiles)
    assert text.count("  unconfirmed_empty  60 minutes\n") == UNSETTLED_LISTED
    assert text.endswith("  ... and 1 more; --table lists them all\n")


def test_other_timeframes_are_counted_in_buckets():
    text = drawn([tile(Verdict.DATA, 0, 23), tile(Verdict.NEVER_FETCHED, 23, 1)], Timeframe.H1)
    assert "2024-03-10 Sun ███████████████████████░  95.8 %\n" in text
    assert "█ data                        23 buckets   95.83 %" in text
    assert "never_fetched  1 bucket\n" in text


def test_nearly_all_is_not_called_all():
    start = SUNDAY_MS + 40 * DAY_MS
    tiles = [
        Tile(TimeRange(SUNDAY_MS, start), Verdict.DATA),
        Tile(TimeRange(start, start + MINUTE_MS), Verdict.NEVER_FETCHED),
    ]
    text = drawn(tiles)
    assert "99.99 %" in text
    assert "░ never_fetched                1 minutes  < 0.01 %" in text


def test_a_range_without_a_bucket_is_told():
    assert drawn([], Timeframe.MN1) == "test/fake/[b]X[/b] 1m: no bucket begins in this range\n"


@pytest.mark.parametrize("width", [1, 2, 10, 24, 40, 500])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("timeframe", [Timeframe.M1, Timeframe.H4, Timeframe.D1, Timeframe.W1, Timeframe.MN1])
def test_no_terminal_is_too_narrow_or_too_poor(width: int, encoding: str, timeframe: Timeframe):
    first, last = timeframe.floor(SUNDAY_MS), timeframe.ceil(SUNDAY_MS + 400 * DAY_MS)
    half = timeframe.floor(SUNDAY_MS + 200 * DAY_MS)
    tiles = [
        Tile(TimeRange(first, half), Verdict.DATA),
        Tile(TimeRange(half, last), Verdict.FETCH_FAILED, 1, 0, "gone"),
    ]
    text = drawn(tiles, timeframe, width=width, encoding=encoding)
    assert "fetch_failed" in text
    assert "gone" in text
