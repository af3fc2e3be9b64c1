"""The `candlery` command, as a process of its own, on an embedded database."""

import asyncio
import json
import os
import re
import signal
import sys
from pathlib import Path

import aiohttp
import pytest

from domain.timeframe import HOUR_MS, MINUTE_MS
from tests.services.test_importer import write_csv
from tests.support.market import START_MS, random_minutes

ROOT = Path(__file__).resolve().parents[1]
DEMO = ("--market", "demo", "--provider", "sim", "--symbol", "DEMO/USD")
FROM_FILE = ("--market", "crypto", "--provider", "binance", "--symbol", "FILE/USD")


def environment(folder: Path, **extra: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("CANDLERY_")}
    return {**plain, "CANDLERY_DATA_DIR": str(folder), "CANDLERY_PORT": "0", "COLUMNS": "200", **extra}


async def start(folder: Path, *args: str, **extra: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "cli.py"), *args),
        cwd=folder,
        env=environment(folder, **extra),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def run(folder: Path, *args: str, **extra: str) -> tuple[int, str, str]:
    process = await start(folder, *args, **extra)
    out, err = await asyncio.wait_for(process.communicate(), 90)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def serving(folder: Path) -> tuple[asyncio.subprocess.Process, str]:
    """A running server and its address."""
    process = await start(folder, "serve", CANDLERY_LOG_LEVEL="WARNING")
    assert process.stdout is not None
    line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
    assert "Candlery is ready: " in line, line
    return process, line.split()[-1]


async def ask(address: str, path: str) -> dict[str, object]:
    async with aiohttp.ClientSession() as session, session.get(f"{address}{path}") as response:
        assert response.status == 200, await response.text()
        return await response.json()  # type: ignore[no-any-return]


async def end(process: asyncio.subprocess.Process, number: signal.Signals) -> int:
    process.send_signal(number)
    await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode is not None
    return process.returncode


async def test_bars_and_coverage_print_tables(tmp_path: Path) -> None:
    when = ("--start", "2024-01-01", "--end", "2024-01-01T03:00Z")
    code, out, err = await run(tmp_path, "bars", *DEMO, *when, "--timeframe", "1h")
    assert (code, err) == (0, "")
    assert "simulated" in out
    assert [line for line in out.splitlines() if "2024-01-01 02:00:00" in line]
    code, out, err = await run(tmp_path, "coverage", *DEMO, *when)
    assert (code, err) == (0, "")
    assert [line for line in out.splitlines() if "data" in line and "180" in line]


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
        (["bars", *DEMO, "--limit", "0"], "invalid choice: 0"),
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


@pytest.mark.parametrize("command", ["serve", "migrate", "import", "bars", "coverage"])
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
