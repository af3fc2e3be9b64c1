"""Background chores: repeated, outliving their failures, and ended within a deadline."""

import asyncio
import logging

import pytest

from app_extensions.supervisor import Supervisor


async def test_a_chore_is_repeated_and_a_failure_is_logged_and_outlived(caplog: pytest.LogCaptureFixture) -> None:
    runs: list[int] = []
    enough = asyncio.Event()

    async def chore() -> None:
        runs.append(len(runs))
        if len(runs) == 1:
            raise ValueError("the first one fails")
        if len(runs) == 3:
            enough.set()

    supervisor = Supervisor()
    supervisor.every(0.001, "count", chore)
    await asyncio.wait_for(enough.wait(), 5)
    await supervisor.close()
    assert "count failed" in caplog.text
    assert "the first one fails" in caplog.text


async def test_closing_ends_every_chore_and_names_one_that_will_not_end(caplog: pytest.LogCaptureFixture) -> None:
    begun = asyncio.Event()

    async def stubborn() -> None:
        begun.set()
        while True:
            try:
                await asyncio.sleep(0.3)
            except asyncio.CancelledError:
                await asyncio.sleep(0.2)
                raise

    supervisor = Supervisor(stop_timeout_s=0.05)
    supervisor.every(1, "stubborn", stubborn)
    await begun.wait()
    with caplog.at_level(logging.ERROR):
        await supervisor.close()
    assert "stubborn did not end in time" in caplog.text
    left = {task for task in asyncio.all_tasks() if task.get_name() == "stubborn"}
    assert len(left) == 1
    await asyncio.wait(left, timeout=20)
    assert all(task.cancelled() for task in left)


async def test_a_chore_that_is_woken_runs_at_once() -> None:
    ran, woken = asyncio.Queue[None](), asyncio.Event()

    async def chore() -> None:
        ran.put_nowait(None)

    supervisor = Supervisor()
    supervisor.every(3600, "seldom", chore, woken=woken)
    for _ in range(3):
        await asyncio.wait_for(ran.get(), 5)
        woken.set()
    await supervisor.close()
