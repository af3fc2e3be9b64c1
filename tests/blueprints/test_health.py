"""Health, readiness and metrics."""

import asyncio
import json
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from quart import Quart
from quart.typing import TestClientProtocol as Client

from app import create_app
from blueprints import health
from domain.errors import DatabaseUnavailableError
from plugins.base import NetworkPluginError
from services.cache_manager import CacheUnavailableError
from tests.blueprints.test_errors import assert_problem
from tests.fakes import FakeBudget, FakeOpenProvider, FakePing, FakeServices


async def get(client: Client, path: str) -> dict[str, Any]:
    response = await client.get(path)
    assert response.status_code == 200
    answer: dict[str, Any] = json.loads(await response.get_data())
    return answer


async def test_a_living_process_is_ok_whatever_else_is_down(client: Client, services: FakeServices):
    services.database.error = DatabaseUnavailableError()
    assert await get(client, "/healthz") == {"status": "ok"}


async def test_ready_is_who_reaches_database_and_cache(client: Client):
    answer = await get(client, "/readyz")
    assert answer["status"] == "ok"
    assert {name: check["ok"] for name, check in answer["checks"].items()} == {"database": True, "cache": True}


async def test_without_a_database_nobody_is_ready_and_the_reason_is_told(client: Client, services: FakeServices):
    services.database.error = DatabaseUnavailableError("connection refused")
    for path in ("/readyz", "/health/db"):
        answer = await assert_problem(await client.get(path), 503, "database_unavailable")
        assert "connection refused" in answer["detail"]
        assert answer["checks"]["database"]["ok"] is False
    assert (await client.get("/health/cache")).status_code == 200


async def test_without_a_cache_nobody_is_ready_and_the_reason_is_told(client: Client, services: FakeServices):
    async def gone() -> None:
        raise CacheUnavailableError("redis is gone")

    services.cache.ping = gone  # type: ignore[method-assign]
    for path in ("/readyz", "/health/cache"):
        answer = await assert_problem(await client.get(path), 503, "not_ready")
        assert "redis is gone" in answer["detail"]
    assert (await client.get("/health/db")).status_code == 200


async def test_a_silent_database_does_not_hold_up_the_answer(
    client: Client, services: FakeServices, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(health, "PROBE_TIMEOUT_S", 0.05)
    services.database = FakePing(hang=asyncio.Event())
    async with asyncio.timeout(30):
        answer = await assert_problem(await client.get("/readyz"), 503, "database_unavailable")
    assert "no answer within" in answer["detail"]


async def test_the_cache_tells_its_counters(client: Client):
    assert (await get(client, "/health/cache"))["stats"]["hits"] == 0


async def test_providers_tell_how_they_are_doing(client: Client, services: FakeServices):
    opened = services.markets.opened[0]
    opened.failure, opened.feed.budget = NetworkPluginError("no symbols"), FakeBudget(1.5)
    answer = await get(client, "/health/providers")
    expected = {"market": "test", "provider": "fake", "calls": 7, "paused_s": 1.5, "failure": "no symbols"}
    assert answer == {"status": "ok", "providers": [expected], "problems": []}


async def test_a_plugin_that_could_not_be_loaded_is_told(client: Client, services: FakeServices):
    services.loader.problems = ["plugin broken: ImportError"]
    answer = await get(client, "/health/providers")
    assert (answer["status"], answer["problems"]) == ("degraded", ["plugin broken: ImportError"])


async def test_the_signpost_leads_to_places_that_exist(client: Client):
    answer = await get(client, "/")
    places = [place for place in answer.values() if place.startswith("/")]
    assert places
    for place in places:
        assert (await client.get(place)).status_code == 200


async def samples(client: Client) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    response = await client.get("/metrics")
    assert response.headers["Content-Type"].startswith("text/plain")
    text = (await response.get_data()).decode()
    found = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in found}


async def test_requests_are_counted_by_route_and_status(client: Client):
    await client.get("/api/v1/markets")
    await client.get("/api/v1/markets?x=1")
    await client.get("/made/up/1")
    await client.get("/made/up/2")
    await client.open("/healthz", method="BREW")
    found = await samples(client)

    def count(method: str, route: str, status: int) -> float:
        labels = (("method", method), ("route", route), ("status", str(status)))
        return found["candlery_http_requests_total", labels]

    assert count("GET", "/api/v1/markets", 200) == 1
    assert count("GET", "/api/v1/markets", 400) == 1
    # However many paths and methods clients make up, they are one.
    assert count("GET", "unmatched", 404) == 2
    assert count("other", "unmatched", 405) == 1
    assert found["candlery_http_request_seconds_count", (("route", "/api/v1/markets"),)] == 2


async def test_the_services_counters_are_there(client: Client, services: FakeServices):
    services.markets.opened.append(FakeOpenProvider(services.markets.opened[0].feed, market="other"))
    found = await samples(client)
    assert found["candlery_upstream_calls_total", (("market", "test"), ("provider", "fake"))] == 7
    assert found["candlery_upstream_retries_total", (("market", "test"), ("provider", "fake"))] == 2
    assert found["candlery_upstream_failures_total", (("market", "test"), ("provider", "fake"))] == 1
    assert found["candlery_upstream_waits_total", (("provider", "fake"),)] == 3
    assert found["candlery_upstream_wait_seconds_total", (("provider", "fake"),)] == 0.75
    assert found["candlery_cache_misses_total", ()] == 0
    assert found["candlery_cache_bytes", ()] == 0
    assert (found["candlery_db_connections", ()], found["candlery_db_connections_in_use", ()]) == (2, 1)
    assert any(name == "candlery_build_info" for name, _ in found)
    assert any(name == "process_resident_memory_bytes" for name, _ in found)


async def test_each_application_counts_for_itself(client: Client, services: FakeServices):
    await client.get("/healthz")
    other = create_app(services.config, services).test_client()  # type: ignore[arg-type]
    assert not any(name == "candlery_http_requests_total" for name, _ in await samples(other))


async def test_the_lag_of_the_event_loop_is_measured_while_serving(web: Quart):
    async with web.test_app() as serving, asyncio.timeout(30):
        while True:
            found = await samples(serving.test_client())
            if found["candlery_event_loop_lag_seconds", ()] > 0:
                break
            await asyncio.sleep(0.05)
