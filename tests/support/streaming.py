"""The stream on the real server in this process, with live bars that a test makes up."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp

from app_extensions import server
from blueprints.stream_hub import StreamHub
from domain.bar import Bar
from domain.errors import UnknownSymbolError
from domain.series import Series
from domain.timeframe import Timeframe
from services.live import (
    BarEvent,
    BarState,
    CaughtUpEvent,
    FeedState,
    LiveEvent,
    LiveQuery,
    Sink,
    SnapshotEvent,
    SubscribedEvent,
)
from services.subscription_service import SeriesOverview
from tests.fakes import FakeServices
from tests.support.servers import chosen_server

SERIES = {"market": "test", "provider": "fake", "symbol": "BTC/USDT"}
ANSWER_S = 20


class FakeSubscription:
    """Tells as many parts of a snapshot as the service says, then what the test tells."""

    def __init__(self, service: "FakeSubscriptions", query: LiveQuery, sink: Sink) -> None:
        self.service, self.query, self.sink = service, query, sink
        self.closed = False
        self.parts_told = 0

    async def run(self) -> None:
        self.sink.tell(SubscribedEvent())
        for part in self.service.parts:
            await self.sink.room()
            self.sink.tell(SnapshotEvent(list(part)))
            self.parts_told += 1
        if self.service.run_error is not None:
            raise self.service.run_error
        self.sink.tell(CaughtUpEvent())
        self.service.live.append(self)

    def close(self) -> None:
        self.closed = True
        self.service.closed.append(self)
        if self in self.service.live:
            self.service.live.remove(self)


class FakeSubscriptions:
    """What `SubscriptionService` is to the edge."""

    def __init__(self) -> None:
        self.made: list[FakeSubscription] = []
        self.live: list[FakeSubscription] = []
        self.closed: list[FakeSubscription] = []
        self.parts: list[list[Bar]] = []
        self.error: Exception | None = None
        self.run_error: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.opening = self.most_opening = 0

    async def subscribe(self, query: LiveQuery, sink: Sink) -> FakeSubscription:
        self.opening += 1
        self.most_opening = max(self.opening, self.most_opening)
        try:
            return await self._subscribe(query, sink)
        finally:
            self.opening -= 1

    async def _subscribe(self, query: LiveQuery, sink: Sink) -> FakeSubscription:
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        if query.series.symbol != "BTC/USDT":
            raise UnknownSymbolError(f"There is no symbol {query.series.symbol!r}.")
        self.made.append(FakeSubscription(self, query, sink))
        return self.made[-1]

    def tell(self, event: LiveEvent) -> None:
        """To every live subscription, as a series' channel does."""
        for one in tuple(self.live):
            one.sink.tell(event)

    def overview(self) -> list[SeriesOverview]:
        series = Series("test", "fake", "BTC/USDT")
        return [SeriesOverview(series, FeedState.DOWN, "away", True, {Timeframe.M1: len(self.live)}, 60_000, None)]


def a_bar(ts: int, state: BarState = BarState.CLOSED, *, close: float = 1.5, venue_ms: int | None = None) -> BarEvent:
    return BarEvent(Bar(ts, 1.0, 2.0, 0.5, close, 10.0), state, venue_ms)


class StreamServer:
    """A server that is ready."""

    def __init__(self, port: int, hub: StreamHub, services: FakeServices, stop: asyncio.Event) -> None:
        self.port, self.hub, self.services, self.stop = port, hub, services, stop
        self.subscriptions: FakeSubscriptions = services.subscriptions  # type: ignore[attr-defined]
        self.ended = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def serving(*, heartbeat_s: float | None = None, **settings: Any) -> AsyncIterator[StreamServer]:
    """The product's own server on fakes."""
    services = FakeServices(**{"server": chosen_server()} | settings)
    services.subscriptions = FakeSubscriptions()  # type: ignore[attr-defined]
    found: list[StreamHub] = []
    make = server.create_app

    def create(*args: Any) -> Any:
        app = make(*args)
        hub = app.extensions[server.STREAM]
        if heartbeat_s is not None:
            hub.tick_s = heartbeat_s / 15
        found.append(hub)
        return app

    listening = server.bind("127.0.0.1", 0)
    port, stop = listening[0].getsockname()[1], asyncio.Event()
    server.create_app = create  # type: ignore[assignment]
    try:
        running = asyncio.create_task(server.serve_app(services.config, services, listening, stop))  # type: ignore[arg-type]
        await answers(port, running)
        one = StreamServer(port, found[0], services, stop)
        running.add_done_callback(lambda _: one.ended.set())
        yield one
        stop.set()
        async with asyncio.timeout(ANSWER_S):
            await running
    finally:
        server.create_app = make  # type: ignore[assignment]
        stop.set()
        with suppress(Exception):
            await running
        asyncio.get_running_loop().set_exception_handler(None)


async def answers(port: int, running: asyncio.Task[None]) -> None:
    """Wait until the server takes connections."""
    async with asyncio.timeout(ANSWER_S):
        while not running.done():
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)
                continue
            writer.close()
            return
    await running


class Socket:
    """One client, as most users would write it."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws

    async def say(self, **message: Any) -> None:
        await self.ws.send_str(json.dumps(message))

    async def hear(self) -> dict[str, Any]:
        """The next message that is no heartbeat."""
        while True:
            async with asyncio.timeout(ANSWER_S):
                got = await self.ws.receive()
            assert got.type is aiohttp.WSMsgType.TEXT, got
            message: dict[str, Any] = json.loads(got.data)
            if message["type"] != "heartbeat":
                return message

    async def hear_until(self, kind: str) -> list[dict[str, Any]]:
        heard = [await self.hear()]
        while heard[-1]["type"] != kind:
            heard.append(await self.hear())
        return heard

    async def ask(self, **message: Any) -> dict[str, Any]:
        await self.say(**message)
        return await self.hear()

    async def subscribe(self, subscription_id: str = "a", **more: Any) -> list[dict[str, Any]]:
        """All messages up to the one that says it is live."""
        await self.say(**{"op": "subscribe", "id": subscription_id, **SERIES, "timeframe": "1m", **more})
        return await self.hear_until("live")

    async def closing_code(self) -> int | None:
        """Read on to the end; the code that the server gave."""
        async with asyncio.timeout(ANSWER_S):
            while True:
                got = await self.ws.receive()
                if got.type not in {aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY}:
                    return self.ws.close_code


@asynccontextmanager
async def connected(server: StreamServer, **options: Any) -> AsyncIterator[Socket]:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{server.url}/api/v1/stream", **options) as ws,
    ):
        yield Socket(ws)


async def until(condition: Any, *, timeout_s: float = ANSWER_S) -> None:
    """Wait for a condition that nothing tells of."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
