"""The whole way of a backfill: HTTP, the real services as the server wires them, a real database, the demo market."""

import json
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
import pytest_asyncio
from quart import Quart
from quart.typing import TestClientProtocol as Client

from app import create_app
from config import TestingConfig
from domain.timeframe import DAY_MS, MINUTE_MS
from tests.support.event_stream import follow

URL = "/api/v1/backfills"
START_MS = 1_717_200_000_000  # 2024-06-01
END_MS = START_MS + 21 * DAY_MS
ONE: dict[str, Any] = {"market": "demo", "provider": "sim", "start": START_MS, "end": END_MS}
WANTED = {**ONE, "symbols": ["DEMO/USD", "AMBER/USD"]}


@pytest_asyncio.fixture
async def web(database_url: str) -> AsyncIterator[Quart]:
    """The application with its own services, those that work on jobs included."""
    web = create_app(TestingConfig(database_url=database_url))
    async with web.test_app():
        yield web


@pytest.fixture
def client(web: Quart) -> Client:
    return web.test_client()


async def read(response: Any, status: int = 200) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(await response.get_data())
    assert response.status_code == status, answer
    return answer


async def make(client: Client, **changes: object) -> str:
    """A new job's address."""
    response = await client.post(URL, json={**WANTED, **changes})
    await read(response, 202)
    return str(response.headers["Location"])


async def plan(client: Client) -> dict[str, Any]:
    return await read(await client.post(URL, json={**WANTED, "dry_run": True}))


async def finished(client: Client, url: str) -> dict[str, Any]:
    async with follow(client, f"{url}/events") as stream:
        return (await stream.until("end"))[-1][2]


async def test_a_backfill_is_planned_made_followed_to_its_end_and_its_bars_are_there(client: Client):
    before = await plan(client)
    assert (before["minutes"], before["chunks"], before["calls"]) == (2 * 21 * 1440, 8, 8)
    assert [symbol["gaps"] for symbol in before["symbols"]] == [[{"start": START_MS, "end": END_MS}]] * 2

    url = await make(client)
    async with follow(client, f"{url}/events") as stream:
        told = await stream.until("end")
    assert [number for _, number, _ in told] == list(range(1, len(told) + 1))
    assert all(
        old["progress"]["chunks_done"] <= new["progress"]["chunks_done"] for (*_, old), (*_, new) in pairwise(told)
    )
    job = told[-1][2]
    assert (job["state"], job["errors"]) == ("done", [])
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]
    assert job == await read(await client.get(url))
    assert (await read(await client.get(URL)))["backfills"] == [job]

    bars = 0
    for symbol in WANTED["symbols"]:
        coverage = await read(await client.get("/api/v1/coverage", query_string={**ONE, "symbol": symbol}))
        assert set(coverage["summary"]) <= {"data", "no_trades"}
        bars += coverage["summary"]["data"]
    assert job["progress"] == {
        "chunks_done": 8,
        "chunks_failed": 0,
        "chunks_total": 8,
        "bars_written": bars,
        "percent": 100.0,
        "eta_seconds": None,
    }
    page = await read(await client.get("/api/v1/ohlcv", query_string={**ONE, "symbol": "DEMO/USD", "limit": 10_000}))
    assert [row[0] for row in page["bars"]] == [START_MS + n * MINUTE_MS for n in range(10_000)]
    assert (page["sources"], page["coverage"]["complete"]) == (["database"], True)

    assert (await plan(client))["chunks"] == 0
    again = await finished(client, await make(client))
    assert (again["state"], again["progress"]["chunks_total"], again["progress"]["percent"]) == ("done", 0, 100.0)


async def test_a_backfill_is_paused_resumed_and_cancelled_while_it_is_followed(client: Client):
    url = await make(client, start="2015-01-01", symbols=["DEMO/USD", "AMBER/USD", "BASALT/USD"])
    async with follow(client, f"{url}/events") as stream:
        await stream.event()
        assert (await read(await client.post(f"{url}/pause")))["state"] == "paused"
        while (await stream.event())[2]["state"] != "paused":
            pass
        assert (await client.post(f"{url}/pause")).status_code == 409
        assert (await read(await client.post(f"{url}/resume")))["state"] in {"queued", "running"}
        while (await stream.event())[2]["state"] != "running":
            pass
        assert (await read(await client.post(f"{url}/cancel")))["state"] == "cancelled"
        job = (await stream.until("end"))[-1][2]
    assert (job["state"], job["progress"]["percent"] < 100) == ("cancelled", True)
    assert (await client.post(f"{url}/retry")).status_code == 409


async def test_what_does_not_exist_is_told(client: Client):
    for path, content, code in (
        (URL, {**WANTED, "market": "nope"}, "unknown_market"),
        (URL, {**WANTED, "provider": "nope"}, "unknown_provider"),
        (URL, {**WANTED, "symbols": ["NOPE/USD"]}, "unknown_symbol"),
        (f"{URL}/00000000-0000-0000-0000-000000000000/cancel", {}, "not_found"),
    ):
        assert (await read(await client.post(path, json=content), 404))["code"] == code
    job = await finished(client, await make(client, symbols=["DEMO/USD", "NOPE/USD"], end=START_MS + DAY_MS))
    assert (job["state"], job["progress"]["chunks_done"], job["error_count"]) == ("failed", 1, 1)
    assert job["errors"][0]["symbol"] == "NOPE/USD"
