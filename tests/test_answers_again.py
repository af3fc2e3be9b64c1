"""Two servers on one database give answers again from memory, and never one that a write has made false."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest

from app import create_app
from app_extensions.wiring import Services, running_services
from config import load_config
from domain.bar import Bar
from domain.packed import runs_of
from domain.series import Series
from domain.timeframe import MINUTE_MS, Timeframe
from tests.support.market import START_MS

SERIES = Series("demo", "sim", "DEMO/USD")
END_MS = START_MS + 200 * MINUTE_MS
QUERY = {"market": "demo", "provider": "sim", "symbol": "DEMO/USD", "start": START_MS, "end": END_MS}


class Server:
    """A server without its sockets, and how often it had to think."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.client = create_app(services.config, services).test_client()
        self.thought = 0
        answer = services.ohlcv.bars

        async def counted(query: Any) -> Any:
            self.thought += 1
            return await answer(query)

        services.ohlcv.bars = counted  # type: ignore[method-assign]

    async def bars(self, **query: Any) -> list[list[float]]:
        response = await self.client.get("/api/v1/ohlcv", query_string={**QUERY, **query})
        body = json.loads(await response.get_data())
        assert response.status_code == 200, body
        rows: list[list[float]] = body["bars"]
        return rows

    async def close_of(self, ts: int) -> float:
        return next(row[4] for row in await self.bars() if row[0] == ts)

    async def correct(self, bar: Bar) -> None:
        stored = await self.services.store.find_series(SERIES)
        assert stored is not None
        await self.services.store.record(
            stored.id, Timeframe.M1, bars=[bar], answered=runs_of([bar], Timeframe.M1), was_asked=False
        )

    async def hears(self) -> None:
        """Wait until it remembers."""
        stored = await self.services.store.find_series(SERIES)
        assert stored is not None

        async def does() -> bool:
            return self.services.revisions.holds(stored._replace(era=self.services.revisions.era).stamp)

        await until(does)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.01)


@pytest.fixture
async def servers(database_url: str) -> AsyncIterator[tuple[Server, Server]]:
    config = load_config({"CANDLERY_ENV": "testing", "CANDLERY_DATABASE_URL": database_url}, env_file=None)
    async with AsyncExitStack() as stack:
        one, two = [Server(await stack.enter_async_context(running_services(config))) for _ in range(2)]
        await one.bars()
        for server in (one, two):
            await server.hears()
            for _ in range(2):
                await server.bars()
        yield one, two


async def corrected(server: Server, minute: int, close: float) -> Bar:
    rows = await server.bars()
    bar = Bar(*rows[minute])  # type: ignore[arg-type]
    return msgspec.structs.replace(bar, ts=int(bar.ts), close=close, low=min(bar.low, close), high=max(bar.high, close))


async def test_an_answer_that_was_asked_for_twice_is_thought_of_no_more(servers: tuple[Server, Server]):
    for server in servers:
        before = server.thought
        answers = [await server.bars() for _ in range(5)]
        assert server.thought == before
        assert all(answer == answers[0] for answer in answers)
        assert len(answers[0]) == 200


async def test_whoever_writes_sees_it_at_once_and_others_soon(servers: tuple[Server, Server]):
    rng = random.Random(1)
    for number in range(30):
        writer, other = rng.sample(servers, 2)
        bar = await corrected(writer, rng.randrange(200), 1000.0 + number)
        await writer.correct(bar)
        assert await writer.close_of(bar.ts) == bar.close

        async def sees(other: Server = other, bar: Bar = bar) -> bool:
            return await other.close_of(bar.ts) == bar.close

        await until(sees)
        assert await writer.bars() == await other.bars()


async def test_readers_meanwhile_see_one_truth_or_the_next_and_no_mixture(servers: tuple[Server, Server]):
    """All bars are corrected together, in one write: no answer has some of the old and some of the new."""
    one, two = servers
    rows = await one.bars()
    stored = await one.services.store.find_series(SERIES)
    assert stored is not None
    done = asyncio.Event()

    async def read(server: Server) -> None:
        newest = 0.0
        while not done.is_set():
            volumes = {row[5] for row in await server.bars()}
            if newest or len(volumes) == 1:
                assert len(volumes) == 1, volumes
                assert max(volumes) >= newest
                newest = max(volumes)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for server in servers:
            group.create_task(read(server))
        for number in range(1, 21):
            bars = [Bar(int(row[0]), *row[1:5], float(number)) for row in rows]  # type: ignore[arg-type]
            await two.services.store.record(
                stored.id, Timeframe.M1, bars=bars, answered=runs_of(bars, Timeframe.M1), was_asked=False
            )
            await asyncio.sleep(0.01)
        done.set()


async def test_a_server_that_cannot_hear_looks_everything_up(servers: tuple[Server, Server]):
    one, two = servers
    async with one.services.database.connection() as db:
        await db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND query LIKE '%pg_notify%' AND pid <> pg_backend_pid()"
        )
    bar = await corrected(two, 7, 4321.0)
    await two.correct(bar)

    async def sees() -> bool:
        return await one.close_of(bar.ts) == bar.close

    await until(sees)
    for server in servers:
        await server.hears()
        await server.bars()
        before = server.thought
        await server.bars()
        assert server.thought == before, "it hears again, and remembers"


async def test_a_new_minute_moves_the_last_bars_on(servers: tuple[Server, Server]):
    """An answer that touches the present is good until another bar is final."""
    one, _ = servers
    last = {"start": "", "end": "", "limit": 5}
    query = {name: value for name, value in {**QUERY, **last}.items() if value != ""}
    now_ms = one.services.clock.now_ms()
    response = await one.client.get("/api/v1/ohlcv", query_string=query)
    rows = json.loads(await response.get_data())["bars"]
    assert "ETag" not in response.headers
    assert response.headers["Cache-Control"] == "no-store"
    assert now_ms - rows[-1][0] <= 3 * MINUTE_MS
