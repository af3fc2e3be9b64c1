"""The web servers that the product can be run on, and the loop that they run on in production.

A module whose tests are about the server imports `each_server`, and has its tests run on each of them.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping

import pytest

from app_extensions.event_loop import new_event_loop

SERVERS = ("hypercorn", "uvicorn")
_chosen = [SERVERS[0]]


@pytest.fixture(params=SERVERS)
def each_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The test is run once on each server."""
    _chosen.append(request.param)
    yield request.param
    _chosen.pop()


def chosen_server() -> str:
    """The server that the test which runs now is to start."""
    return _chosen[-1]


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """A hook, for a conftest.py: tests with a server in their own process run on its loop."""
    has_server = hasattr(getattr(item, "module", None), "each_server")
    return {"production": new_event_loop} if has_server else {"python": asyncio.new_event_loop}
