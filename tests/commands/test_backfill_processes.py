"""`candlery backfill` as a process: alone, beside a server, detached, killed, and taken up again."""

import asyncio
import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from select import select

import pytest

from domain.timeframe import DAY_MS, MINUTE_MS
from tests.commands.processes import (
    DEMO,
    DEMO_MARKET,
    PATIENCE_S,
    ask,
    command,
    end,
    environment,
    line_of,
    outcome,
    run,
    serving,
    start,
)

#: Some of these take half a minute on a small machine; a slow one needs its time.
pytestmark = pytest.mark.timeout(400)

DAY = ("--start", "2024-01-01", "--end", "2024-01-02")
#: 106 chunks, enough to be caught in the middle.
TWO_YEARS = ("--start", "2020-01-01", "--end", "2022-01-01")
YEAR = ("--start", "2021-01-01", "--end", "2022-01-01")
TWO_YEARS_MINUTES = 731 * DAY_MS // MINUTE_MS


async def coverage(folder: Path, *when: str) -> dict[str, int]:
    code, out, err = await run(folder, "coverage", *DEMO, *when, "--json")
    assert code == 0, err
    summary: dict[str, int] = json.loads(out)["summary"]
    return summary


async def shown(folder: Path, job_id: str) -> dict[str, object]:
    code, out, err = await run(folder, "backfill", "show", job_id[:8], "--json")
    assert code == 0, err
    return json.loads(out)  # type: ignore[no-any-return]


async def test_the_command_alone_does_the_job_and_leaves_out_bad_symbols(tmp_path: Path) -> None:
    code, out, err = await run(tmp_path, "backfill", *DEMO, *DAY, "--dry-run")
    assert (code, err) == (0, "")
    assert "1,440 missing minutes in 1 chunk, at most 1 upstream call: about 1 second." in out
    code, out, err = await run(tmp_path, "backfill", *DEMO, *DAY, "--wait")
    assert (code, err) == (0, "")
    assert "this command does, for as long as it is attached" in out
    assert "is done: 1 of 1 chunk done, 1,440 bars written" in out
    assert await coverage(tmp_path, *DAY) == {"data": 1440}
    code, out, err = await run(tmp_path, "backfill", *DEMO, "--symbol", "NOPE", *DAY, "--wait")
    assert code == 1
    assert err.count("NOPE: sim lists no symbol 'NOPE'.") == 2
    code, out, err = await run(tmp_path, "backfill", *DEMO_MARKET, "--symbol", "NOPE", *DAY)
    assert (code, out) == (1, "")
    assert "candlery: sim lists no symbol 'NOPE'." in err


async def test_what_nobody_works_on_waits_for_a_server(tmp_path: Path) -> None:
    code, out, err = await run(tmp_path, "backfill", *DEMO, *DAY)
    assert code == 0
    job_id = out.strip()
    assert err == (
        "Nobody works on it now: it waits until `candlery serve` runs, or until you attach: "
        f"candlery backfill attach {job_id[:8]}\n"
    )
    process, address = await serving(tmp_path)
    code, out, err = await run(tmp_path, "backfill", "attach", job_id[:8])
    assert (code, err) == (0, "")
    assert "this command" not in out
    job = await ask(address, f"/api/v1/backfills/{job_id}")
    assert job["state"] == "done"
    assert await shown(tmp_path, job_id) == job
    assert await end(process, signal.SIGTERM) == 0


async def test_beside_a_server_the_command_follows_and_leaves_the_work_to_it(tmp_path: Path) -> None:
    process, address = await serving(tmp_path)
    code, out, err = await run(tmp_path, "backfill", *DEMO, *DAY, "--wait")
    assert (code, err) == (0, "")
    assert "this command" not in out
    assert "is done: 1 of 1 chunk done, 1,440 bars written" in out
    path = "/api/v1/ohlcv?market=demo&provider=sim&symbol=DEMO/USD&start=2024-01-01&end=2024-01-02&limit=2000"
    answer = await ask(address, path)
    assert (len(answer["bars"]), answer["sources"]) == (1440, ["database"])  # type: ignore[arg-type]
    assert await end(process, signal.SIGTERM) == 0


async def test_a_job_can_be_paused_resumed_and_cancelled_by_another_command(tmp_path: Path) -> None:
    code, out, _ = await run(tmp_path, "backfill", *DEMO, *TWO_YEARS, "--no-wait")
    assert code == 0
    job_id = out.strip()
    for action, state in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
        code, out, err = await run(tmp_path, "backfill", action, job_id[:6])
        assert code == 0, err
        assert f"is {state}: 0 of 106 chunks done" in out
    code, out, err = await run(tmp_path, "backfill", "resume", job_id)
    assert code == 1
    assert err == "candlery: The backfill is cancelled; only one that is paused can be resumed.\n"
    code, out, err = await run(tmp_path, "backfill", "attach", job_id)
    assert code == 1
    assert "is cancelled" in out
    code, out, err = await run(tmp_path, "backfill", "list")
    assert code == 0
    assert job_id[:8] in out


