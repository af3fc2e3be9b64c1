"""What every answer has, whatever it is: an id, a time taken, careful headers; HEAD, OPTIONS and other origins."""

import re
from typing import Any

import pytest
from quart.typing import TestClientProtocol as Client

from app import create_app
from app_extensions.logging_setup import request_id_var
from tests.fakes import FakeServices

OHLCV = "/api/v1/ohlcv?market=test&provider=fake&symbol=BTC/USDT"
PATHS = (OHLCV, "/healthz", "/metrics", "/", "/nothing", "/api/v1/ohlcv?x", "/api/v1/providers?market=no")


@pytest.mark.parametrize("path", PATHS)
async def test_every_answer_carries_its_id_and_its_time_and_keeps_browsers_careful(client: Client, path: str):
    response = await client.get(path)
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["X-Request-ID"])
    assert re.fullmatch(r"total;dur=\d+\.\d", response.headers["Server-Timing"])
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"]


async def test_two_requests_have_two_ids(client: Client):
    ids = {(await client.get("/healthz")).headers["X-Request-ID"] for _ in range(5)}
    assert len(ids) == 5


async def test_a_sane_id_of_the_clients_is_kept(client: Client):
    response = await client.get("/healthz", headers={"X-Request-ID": "Trace_1.2-3"})
    assert response.headers["X-Request-ID"] == "Trace_1.2-3"


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "a\tb", "é", "<script>", "a,b", "${jndi}"])
async def test_any_other_id_is_replaced(client: Client, given: str):
    response = await client.get("/healthz", headers={"X-Request-ID": given})
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["X-Request-ID"])


async def test_the_id_is_there_for_the_log_while_the_request_is_served(client: Client, services: FakeServices):
    seen: list[str] = []

    async def noting(query: Any) -> Any:
        seen.append(request_id_var.get())
        return await type(services.ohlcv).bars(services.ohlcv, query)

    services.ohlcv.bars = noting  # type: ignore[method-assign]
    services.ohlcv.market["B"] = []
    await client.get(f"{OHLCV}&symbol=B", headers={"X-Request-ID": "mine"})
    assert seen == ["mine", "mine"]
    assert request_id_var.get() == "-"


@pytest.mark.parametrize("path", PATHS)
async def test_head_says_what_get_would(client: Client, path: str):
    got = await client.get(path)
    head = await client.head(path)
    assert head.status_code == got.status_code
    assert head.headers["Content-Type"] == got.headers["Content-Type"]


async def test_options_tells_the_methods(client: Client):
    response = await client.options("/api/v1/ohlcv")
    assert response.status_code == 200
    assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}


async def test_no_other_origin_may_read_answers_unless_the_settings_say_so(client: Client):
    response = await client.get("/healthz", headers={"Origin": "https://evil.example"})
    assert not [name for name in response.headers.keys() if name.lower().startswith("access-control")]  # noqa: SIM118


@pytest.mark.parametrize("path", ["/healthz", "/nothing", "/api/v1/ohlcv"])
async def test_the_origins_of_the_settings_and_no_others_may_read_answers(path: str):
    services = FakeServices(cors_origins=("https://charts.example.org",))
    client = create_app(services.config, services).test_client()  # type: ignore[arg-type]
    ours = await client.get(path, headers={"Origin": "https://charts.example.org"})
    assert ours.headers["Access-Control-Allow-Origin"] == "https://charts.example.org"
    assert "X-Request-ID" in ours.headers["Access-Control-Expose-Headers"]
    theirs = await client.get(path, headers={"Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in theirs.headers


async def test_a_star_lets_every_origin_read_answers():
    services = FakeServices(cors_origins=("*",))
    client = create_app(services.config, services).test_client()  # type: ignore[arg-type]
    response = await client.get("/healthz", headers={"Origin": "https://anybody.example"})
    assert response.headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": ""},
        {"Host": "a b\x7f"},
        {"Host": "é" * 300},
        {"Content-Length": "x"},
        {"Content-Type": "\xff/;;="},
        {"Accept": "text/csv;q=\xff,,"},
        {"Cookie": "=;=;;\x01"},
        {"Range": "bytes=9-1"},
        {"Authorization": "Basic !"},
        {"If-Modified-Since": "never"},
        {"X-Forwarded-For": "\x00"},
        {"Transfer-Encoding": "x"},
    ],
    ids=str,
)
async def test_garbage_in_headers_is_no_fault_of_ours(client: Client, headers: dict[str, str]):
    response = await client.get(OHLCV, headers=headers)
    assert response.status_code in {200, 400}
