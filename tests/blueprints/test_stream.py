"""The stream's protocol, over the real server."""

from collections.abc import AsyncIterator

import pytest

from domain.bar import Bar
from services.live import BarState
from tests.support.streaming import SERIES, StreamServer, a_bar, connected, serving, until


@pytest.fixture
async def server() -> AsyncIterator[StreamServer]:
    async with serving() as one:
        yield one


async def test_a_subscription_is_confirmed_then_what_was_before_then_live_then_bars(server: StreamServer):
    server.subscriptions.parts = [[Bar(0, 1, 2, 0.5, 1.5, 10)], [Bar(60_000, 1, 2, 0.5, 1.5, 10)]]
    async with connected(server) as socket:
        heard = await socket.subscribe()
        assert heard == [
            {"id": "a", "type": "subscribed", **SERIES, "timeframe": "1m"},
            {"id": "a", "type": "snapshot", "bars": [[0, 1.0, 2.0, 0.5, 1.5, 10.0]]},
            {"id": "a", "type": "snapshot", "bars": [[60_000, 1.0, 2.0, 0.5, 1.5, 10.0]]},
            {"id": "a", "type": "live"},
        ]
        server.subscriptions.tell(a_bar(120_000, BarState.FORMING))
        assert await socket.hear() == {
            "id": "a", "type": "bar", "bar": [120_000, 1.0, 2.0, 0.5, 1.5, 10.0], "state": "forming"
        }
    await until(lambda: not server.hub.connections)
    assert server.subscriptions.made[0].closed
