"""The server's loop."""

import asyncio
import sys

import pytest

from app_extensions import event_loop


async def kind_of_loop() -> str:
    await asyncio.sleep(0)
    return type(asyncio.get_running_loop()).__module__


@pytest.mark.skipif(sys.platform == "win32", reason="there is no uvloop for Windows")
def test_the_server_runs_on_uvloop():
    assert event_loop.run(kind_of_loop()) == "uvloop"


def test_without_uvloop_it_runs_on_pythons_own_loop(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert event_loop.run(kind_of_loop()).startswith("asyncio")


def test_a_failure_comes_out_as_it_is():
    async def fail() -> None:
        raise ValueError("so it is")

    with pytest.raises(ValueError, match="so it is"):
        event_loop.run(fail())
