"""The `candlery` command, as a process of its own, on an embedded database."""

import json
import re
import signal
from pathlib import Path

import pytest

from domain.timeframe import HOUR_MS, MINUTE_MS
from tests.commands.processes import DEMO, ROOT, ask, end, run, serving, start
from tests.services.test_importer import write_csv
from tests.support.market import START_MS, random_minutes
from tests.support.servers import each_server  # noqa: F401

FROM_FILE = ("--market", "crypto", "--provider", "binance", "--symbol", "FILE/USD")


async def test_bars_are_a_table_and_coverage_a_calendar(tmp_path: Path) -> None:
    when = ("--start", "2024-01-01", "--end", "2024-01-01T03:00Z")
    code, out, err = await run(tmp_path, "bars", *DEMO, *when, "--timeframe", "1h")
    assert (code, err) == (0, "")
    assert "simulated" in out
    assert [line for line in out.splitlines() if "2024-01-01 02:00:00" in line]
    code, out, err = await run(tmp_path, "coverage", *DEMO, *when)
    assert (code, err) == (0, "")
    assert "demo/sim/DEMO/USD 1m (simulated), 2024-01-01 00:00 to 2024-01-01 03:00 UTC" in out
    assert "2024-01-01 Mon ████████████" in out
    assert [line for line in out.splitlines() if "data" in line and "180 minutes  100.00 %" in line]
    assert "All of it is settled." in out
    code, out, _ = await run(tmp_path, "coverage", *DEMO, *when, "--table", PYTHONIOENCODING="ascii")
    assert code == 0
    assert [line for line in out.splitlines() if "2024-01-01 03:00:00" in line and "data" in line and "180" in line]


async def test_coverage_as_json_is_what_the_server_answers(tmp_path: Path) -> None:
    process, address = await serving(tmp_path)
    when = ("--start", "2024-03-09T23:00Z", "--end", "2024-03-10T01:00Z")
    series = ("--market", "demo", "--provider", "sim", "--symbol", "HEATH/USD")
    path = "market=demo&provider=sim&symbol=HEATH/USD&start=2024-03-09T23:00Z&end=2024-03-10T01:00Z"
    await ask(address, f"/api/v1/ohlcv?{path}")
    told = await ask(address, f"/api/v1/coverage?{path}")
    code, out, err = await run(tmp_path, "coverage", *series, *when, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == told
    assert {"data", "no_trades", "fetch_failed"} == set(told["summary"])  # type: ignore[call-overload]
    code, out, _ = await run(tmp_path, "coverage", *series, *when, COLUMNS="12", PYTHONIOENCODING="latin-1")
    assert code == 0
    assert "fetch_failed  60 minutes, asked 1 time, last at 20" in out
    assert "the simulated feed of HEATH/USD is down on this day of the week" in out
    assert await end(process, signal.SIGTERM) == 0


async def test_a_reader_who_stops_reading_is_no_fault(tmp_path: Path) -> None:
    await run(tmp_path, "migrate")
    process = await start(tmp_path, "coverage", *DEMO, "--start", "2024-01-01", "--end", "2024-01-02")
    assert process.stdout is not None
    process.stdout._transport.close()  # type: ignore[attr-defined]
    _, err = await process.communicate()
    assert err == b""
    assert process.returncode == 1


async def test_an_import_works_alone_and_beside_a_running_server_and_is_served_at_once(tmp_path: Path) -> None:
    bars = random_minutes(1, 120, holes=0)
    write_csv(tmp_path / "first.csv", bars[:60])
    write_csv(tmp_path / "second.csv", bars[60:], ["broken,row,in,the,file,!"])
    code, out, err = await run(tmp_path, "import", "first.csv", *FROM_FILE)
    assert code == 0, err
    assert "first.csv: 60 rows read, 60 bars written (0 corrected), 0 bad rows" in out
    process, address = await serving(tmp_path)
    path = f"/api/v1/ohlcv?market=crypto&provider=binance&symbol=FILE/USD&start={START_MS}&end={START_MS + HOUR_MS}"
    assert (await ask(address, path))["bars"] == [
        [bar.ts, bar.open, bar.high, bar.low, bar.close, bar.volume] for bar in bars[:60]
    ]
    code, out, err = await run(tmp_path, "import", "second.csv", "missing.csv", *FROM_FILE)
    assert code == 1
    assert "second.csv: 61 rows read, 60 bars written (0 corrected), 1 bad rows" in out
    assert "line 62" in out
    assert "missing.csv" in err
    both = path.replace(f"end={START_MS + HOUR_MS}", f"end={START_MS + 120 * MINUTE_MS}")
    answer = await ask(address, both)
    assert len(answer["bars"]) == 120  # type: ignore[arg-type]
    assert await end(process, signal.SIGTERM) == 0


@pytest.mark.usefixtures("each_server")
async def test_a_killed_server_starts_again_with_all_it_had(tmp_path: Path) -> None:
    path = "/api/v1/ohlcv?market=demo&provider=sim&symbol=AMBER/USD&start=2024-03-01&end=2024-03-02&limit=2000"
    process, address = await serving(tmp_path)
    first = await ask(address, path)
    assert first["sources"] == ["provider"]
    assert await end(process, signal.SIGKILL) == -signal.SIGKILL
    process, address = await serving(tmp_path)
    again = await ask(address, path)
    assert (again["bars"], again["sources"], again["coverage"]) == (first["bars"], ["database"], first["coverage"])
    assert await end(process, signal.SIGTERM) == 0


@pytest.mark.usefixtures("each_server")
async def test_a_second_server_on_the_folder_is_refused_in_a_line(tmp_path: Path) -> None:
    process, _ = await serving(tmp_path)
    code, _, err = await run(tmp_path, "serve")
    assert code == 1
    assert "in use by another Candlery server" in err
    assert "Traceback" not in err
    assert await end(process, signal.SIGTERM) == 0


async def test_migrate_says_what_it_found(tmp_path: Path) -> None:
    assert await run(tmp_path, "migrate") == (0, "The database is up to date (postgresql).\n", "")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["bars", *DEMO, "--timeframe", "7m"], "'7m' is not one of 1m, 3m"),
        (["bars", *DEMO, "--start", "yesterday"], "'yesterday' is not a time"),
        (["bars", *DEMO, "--limit", "0"], "is no whole number from 1 to 10000"),
        (["coverage", *DEMO], "--start"),
        (["fly"], "invalid choice: 'fly'"),
    ],
)
async def test_wrong_usage_is_told_and_ends_with_2(args: list[str], says: str, tmp_path: Path) -> None:
    code, _, err = await run(tmp_path, *args)
    assert code == 2
    assert says in err


