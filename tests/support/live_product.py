"""The whole product with its server in this process, and clients of its stream that judge what they are told."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp
import pytest

from app_extensions import server, wiring
from app_extensions.wiring import Services, running_services
from config import load_config
from domain.bar import Bar, fold
from domain.clock import Clock
from domain.series import Series, Verdict
from domain.time_range import TimeRange
from domain.timeframe import Timeframe
from services import feed as feed_module
from services import live_channel
from services.live import (
    BarEvent,
    BarState,
    CaughtUpEvent,
    FeedState,
    GapEvent,
    LiveEvent,
    SnapshotEvent,
    StatusEvent,
    SubscribedEvent,
)
from services.subscription_service import SeriesOverview
from services.subscription_worker import SubscriptionWorker
from services.upstream import WorkerTiming
from tests.support.live_client import LiveClient
from tests.support.servers import chosen_server
from tests.support.streaming import answers

PATIENCE_S = 20.0
#: For a clock that runs many times as fast as the one on the wall: pauses are short, and what is late may be later.
HASTY = WorkerTiming(
    grace_ms=30_000,
    spread_ms=0,
    mute_ms=120_000,
    presume_ms=60_000,
    backoff_s=0.02,
    backoff_limit_s=0.2,
    stable_s=0.5,
    ask_backoff_s=0.02,
    ask_backoff_limit_s=0.2,
    poll_s=0.02,
    database_backoff_s=0.02,
    look_s=0.03,
)


@dataclass(frozen=True)
class LiveProduct:
    """A server that is ready."""

    services: Services
    url: str

    def overview(self, series: Series) -> SeriesOverview | None:
        """How a series stands that is live."""
        return next((one for one in self.services.subscriptions.overview() if one.series == series), None)

    def settled_ms(self, series: Series) -> int:
        """Every minute before is closed."""
        one = self.overview(series)
        return one.settled_ms or 0 if one is not None else 0

    def state(self, series: Series) -> FeedState | None:
        one = self.overview(series)
        return None if one is None else one.state

    async def get(self, path: str, **params: Any) -> dict[str, Any]:
        """The JSON that a path under `/api/v1` answers."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/api/v1/{path}", params=params) as got:
            answer: dict[str, Any] = await got.json()
            assert got.status == 200, answer
            return answer

    async def minutes_by_verdict(self, series: Series, wanted: TimeRange) -> dict[Verdict, set[int]]:
        """What the server says of each minute of a range; the parts must tile it."""
        answer = await self.get("coverage", **series._asdict(), start=wanted.start_ms, end=wanted.end_ms)
        found: dict[Verdict, set[int]] = {}
        at_ms = wanted.start_ms
        for part in answer["ranges"]:
            assert part["start"] == at_ms
            at_ms = part["end"]
            found.setdefault(Verdict(part["verdict"]), set()).update(range(part["start"], at_ms, 60_000))
        assert at_ms == wanted.end_ms
        return found

    async def stored(self, series: Series, wanted: TimeRange) -> list[Bar]:
        """The minutes of the store itself."""
        found = await self.services.store.find_series(series)
        assert found is not None
        return await self.services.store.read(found.id, Timeframe.M1, wanted)


def be_hasty(monkeypatch: pytest.MonkeyPatch, timing: WorkerTiming = HASTY) -> None:
    """Let the followers of series be as patient as is said; calls to providers are repeated soon."""
    monkeypatch.setattr(feed_module, "_BACKOFF", lambda _: 0.005)
    monkeypatch.setattr(live_channel, "BEGIN_S", 0.05)
    monkeypatch.setattr(wiring, "SubscriptionWorker", partial(SubscriptionWorker, timing=timing))


@asynccontextmanager
async def live_product(database_url: str, clock: Clock, **settings: str) -> AsyncIterator[LiveProduct]:
    """The product on a database; settings without their prefix, in lower case."""
    environ = {
        "CANDLERY_ENV": "testing",
        "CANDLERY_DATABASE_URL": database_url,
        "CANDLERY_SERVER": chosen_server(),
        "CANDLERY_PROVIDER_TIMEOUT_S": "2",
        **{f"CANDLERY_{name.upper()}": value for name, value in settings.items()},
    }
    config = load_config(environ, env_file=None)
    async with running_services(config, clock=clock) as services:
        listening = server.bind("127.0.0.1", 0)
        port, stop = listening[0].getsockname()[1], asyncio.Event()
        running = asyncio.create_task(server.serve_app(config, services, listening, stop))
        try:
            await answers(port, running)
            yield LiveProduct(services, f"http://127.0.0.1:{port}")
            stop.set()
            async with asyncio.timeout(PATIENCE_S):
                await running
        finally:
            stop.set()
            with suppress(Exception):
                await running
            asyncio.get_running_loop().set_exception_handler(None)


