"""The benchmarks run, say what they found, and leave nothing behind. No time is asserted: that is theirs to measure."""

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.__main__ import all_questions, text_of
from bench.clock import SteppingClock, clock_of_environment
from bench.outcome import Outcome, Profile, Row, Spot
from bench.profile import spots
from bench.report import results, table, updated
from domain.clock import SystemClock
from domain.timeframe import MINUTE_MS

#: Each of these starts many servers, one after the other.
pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).resolve().parents[2]
SCRATCH = ROOT / ".bench-tmp"


def bench(*arguments: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-m", "bench", *arguments], cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def finished(*arguments: str) -> subprocess.CompletedProcess[str]:
    with bench(*arguments) as process:
        out, err = process.communicate(timeout=280)
    assert not (SCRATCH / str(process.pid)).exists()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def test_a_quick_run_of_one_question_prints_its_rows_and_writes_no_results():
    document = ROOT / "bench" / "RESULTS.md"
    before = document.read_bytes() if document.exists() else None
    run = finished("--quick", "backfill_plan")
    assert run.returncode == 0, run.stderr
    assert re.fullmatch(r"backfill_plan \.\.\.\nbackfill_plan took \d+ s\n", run.stderr)
    head, question, row = run.stdout.splitlines()
    assert head.split()[:3] == ["figure", "unit", "median"]
    assert question == "backfill_plan"
    assert row.strip().startswith("plan of ten years, 10,000 fragments  ms")
    assert (document.read_bytes() if document.exists() else None) == before


def test_a_backfill_that_is_measured_was_done_right():
    run = finished("--quick", "backfill_plain")
    assert run.returncode == 0, run.stderr
    assert "5,760 bars a round." in run.stdout


def test_answers_that_are_measured_hold_what_was_asked_for():
    run = finished("--quick", "read_repeat", "read_windows", "read_latest", "read_database", "read_aggregate")
    assert run.returncode == 0, run.stderr
    assert "the same 1,000 bars, hypercorn" in run.stdout
    assert "168 bars of 1h from the aggregate" in run.stdout


def test_an_import_that_is_measured_stores_every_row():
    run = finished("--quick", "import_csv")
    assert run.returncode == 0, run.stderr
    assert "17,280 rows a round." in run.stdout


def test_reads_are_measured_on_a_database_that_has_grown():
    run = finished("--quick", "read_grown")
    assert run.returncode == 0, run.stderr
    assert "p99 of 80,000 rows" in run.stdout


def test_a_start_that_is_measured_ends_with_an_answer():
    run = finished("--quick", "start", "memory")
    assert run.returncode == 0, run.stderr
    assert "second start" in run.stdout
    assert "with 20 live series" in run.stdout


def test_a_stream_that_is_measured_reaches_every_client():
    run = finished("--quick", "stream_fanout", "stream_follow")
    assert run.returncode == 0, run.stderr
    assert "one bar to 100 clients" in run.stdout
    assert "p99 to 100 clients" in run.stdout
    assert "following 50 series" in run.stdout


def test_an_unknown_question_is_told_clearly():
    run = finished("--quick", "backfill_plan", "nonsense")
    assert run.returncode == 2
    assert run.stderr == f"There is no question nonsense. There are: {', '.join(all_questions())}.\n"


def test_a_run_that_is_stopped_ends_what_it_started_and_cleans_up():
    with bench("--quick", "backfill_plan") as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "backfill_plan ...\n"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert err == "Stopped.\n"
    assert process.returncode == 130
    assert not (SCRATCH / str(process.pid)).exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make on this machine")
def test_make_passes_its_arguments_on():
    command = ["make", "-n", "bench", "ARGS=--quick backfill_plan"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert "python -m bench --quick backfill_plan" in run.stdout


def test_every_question_says_what_it_measures():
    assert all_questions() != []
    assert [name for name in all_questions() if len(text_of(name)) < 100] == []
    listed = finished("--list")
    assert [name for name in all_questions() if text_of(name) not in listed.stdout] == []


OUTCOMES = {
    "speed": Outcome(
        [
            Row("with a control", "bars/s", [30.0, 10.0, 20.0], [40.0, 80.0, 40.0], target="at least 15"),
            Row("alone", "MB", [1.25], decimals=1),
        ],
        notes=["A note."],
        versions={"PostgreSQL": "18"},
    )
}


def test_a_profile_tells_functions_by_module_and_not_where_they_lie_on_this_machine():
    root, site = f"{ROOT}/services/cache.py", "/home/me/.venv/lib/python3.11/site-packages/quart/app.py"
    stacks = [
        f"run ({site}:7);get ({root}:3) 6",
        f"run ({site}:9) 3",
        "process 12:a name 4",
        "get (services/b.py:1) 1",
    ]
    assert spots(stacks) == [
        Spot("services/cache.py: get", 0.6, 0.6),
        Spot("quart/app.py: run", 0.3, 0.9),
        Spot("services/b.py: get", 0.1, 0.1),
    ]


PROFILE = Profile("The server", [Spot("app.py: get", 0.25, 0.5)])
UNSEEN = Profile("The other", why_not="it could not be.")


def test_profiles_stand_behind_the_figures():
    written = results({"speed": Outcome([], profiles=[PROFILE, UNSEEN])}, {}, {"speed": "How fast."}).splitlines()
    assert written[-7:] == [
        "The server, where its time goes:",
        "",
        "| by itself | with callees | function |",
        "| --- | --- | --- |",
        "| 25.0% | 50.0% | app.py: get |",
        "",
        "The other: not profiled, since it could not be.",
    ]
    told = table({"speed": Outcome([], profiles=[PROFILE])}).splitlines()
    assert told[-1].split() == ["25.0%", "50.0%", "app.py:", "get"]


def test_a_stepping_clock_begins_a_minute_at_each_step_and_is_the_same_in_another_process():
    clock = SteppingClock(time.time() - 1_000.25, 60_000, 0.5)
    other = clock_of_environment(clock.environment())
    assert other == clock
    before = clock.now_ms()
    assert before >= 60_000 + 2_000 * MINUTE_MS
    assert before % MINUTE_MS < 500
    assert other.now_ms() >= before
    assert isinstance(clock_of_environment({}), SystemClock)


def test_the_table_holds_medians_spreads_and_ratios():
    _, name, first, second, note = table(OUTCOMES).splitlines()
    assert (name, note.strip()) == ("speed", "A note.")
    assert " ".join(first.split()) == "with a control bars/s 20 10..30 40 40..80 0.50 at least 15 3"
    assert " ".join(second.split()) == "alone MB 1.2 1.2..1.2 1"


def test_the_results_are_laid_out_the_same_each_time():
    written = results(OUTCOMES, {"cores": "2", "date": "2026-01-02"}, {"speed": "How fast it is."})
    assert written.splitlines() == [
        "# Results of `make bench`",
        "",
        "Written by a full run; see docs/development.md. What was learned from it: [FINDINGS.md](FINDINGS.md).",
        "",
        "| measured on |  |",
        "| --- | --- |",
        "| cores | 2 |",
        "| date | 2026-01-02 |",
        "| PostgreSQL | 18 |",
        "",
        "## speed",
        "",
        "How fast it is.",
        "",
        "| figure | unit | median | spread | control | spread | ratio | wanted | rounds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| with a control | bars/s | 20 | 10..30 | 40 | 40..80 | 0.50 | at least 15 | 3 |",
        "| alone | MB | 1.2 | 1.2..1.2 |  |  |  |  | 1 |",
        "",
        "A note.",
    ]


def test_an_answer_that_is_kept_takes_the_place_of_the_earlier_one():
    both = {"plan": Outcome([]), "speed": OUTCOMES["speed"]}
    texts = {"plan": "How long a plan takes.", "speed": "How fast it is."}
    earlier = results(both, {"cores": "2"}, texts)
    assert updated(earlier, {}, {}, order=("plan", "speed"), when="never") == earlier
    new = Outcome([Row("again", "s", [3.0])])
    order = ("plan", "size", "speed")
    written = updated(earlier, {"speed": new, "size": new}, {"size": "How large.", **texts}, order=order, when="today")
    assert re.findall(r"^## (\w+)$", written, re.MULTILINE) == list(order)
    assert written.count("Measured by itself, today.") == 2
    assert "with a control" not in written
    assert earlier.partition("## speed")[0] == written.partition("## size")[0]


def test_the_results_that_are_kept_are_of_questions_and_name_no_place():
    kept = (ROOT / "bench" / "RESULTS.md").read_text("utf-8")
    asked = re.findall(r"^## (\w+)$", kept, re.MULTILINE)
    assert asked == all_questions()
    assert re.findall(r"://|(?:^|[\s`])/\w+", kept) == []