async def test_unknown_names_and_wrong_settings_are_told_in_words(tmp_path: Path) -> None:
    code, _, err = await run(tmp_path, "bars", "--market", "demo", "--provider", "sim", "--symbol", "DEMO/EUR")
    assert code == 1
    assert "Did you mean DEMO/USD" in err
    code, _, err = await run(tmp_path, "migrate", CANDLERY_PORT="many", CANDLERY_LOG_LEVEL="loud")
    assert code == 1
    assert "CANDLERY_PORT" in err
    assert "CANDLERY_LOG_LEVEL" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["serve", "migrate", "import", "bars", "backfill", "coverage"])
async def test_every_command_explains_itself(command: str, tmp_path: Path) -> None:
    code, out, _ = await run(tmp_path, command, "--help")
    assert code == 0
    assert command in out


async def test_the_first_query_of_the_readme_gets_the_answer_that_stands_there(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"curl 'http://127\.0\.0\.1:8000(\S+)'\n(\{.*?\n)```", text, re.DOTALL)
    assert found is not None
    process, address = await serving(tmp_path)
    assert await ask(address, found[1]) == json.loads(found[2])
    assert await end(process, signal.SIGTERM) == 0


async def test_the_demo_market_shows_every_verdict(tmp_path: Path) -> None:
    """2024-03-10 was a Sunday."""
    process, address = await serving(tmp_path)
    found: dict[str, set[str]] = {}
    for symbol, since, until in (
        ("DEMO/USD", "2024-03-08", "2024-03-09"),
        ("AMBER/USD", "2024-03-08", "2024-03-09"),
        ("KELP/USD", "2024-03-08", "2024-03-09"),
        ("HEATH/USD", "2024-03-09", "2024-03-12"),
        ("HARBOR", "2024-03-08", "2024-03-09"),
        ("OPAL/USD", "2024-03-14", "2024-03-16"),
    ):
        series = f"market=demo&provider=sim&symbol={symbol}"
        await ask(address, f"/api/v1/ohlcv?{series}&start={since}&end={until}&limit=10000")
        coverage = await ask(address, f"/api/v1/coverage?{series}&start={since}&end={until}")
        found[symbol] = set(coverage["summary"])  # type: ignore[call-overload]
    before = await ask(
        address, "/api/v1/coverage?market=demo&provider=sim&symbol=DEMO/USD&start=2023-01-01&end=2023-01-02"
    )
    assert await end(process, signal.SIGTERM) == 0
    assert found == {
        "DEMO/USD": {"data"},
        "AMBER/USD": {"data", "no_trades"},
        "KELP/USD": {"data", "unconfirmed_empty"},
        "HEATH/USD": {"data", "no_trades", "fetch_failed"},
        "HARBOR": {"data", "closed_session"},
        "OPAL/USD": {"data", "no_trades", "not_listed"},
    }
    assert set(before["summary"]) == {"never_fetched"}  # type: ignore[call-overload]
