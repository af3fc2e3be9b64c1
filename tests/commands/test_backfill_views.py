"""A job on the screen: a live bar, or lines now and then."""

import io
import logging
import re
import sys

import pytest
from rich.console import Console

from commands.backfill_views import LINE_EVERY_S, PROBLEMS_TOLD, LineView, LiveView, Pace, Problems
from services.backfills import JobState, Progress
from tests.commands.fakes import error, job


class Seconds:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


def test_the_pace_is_that_of_the_last_while(seconds: Seconds):
    pace = Pace(seconds, window_s=10)
    assert pace.per_second() is None
    pace.note(100)
    assert pace.per_second() is None
    for _ in range(20):
        seconds.now_s += 1
        pace.note(100 + 50 * int(seconds.now_s - 1000))
    assert pace.per_second() == pytest.approx(50)
    seconds.now_s += 10
    assert pace.per_second() == pytest.approx(0)


def test_a_count_that_falls_is_counted_anew(seconds: Seconds):
    pace = Pace(seconds)
    pace.note(500)
    seconds.now_s += 5
    pace.note(10)
    assert pace.per_second() is None
    seconds.now_s += 2
    pace.note(30)
    assert pace.per_second() == pytest.approx(10)


def test_each_problem_is_told_once_and_not_without_end():
    problems = Problems()
    first = job(errors=(error(), error("ETH/USDT")))
    assert problems.new(first) == [
        "BTC/USDT, 2022-12-13 00:00 to 2022-12-13 01:00: gone (2 attempts)",
        "ETH/USDT, 2022-12-13 00:00 to 2022-12-13 01:00: gone (2 attempts)",
    ]
    assert problems.new(first) == []
    assert problems.new(job(errors=(error(attempts=5), error(detail="slow")))) == [
        "BTC/USDT, 2022-12-13 00:00 to 2022-12-13 01:00: slow (2 attempts)"
    ]
    many = job(errors=tuple(error(detail=f"fault {nth}") for nth in range(100)))
    assert len(problems.new(many)) == PROBLEMS_TOLD - 3


def test_symbols_that_were_left_out_are_not_told_of_again():
    assert Problems().new(job(errors=(error()._replace(range=None),))) == []


def test_lines_come_now_and_then_and_at_each_change_of_state(seconds: Seconds):
    out = io.StringIO()
    with LineView(out, seconds) as view:
        view.show(job(state=JobState.QUEUED, progress=Progress(0, 0, 4, 0, None)))
        for second in range(12):
            seconds.now_s += 1
            view.show(job(progress=Progress(1, 0, 4, 100 * (second + 1), 75.0)))
        view.show(job(state=JobState.FAILED, progress=Progress(3, 1, 4, 1300, None), errors=(error(),)))
    lines = out.getvalue().splitlines()
    assert lines[0] == "1234abcd 0.0 %, queued: 0 of 4 chunks done, 0 bars written"
    assert lines[1] == (
        "1234abcd 25.0 %, running: 1 of 4 chunks done, 100 bars written, 100 bars a second, 1 minute 15 seconds left"
    )
    # At 1, at 6 and at 11 seconds.
    assert LINE_EVERY_S == 5
    assert [line for line in lines if "600 bars written" in line or "1,100 bars written" in line] == lines[2:4]
    assert lines[4] == "BTC/USDT, 2022-12-13 00:00 to 2022-12-13 01:00: gone (2 attempts)"
    assert lines[5].startswith("1234abcd 100.0 %, failed: 3 of 4 chunks done, 1 failed, 1,300 bars written")
    assert lines[5].endswith(", 1 problem")
    assert len(lines) == 6


def shown(width: int, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, errors="replace")
    out = Console(file=file, width=width, force_terminal=True, markup=False, highlight=False, emoji=False)
    with LiveView(out) as view:
        view.show(job())
        view.note("a note on [b]this[/b]")
        view.show(
            job(state=JobState.DONE, progress=Progress(4, 0, 4, 123_456, None), errors=(error(detail="[red]x[/red]"),))
        )
    file.flush()
    return raw.getvalue().decode(encoding)


def test_the_live_bar_ends_as_the_job_stands():
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown(120))
    last = [line for line in text.splitlines() if "1234abcd" in line][-1]
    for part in ("1234abcd done", "100.0 %", "4/4 chunks", "123,456 bars"):
        assert part in last
    assert "left" not in last
    assert "a note on [b]this[/b]" in text
    assert "gone" not in text
    assert "[red]x[/red] (2 attempts)" in text


@pytest.mark.parametrize("width", [1, 10, 40, 500])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_no_terminal_is_too_narrow_or_too_poor_for_the_live_bar(width: int, encoding: str):
    assert "note" in shown(width, encoding).replace("\n", "") or width < 10


def test_the_log_goes_above_the_bar_and_back_to_its_stream_after(capsys: pytest.CaptureFixture[str]):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger().addHandler(handler)
    try:
        raw = io.StringIO()
        with LiveView(Console(file=raw, width=80, force_terminal=True)) as view:
            view.show(job())
            assert handler.stream is sys.stderr
            logging.getLogger("test").warning("meanwhile")
        logging.getLogger("test").warning("after")
    finally:
        logging.getLogger().removeHandler(handler)
    assert "meanwhile" in raw.getvalue()
    assert stream.getvalue() == "after\n"
