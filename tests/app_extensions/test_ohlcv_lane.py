"""A plain request and one that is not are answered alike, though only the first takes the lane."""

from typing import Any

import pytest
from quart import Quart
from quart.typing import TestClientProtocol as Client

from app_extensions import ohlcv_lane
from blueprints import ohlcv
from domain.timeframe import MINUTE_MS
from plugins.base import NetworkPluginError
from tests.fakes import FakeServices, gap
from tests.support.market import START_MS

URL = "/api/v1/ohlcv"
CLOSED = {
    "market": "test",
    "provider": "fake",
    "symbol": "BTC/USDT",
    "start": START_MS,
    "end": START_MS + 10 * MINUTE_MS,
}
#: It makes a request one for the application, and changes nothing else of its answer.
NOT_PLAIN = {"Content-Length": "0"}
_OWN = {"x-request-id", "server-timing", "content-length", "date"}


@pytest.fixture
def lanes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who answered."""
    taken: list[str] = []

    def noting(name: str, answer: Any) -> Any:
        async def noted(*args: Any, **options: Any) -> Any:
            taken.append(name)
            return await answer(*args, **options)

        return noted

    monkeypatch.setattr(ohlcv_lane, "answer", noting("lane", ohlcv.answer))
    monkeypatch.setattr(ohlcv, "answer", noting("application", ohlcv.answer))
    return taken


async def both(client: Client, **query: Any) -> list[tuple[int, dict[str, str], bytes]]:
    found = []
    for headers in ({}, NOT_PLAIN):
        response = await client.get(URL, query_string={**CLOSED, **query}, headers=headers)
        shared = {name.lower(): value for name, value in response.headers.items() if name.lower() not in _OWN}
        assert "x-request-id" in {name.lower() for name in response.headers.keys()}  # noqa: SIM118
        found.append((response.status_code, shared, await response.get_data()))
    return found


@pytest.mark.parametrize(
    "more", [{}, {"fill": "previous"}, {"include_forming": "true"}, {"symbol": ["BTC/USDT", "ETH/USDT"]}, {"limit": 2}]
)
async def test_answers_are_the_same_on_both_ways(
    client: Client, services: FakeServices, lanes: list[str], more: dict[str, Any]
):
    services.ohlcv.market["ETH/USDT"] = services.ohlcv.market["BTC/USDT"][:5]
    plain, other = await both(client, **more)
    assert plain == other
    assert plain[0] == 200
    assert lanes == ["lane", "application"]


async def test_simulated_bars_are_labelled_on_both_ways(client: Client, services: FakeServices):
    services.ohlcv.more["simulated"] = True
    plain, other = await both(client)
    assert plain == other
    assert plain[1]["x-candlery-simulated"] == "true"


async def test_who_has_it_gets_no_body_on_both_ways(client: Client, lanes: list[str]):
    tag = (await client.get(URL, query_string=CLOSED)).headers["ETag"]
    for headers in ({"If-None-Match": tag}, {"If-None-Match": tag, **NOT_PLAIN}):
        response = await client.get(URL, query_string=CLOSED, headers=headers)
        assert response.status_code == 304
        assert response.headers["ETag"] == tag
        assert await response.get_data() == b""
    assert lanes == ["lane", "lane", "application"]


@pytest.mark.parametrize(
    ("wrong", "status", "code"),
    [
        ({"limit": 0}, 400, "invalid_parameter"),
        ({"timeframe": "7m"}, 400, "unsupported_timeframe"),
        ({"market": "no"}, 404, "unknown_market"),
        ({"symbol": "NO/NO"}, 404, "unknown_symbol"),
        ({"format": "csv"}, 501, "feature_not_supported"),
    ],
)
async def test_errors_are_told_by_the_application_and_asked_for_once(
    client: Client, services: FakeServices, wrong: dict[str, Any], status: int, code: str
):
    for headers in ({}, NOT_PLAIN):
        response = await client.get(URL, query_string={**CLOSED, **wrong}, headers=headers)
        assert response.status_code == status
        assert response.content_type == "application/problem+json"
        assert (await response.get_json())["code"] == code
    assert len(services.ohlcv.queries) == (2 if status == 404 else 0)


async def test_what_fails_is_not_tried_again_by_the_application(
    client: Client, services: FakeServices, caplog: pytest.LogCaptureFixture
):
    services.ohlcv.error = NetworkPluginError("the line is dead")
    assert (await client.get(URL, query_string=CLOSED)).status_code == 503
    services.ohlcv.error = RuntimeError("a bug")
    assert (await client.get(URL, query_string=CLOSED)).status_code == 500
    assert len(services.ohlcv.queries) == 2
    assert "a bug" in caplog.text


async def test_an_answer_that_must_be_complete_is_refused_on_both_ways(client: Client, services: FakeServices):
    services.ohlcv.more["gaps"] = [gap(START_MS, START_MS + MINUTE_MS)]
    plain, other = await both(client, require="complete")
    assert plain[0] == other[0] == 503


async def test_before_it_serves_the_application_answers(web: Quart, lanes: list[str]):
    web.extensions.pop("candlery")
    response = await web.test_client().get(URL, query_string=CLOSED)
    assert response.status_code == 500
    assert lanes == []