async def test_a_job_survives_detaching_and_the_kill_of_the_command_that_worked_on_it(tmp_path: Path) -> None:
    process = await start(tmp_path, "backfill", *DEMO, *TWO_YEARS, "--wait")
    job_id = (await line_of(process)).strip()
    await line_of(process, with_words="running")
    process.send_signal(signal.SIGINT)
    code, _, err = await outcome(process)
    assert code == 130
    assert err == (
        f"Detached from backfill {job_id[:8]}.\nNobody works on it now: it waits until `candlery serve` runs, or until "
        f"you attach: candlery backfill attach {job_id[:8]}\n"
    )
    assert (await shown(tmp_path, job_id))["state"] == "running"
    process = await start(tmp_path, "backfill", "attach", job_id[:8])
    await line_of(process, with_words="this command does")
    assert await end(process, signal.SIGKILL) == -signal.SIGKILL
    # For 15 s the dead one counts as at work.
    code, out, err = await run(tmp_path, "backfill", "attach", job_id[:8])
    assert (code, err) == (0, "")
    assert "this command does" in out
    assert f"is done: 106 of 106 chunks done, {TWO_YEARS_MINUTES:,} bars written" in out
    assert await coverage(tmp_path, *TWO_YEARS) == {"data": TWO_YEARS_MINUTES}


async def test_the_command_stays_attached_while_a_killed_server_is_started_again(tmp_path: Path) -> None:
    server, _ = await serving(tmp_path)
    process = await start(tmp_path, "backfill", *DEMO, *YEAR, "--wait")
    await line_of(process, with_words="running")
    assert await end(server, signal.SIGKILL) == -signal.SIGKILL
    await line_of(process, with_words="The database is away; it is waited for.")
    server, _ = await serving(tmp_path)
    code, out, err = await outcome(process)
    assert code == 0, err
    assert "Traceback" not in err
    assert "is done: 53 of 53 chunks done" in out
    assert await end(server, signal.SIGTERM) == 0
    assert await coverage(tmp_path, *YEAR) == {"data": 365 * DAY_MS // MINUTE_MS}


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, folder: Path, *args: str, **extra: str) -> None:
        self._master, slave = pty.openpty()
        variables = {"TERM": "xterm", "COLUMNS": "110", "LINES": "30", **extra}
        self._process = subprocess.Popen(
            command(*args), cwd=folder, env=environment(folder, **variables), stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)
        self.text = ""

    def read_until(self, words: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while words not in self.text:
            assert time.monotonic() < deadline, self.text
            assert self._read(), self.text

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def end(self) -> int:
        deadline = time.monotonic() + PATIENCE_S
        while self._read():
            assert time.monotonic() < deadline, self.text
        return self._process.wait(10)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)
        os.close(self._master)

    def _read(self) -> bool:
        """Whether more may come."""
        if not select([self._master], [], [], 1)[0]:
            return True
        try:
            read = os.read(self._master, 65536)
        except OSError:
            # Linux says so when the last writer is gone.
            return False
        self.text += read.decode(errors="replace").replace("\r\n", "\n")
        return bool(read)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


async def test_on_a_terminal_the_job_is_followed_with_a_live_bar(tmp_path: Path, terminals: list[Terminal]) -> None:
    terminals.append(first := Terminal(tmp_path, "backfill", *DEMO, *YEAR))
    await asyncio.to_thread(first.read_until, " bars")
    await asyncio.to_thread(first.read_until, "running")
    first.interrupt()
    assert await asyncio.to_thread(first.end) == 130
    assert "/53 chunks" in first.text
    job_id = first.text.split("\n", 1)[0]
    assert f"candlery backfill attach {job_id[:8]}\n" in first.text
    terminals.append(
        second := Terminal(tmp_path, "backfill", "attach", job_id[:8], TERM="dumb", PYTHONIOENCODING="ascii")
    )
    assert await asyncio.to_thread(second.end) == 0
    assert "\x1b" not in second.text
    assert f"Backfill {job_id[:8]} is done: 53 of 53 chunks done" in second.text
    terminals.append(third := Terminal(tmp_path, "backfill", *DEMO, *YEAR))
    assert await asyncio.to_thread(third.end) == 0
    assert "is done: nothing was missing.\n" in third.text