class Watcher(LiveClient):
    """One subscription on a socket of its own, from `watching()` on."""

    def __init__(self, timeframe: Timeframe, *, since_ms: int | None = None, last: int | None = None) -> None:
        super().__init__()
        self.timeframe, self.since_ms, self.last = timeframe, since_ms, last
        self.errors: list[dict[str, Any]] = []
        self.snapshot: list[Bar] = []
        self.closing_code: int | None = None

    @property
    def from_ms(self) -> int | None:
        """From when on it is to have every bar; None: nobody can say yet."""
        if self.since_ms is not None:
            return self.timeframe.ceil(self.since_ms)
        return self.closed[0].ts if self.closed else None

    @property
    def view(self) -> list[Bar]:
        """The closed bars as the client has them now, those included that came late."""
        from_ms = self.from_ms
        if from_ms is None:
            return []
        bars = {bar.ts: bar for bar in self.closed}
        bars.update((bar.ts, bar) for bar in self.corrected if bar.ts >= from_ms)
        return [bars[ts] for ts in sorted(bars)]

    def has(self, truth: list[Bar], end_ms: int) -> bool:
        """Whether it has every bar of these minutes that is closed at an instant, as it is, and no other."""
        return self.view == self.expected(truth, end_ms)

    def expected(self, truth: list[Bar], end_ms: int) -> list[Bar]:
        """What it is to have at an instant."""
        from_ms, closed_ms = self.from_ms, self.timeframe.floor(end_ms)
        if from_ms is None:
            return []
        return [bar for bar in fold(truth, self.timeframe) if from_ms <= bar.ts < closed_ms]

    def difference(self, truth: list[Bar], end_ms: int) -> str:
        """What is wrong with its bars, in words."""
        view, expected = ({bar.ts: bar for bar in bars} for bars in (self.view, self.expected(truth, end_ms)))
        wrong = {ts: (view.get(ts), expected.get(ts)) for ts in view.keys() | expected.keys()}
        wrong = {ts: pair for ts, pair in sorted(wrong.items()) if pair[0] != pair[1]}
        wish = f"since {self.since_ms} last {self.last}"
        shown = "".join(f"\n  {ts}: told {told}, truth {true}" for ts, (told, true) in wrong.items())
        return f"{self.timeframe.value} {wish}, {len(view)} bars, corrected {len(self.corrected)}:{shown or ' right'}"

    async def listen(self, ws: aiohttp.ClientWebSocketResponse, series: Series) -> None:
        """Subscribe, and take everything until the socket ends."""
        ask = {"op": "subscribe", "id": "w", **series._asdict(), "timeframe": self.timeframe.value}
        await ws.send_json({**ask, "since": self.since_ms, "last": self.last})
        async for got in ws:
            assert got.type is aiohttp.WSMsgType.TEXT
            message = json.loads(got.data)
            if message["type"] == "error":
                self.errors.append(message)
            elif (event := _event(message)) is not None:
                if isinstance(event, SnapshotEvent):
                    self.snapshot += event.bars
                self.tell(event)
        self.closing_code = ws.close_code


def _event(message: Mapping[str, Any]) -> LiveEvent | None:
    kind = message["type"]
    if kind == "bar":
        return BarEvent(Bar(*message["bar"]), BarState(message["state"]))
    if kind == "snapshot":
        return SnapshotEvent([Bar(*row) for row in message["bars"]])
    if kind == "gap":
        return GapEvent(TimeRange(message["start"], message["end"]), Verdict(message["verdict"]))
    if kind == "status":
        return StatusEvent(FeedState(message["state"]), message["detail"])
    return {"subscribed": SubscribedEvent, "live": CaughtUpEvent}.get(kind, lambda: None)()


@asynccontextmanager
async def watching(
    product: LiveProduct,
    series: Series,
    timeframe: Timeframe = Timeframe.M1,
    *,
    since_ms: int | None = None,
    last: int | None = None,
    until_live: bool = True,
) -> AsyncIterator[Watcher]:
    """A client that listens for the block."""
    watcher = Watcher(timeframe, since_ms=since_ms, last=last)
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{product.url}/api/v1/stream", max_msg_size=0) as ws,
    ):
        listening = asyncio.create_task(watcher.listen(ws, series), name=f"watch {series} {timeframe.value}")
        try:
            if until_live:
                await until(lambda: watcher.is_live or bool(watcher.errors))
                assert watcher.errors == []
            yield watcher
        finally:
            await ws.close()
            await listening


async def until(
    condition: Callable[[], bool],
    *,
    step: Callable[[], Awaitable[None]] | None = None,
    why: Callable[[], str] = lambda: "it did not come about in time",
) -> None:
    """Wait for a condition that nothing tells of; do a step between two looks."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + PATIENCE_S
    while not condition():
        assert loop.time() < end_s, why()
        if step is not None:
            await step()
        await asyncio.sleep(0.01)
