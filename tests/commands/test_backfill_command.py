"""`candlery backfill`, on jobs in memory that nobody works on."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

import cli
from commands import backfill
from commands.backfill import find
from commands.terminal import counted, duration
from config import BaseConfig, TestingConfig
from domain.errors import DatabaseUnavailableError, InvalidParameterError, NotFoundError
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS
from services.backfills import BackfillRequest, Job, JobState, Plan, Progress, SymbolPlan
from tests.commands.fakes import Services, error, job
from tests.support.market import START_MS

NEW = ("--market", "test", "--provider", "fake", "--symbol", "BTC/USDT", "--start", str(START_MS))
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> Services:
    made = Services()

    @asynccontextmanager
    async def running(config: BaseConfig, *, as_server: bool) -> AsyncIterator[Services]:
        assert not as_server
        yield made

    monkeypatch.setattr(backfill, "running_services", running)
    return made


async def run(*args: str) -> int:
    options = cli._parser().parse_args(["backfill", *args])
    options.check(options)
    return await options.run(TestingConfig(), options)  # type: ignore[no-any-return]


async def put(services: Services, *jobs: Job) -> None:
    services.backfills._jobs.update({one.id: one for one in jobs})


async def test_a_job_that_is_not_waited_for_is_left_to_the_server(services: Services, capsys: Captured):
    assert await run(*NEW, "--end", str(START_MS + DAY_MS), "--no-wait") == 0
    out, err = capsys.readouterr()
    assert out == "job-1\n"
    assert err == "A server is at work on it. Follow it: candlery backfill attach job-1\n"
    wanted = BackfillRequest("test", "fake", ("BTC/USDT",), TimeRange(START_MS, START_MS + DAY_MS))
    assert services.backfills.requests == [wanted]


async def test_where_stdout_is_no_terminal_nothing_is_waited_for(services: Services, capsys: Captured):
    services.backfills.someone_else_works = False
    assert await run(*NEW) == 0
    out, err = capsys.readouterr()
    assert out == "job-1\n"
    assert "Nobody works on it now: it waits until `candlery serve` runs, or until you attach: " in err
    assert services.backfills.requests[0].range.end_ms == services.clock.now_ms()


async def test_symbols_are_taken_once_and_bad_ones_told_one_by_one(services: Services, capsys: Captured):
    assert await run(*NEW, "--symbol", "NOPE", "--symbol", "BTC/USDT", "--symbol", "NADA", "--no-wait") == 0
    out, err = capsys.readouterr()
    assert out == "job-1\n"
    assert err.startswith(
        "left out: NOPE: There is no such symbol.\nleft out: NADA: There is no such symbol.\nA server is at work"
    )
    assert services.backfills.requests[0].symbols == ("BTC/USDT", "NOPE", "NADA")


async def test_waiting_ends_with_0_when_the_job_is_done(services: Services, capsys: Captured):
    task = asyncio.create_task(run(*NEW, "--wait"))
    await watched(services)
    progress = Progress(4, 0, 4, 1234, None)
    await services.backfills.move(
        "job-1", state=JobState.DONE, progress=progress, started_ms=START_MS, finished_ms=START_MS + 125_000
    )
    assert await asyncio.wait_for(task, 10) == 0
    out, _ = capsys.readouterr()
    assert out.splitlines()[0] == "job-1"
    assert out.splitlines()[-1] == (
        "Backfill job-1 is done: 4 of 4 chunks done, 1,234 bars written, in 2 minutes 5 seconds."
    )


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED])
async def test_waiting_ends_with_1_when_it_failed_or_was_cancelled(
    state: JobState, services: Services, capsys: Captured
):
    task = asyncio.create_task(run(*NEW, "--wait"))
    await watched(services)
    errors = (error("ETH/USDT", attempts=10), error())
    await services.backfills.move(
        "job-1", state=state, progress=Progress(2, 2, 4, 10, None), errors=errors, error_count=30
    )
    assert await asyncio.wait_for(task, 10) == 1
    out, err = capsys.readouterr()
    assert f"Backfill job-1 is {state.value}: 2 of 4 chunks done, 2 failed, 10 bars written." in out
    assert err == (
        "  BTC/USDT, 2022-12-13 00:00 to 2022-12-13 01:00: gone (2 attempts)\n"
        "  ETH/USDT, 2022-12-13 00:00 to 2022-12-13 01:00: gone (10 attempts)\n"
        "  ... and 28 more\n"
    ) + ("Try what failed again: candlery backfill retry job-1\n" if state is JobState.FAILED else "")


async def test_a_signal_detaches_and_says_how_to_attach_again(services: Services, capsys: Captured):
    task = asyncio.create_task(run(*NEW, "--wait"))
    await watched(services)
    os.kill(os.getpid(), signal.SIGINT)
    assert await asyncio.wait_for(task, 10) == 130
    assert capsys.readouterr().err == (
        "Detached from backfill job-1.\nA server is at work on it. Follow it: candlery backfill attach job-1\n"
    )


async def test_a_database_that_goes_away_for_good_leaves_the_job_and_the_way_back(
    services: Services, capsys: Captured, monkeypatch: pytest.MonkeyPatch
):
    async def gone(*_: object) -> Job:
        raise DatabaseUnavailableError

    monkeypatch.setattr(backfill.Follower, "follow", gone)
    with pytest.raises(DatabaseUnavailableError):
        await run(*NEW, "--wait")
    assert "Follow it once the database is there again: candlery backfill attach job-1" in capsys.readouterr().err


async def test_a_job_that_is_over_at_once_is_reported_at_once(services: Services, capsys: Captured):
    nothing = Progress(0, 0, 0, 0, None)
    await put(services, job("aa", state=JobState.DONE, progress=nothing))
    assert await run("attach", "aa") == 0
    assert capsys.readouterr().out == "Backfill aa is done: nothing was missing.\n"
    bad = error(attempts=0)._replace(range=None)
    await put(services, job("bb", state=JobState.FAILED, progress=nothing, errors=(bad,), error_count=1))
    assert await run("attach", "bb") == 1
    assert capsys.readouterr().err == "  BTC/USDT: gone\n"


async def watched(services: Services) -> None:
    async with asyncio.timeout(10):
        while not services.backfills.watchers:  # noqa: ASYNC110 - the fake tells only when nobody watches any more
            await asyncio.sleep(0.005)


async def test_a_dry_run_shows_the_plan_and_makes_nothing(
    services: Services, capsys: Captured, monkeypatch: pytest.MonkeyPatch
):
    gaps = RangeSet((START_MS + n * DAY_MS, START_MS + n * DAY_MS + HOUR_MS) for n in range(5))
    first_bar = TimeRange(START_MS - 9 * DAY_MS, START_MS)

    async def plan(request: BackfillRequest) -> Plan:
        symbols = (
            SymbolPlan("BTC/USDT", gaps, tuple(gaps)),
            SymbolPlan("ETH/USDT", RangeSet(), (), first_bar),
            SymbolPlan("SPY", RangeSet(), ()),
        )
        return Plan(request, symbols, (error("NOPE", attempts=0)._replace(range=None),), calls=15, estimated_s=7500)

    monkeypatch.setattr(services.backfills, "plan", plan)
    # Whoever runs the tests may be on a narrow terminal.
    monkeypatch.delenv("COLUMNS", raising=False)
    assert await run(*NEW, "--end", str(START_MS + 5 * DAY_MS), "--dry-run") == 0
    out, err = capsys.readouterr()
    assert err == "left out: NOPE: gone\n"
    assert "test/fake, 2022-12-13 00:00 to 2022-12-18 00:00 UTC" in out
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert lines == [
        ["BTC/USDT", "2022-12-17 00:00 to 2022-12-17 01:00", "5", "300", "5"],
        ["", "2022-12-16 00:00 to 2022-12-16 01:00", "", "", ""],
        ["", "2022-12-15 00:00 to 2022-12-15 01:00", "", "", ""],
        ["", "... and 2 earlier", "", "", ""],
        ["ETH/USDT", "its first bar is looked for first", "0", "0", "1"],
        ["SPY", "none", "0", "0", "0"],
    ]
    assert out.endswith(
        "300 missing minutes in 6 chunks, at most 15 upstream calls: about 2 hours 5 minutes. Nothing was begun.\n"
    )
    assert await services.backfills.jobs() == []


async def test_a_dry_run_of_what_is_complete_says_so(
    services: Services, capsys: Captured, monkeypatch: pytest.MonkeyPatch
):
    async def plan(request: BackfillRequest) -> Plan:
        return Plan(request, (SymbolPlan("BTC/USDT", RangeSet(), ()),), (), calls=0, estimated_s=0)

    monkeypatch.setattr(services.backfills, "plan", plan)
    assert await run(*NEW, "--dry-run") == 0
    assert capsys.readouterr().out.endswith("Nothing is missing.\n")


async def test_a_plan_and_jobs_are_had_as_json(services: Services, capsys: Captured):
    assert await run(*NEW, "--end", str(START_MS + DAY_MS), "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["dry_run"], plan["minutes"], plan["symbols"][0]["symbol"]) == (True, 1440, "BTC/USDT")
    await put(services, job())
    assert await run("list", "--json") == 0
    (listed,) = json.loads(capsys.readouterr().out)["backfills"]
    assert await run("show", "12", "--json") == 0
    assert json.loads(capsys.readouterr().out) == listed
    assert (listed["id"], listed["progress"]["percent"]) == ("1234abcd-5678", 25.0)


async def test_the_list_has_a_line_a_job(services: Services, capsys: Captured):
    assert await run("list") == 0
    assert capsys.readouterr().out == "There are no backfills.\n"
    symbols = tuple(f"S{nth}" for nth in range(9))
    request = job().request._replace(symbols=symbols)
    await put(services, job(), job("feedbeef-1", request=request, progress=Progress(999, 0, 1000, 5, None)))
    assert await run("list") == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == 2
    assert lines[0].startswith("feedbeef ")
    assert "test/fake S0, S1, S2 and 6 more" in lines[0]
    assert "99.9 %" in lines[0]
    assert "1234abcd" in lines[1]
    assert await run("list", "--limit", "1") == 0
    assert "1234abcd" not in capsys.readouterr().out


async def test_a_job_is_shown_in_full(services: Services, capsys: Captured):
    await put(services, job(errors=(error(),), error_count=3))
    assert await run("show", "1234") == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "id        1234abcd-5678",
        "state     running: 1 of 4 chunks done, 100 bars written",
        "origin    operator",
        "provider  test/fake",
        "symbols   BTC/USDT",
        "range     2022-12-13 00:00:00 to 2022-12-14 00:00:00 UTC",
        "done      25.0 %",
        "left      about 1 minute 15 seconds",
        "made      2022-12-13 00:00:00 UTC",
        "started   2022-12-13 00:00:01 UTC",
        "problem   BTC/USDT, 2022-12-13 00:00 to 2022-12-13 01:00: gone (2 attempts)",
        "          ... and 2 more",
    ]
    assert "candlery backfill attach 1234abcd" in err


async def test_jobs_are_steered_by_the_beginning_of_their_id(services: Services, capsys: Captured):
    await put(services, job("aaaa1111-22"), job("aabb1111-22"))
    for action, state in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
        assert await run(action, "aaaa") == 0
        out, err = capsys.readouterr()
        assert out == f"Backfill aaaa1111 is {state}: 1 of 4 chunks done, 100 bars written.\n"
        assert ("candlery backfill attach aaaa1111" in err) == (action == "resume")
    await services.backfills.move("aaaa1111-22", state=JobState.FAILED)
    assert await run("retry", "AAAA") == 0
    assert "is queued" in capsys.readouterr().out
    assert (await services.backfills.job("aabb1111-22")).state is JobState.RUNNING


async def test_a_paused_job_says_how_it_goes_on(services: Services, capsys: Captured):
    await put(services, job(state=JobState.PAUSED))
    assert await run("show", "1234") == 0
    assert "It rests until `candlery backfill resume 1234abcd`." in capsys.readouterr().err


async def test_an_id_is_found_by_a_beginning_that_no_other_has():
    services = Services()
    await put(services, job("abc-1"), job("abd-2"))
    backfills = services.backfills
    assert (await find(backfills, " ABC ")).id == "abc-1"  # type: ignore[arg-type]
    with pytest.raises(InvalidParameterError, match="Several backfills begin with 'ab': abd-2, abc-1"):
        await find(backfills, "ab")  # type: ignore[arg-type]
    for nothing in ("x", ""):
        with pytest.raises(NotFoundError):
            await find(backfills, nothing)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "the following arguments are required: --market, --provider, --symbol, --start (or an ACTION)"),
        (["--market", "test", "--symbol", "X"], "are required: --provider, --start"),
        ([*NEW, "list"], "list takes none of the arguments that a new job takes"),
        (["--dry-run", "show", "x"], "show takes none"),
        ([*NEW, "--json"], "--json goes with --dry-run"),
        ([*NEW, "--wait", "--no-wait"], "not allowed with argument --wait"),
        ([*NEW, "--wait", "--dry-run"], "not allowed with argument --wait"),
        (["show"], "the following arguments are required: ID"),
        (["list", "--limit", "0"], "is no whole number from 1 to 1000"),
        (["fly"], "invalid choice: 'fly'"),
    ],
)
def test_wrong_usage_is_told(args: list[str], says: str, capsys: Captured):
    with pytest.raises(SystemExit) as ended:
        cli.main(["backfill", *args])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_the_help_names_the_exit_codes(capsys: Captured):
    with pytest.raises(SystemExit):
        cli.main(["backfill", "--help"])
    assert "130 detached by Ctrl-C" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "less than a second"),
        (1, "1 second"),
        (59.1, "1 minute"),
        (61, "1 minute 1 second"),
        (3599.5, "1 hour"),
        (3661, "1 hour 2 minutes"),
        (86_399, "24 hours"),
        (86_401, "1 day 1 hour"),
        (864_000, "10 days"),
    ],
)
def test_durations_are_told_in_words(seconds: float, words: str):
    assert duration(seconds) == words


def test_counts_agree_with_their_noun():
    assert [counted(n, "chunk") for n in (0, 1, 2000)] == ["0 chunks", "1 chunk", "2,000 chunks"]
