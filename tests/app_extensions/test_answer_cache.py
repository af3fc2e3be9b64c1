"""Answers that are given again are those that were given, for as long as they are true."""

import asyncio
import gzip
import json
from typing import Any

import pytest
from quart.typing import TestClientProtocol as Client

from app import create_app
from domain.timeframe import DAY_MS, MINUTE_MS
from services.revisions import Stamp
from tests.fakes import FakeServices, gap
from tests.support.market import START_MS

URL = "/api/v1/ohlcv"
CLOSED = {
    "market": "test",
    "provider": "fake",
    "symbol": "BTC/USDT",
    "start": START_MS,
    "end": START_MS + 100 * MINUTE_MS,
}
FOREVER_S = float("inf")


@pytest.fixture
def services() -> FakeServices:
    services = FakeServices(cors_origins=("https://a.example", "https://b.example"))
    services.revisions.vouch(FOREVER_S)
    services.ohlcv.more = {"stamp": Stamp(1, 5, 0), "until_ms": None}
    return services


async def ask(client: Client, headers: dict[str, str] | None = None, **query: Any) -> Any:
    return await client.get(URL, query_string={**CLOSED, **query}, headers=headers)


async def ask_twice(client: Client, headers: dict[str, str] | None = None, **query: Any) -> Any:
    """What is asked for a second time is kept; the answer of the first."""
    first = await ask(client, headers, **query)
    await ask(client, headers, **query)
    return first


def asked(services: FakeServices) -> int:
    return len(services.ohlcv.queries)


async def test_what_was_asked_for_twice_is_given_again_from_memory(client: Client, services: FakeServices):
    first, second = await ask_twice(client), await ask(client)
    assert asked(services) == 2
    was, now = json.loads(await first.get_data()), json.loads(await second.get_data())
    assert (was.pop("sources"), now.pop("sources")) == (["database"], ["cache"])
    assert was == now
    own = {"x-request-id", "server-timing", "content-length"}
    shared = [{k.lower(): v for k, v in each.headers.items() if k.lower() not in own} for each in (first, second)]
    assert shared[0] == shared[1]
    assert int(second.headers["Content-Length"]) == len(await second.get_data())
    assert first.headers["X-Request-ID"] != second.headers["X-Request-ID"]
    assert second.headers["Server-Timing"].startswith("total;dur=")


async def test_another_question_has_another_answer(client: Client, services: FakeServices):
    await ask_twice(client)
    answer = json.loads(await (await ask(client, limit=3)).get_data())
    assert len(answer["bars"]) == 3
    assert asked(services) == 3


async def test_a_write_to_the_series_makes_it_unreachable(client: Client, services: FakeServices):
    await ask_twice(client)
    services.ohlcv.market["BTC/USDT"] = services.ohlcv.market["BTC/USDT"][1:]
    services.revisions.changed(2, 9)
    assert len(json.loads(await (await ask(client)).get_data())["bars"]) == 100, "another series' write"
    services.revisions.changed(1, 6)
    services.ohlcv.more["stamp"] = Stamp(1, 6, 0)
    for _ in range(2):
        assert len(json.loads(await (await ask(client)).get_data())["bars"]) == 99
    assert asked(services) == 3


async def test_a_write_to_any_of_its_series_counts(client: Client, services: FakeServices):
    services.ohlcv.market["ETH/USDT"] = services.ohlcv.market["BTC/USDT"]
    stamps = {"BTC/USDT": Stamp(1, 5, 0), "ETH/USDT": Stamp(2, 5, 0)}
    plain = services.ohlcv.bars

    async def bars(query: Any) -> Any:
        answer = await plain(query)
        answer.stamp = stamps[query.series.symbol]
        return answer

    services.ohlcv.bars = bars  # type: ignore[method-assign]
    both = ["BTC/USDT", "ETH/USDT"]
    for _ in range(3):
        await ask(client, symbol=both)
    assert asked(services) == 4
    services.revisions.changed(2, 6)
    await ask(client, symbol=both)
    assert asked(services) == 6


async def test_nothing_is_given_again_while_nobody_vouches_for_it(client: Client, services: FakeServices):
    await ask_twice(client)
    services.revisions.vouch(float("-inf"))
    for count in (3, 4):
        await ask(client)
        assert asked(services) == count


@pytest.mark.parametrize(
    "doubt",
    [
        {"until_ms": 0},
        {"stamp": None},
        {"stamp": Stamp(1, 4, 3)},
    ],
)
async def test_what_may_change_unheard_of_is_not_given_again(
    client: Client, services: FakeServices, doubt: dict[str, Any]
):
    services.ohlcv.more |= doubt
    for count in (1, 2, 3, 4):
        await ask(client)
        assert asked(services) == count


async def test_an_error_is_not_given_again(client: Client, services: FakeServices):
    services.ohlcv.more["gaps"] = [gap(START_MS, START_MS + MINUTE_MS)]
    for _ in range(3):
        assert (await ask(client, require="complete")).status_code == 503
    services.ohlcv.more["gaps"] = []
    assert (await ask(client, require="complete")).status_code == 200


async def test_an_answer_that_touches_the_present_is_given_again_until_that_moves_on(
    client: Client, services: FakeServices
):
    services.ohlcv.more["until_ms"] = services.clock.now_ms() + 1_000
    for _ in range(4):
        await ask(client)
    assert asked(services) == 2
    services.clock.advance(minutes=1 / 60)
    await ask(client)
    assert asked(services) == 3


async def test_an_answer_is_not_given_again_for_ever(client: Client, services: FakeServices):
    await ask_twice(client)
    services.clock.advance(minutes=services.config.cache_ttl_s / 60)
    await ask(client)
    assert asked(services) == 3


async def test_who_has_it_gets_no_body(client: Client, services: FakeServices):
    tag = (await ask_twice(client)).headers["ETag"]
    for known in (tag, f'"other", {tag}', f"W/{tag}", "*", tag[:-1] + '-gzip"'):
        response = await ask(client, headers={"If-None-Match": known})
        assert response.status_code == 304
        assert await response.get_data() == b""
        assert response.headers["ETag"] == tag
        assert "X-Request-ID" in response.headers
    assert (await ask(client, headers={"If-None-Match": '"other"'})).status_code == 200
    assert asked(services) == 2


async def test_who_takes_gzip_gets_it_under_a_tag_of_its_own(client: Client, services: FakeServices):
    plain = await ask_twice(client, headers={"Accept-Encoding": "identity"})
    answers = await asyncio.gather(*(ask(client, headers={"Accept-Encoding": "br, gzip;q=0.5"}) for _ in range(5)))
    for zipped in answers:
        assert zipped.headers["Content-Encoding"] == "gzip"
        assert zipped.headers["ETag"] == plain.headers["ETag"][:-1] + '-gzip"'
        body = json.loads(gzip.decompress(await zipped.get_data()))
        assert body["bars"] == json.loads(await plain.get_data())["bars"]
        assert "Accept-Encoding" in zipped.headers["Vary"]
    for refused in ("gzip;q=0", "br", ""):
        assert "Content-Encoding" not in (await ask(client, headers={"Accept-Encoding": refused})).headers
    assert "Accept-Encoding" in plain.headers["Vary"]
    assert asked(services) == 2


async def test_pages_of_each_origin_get_their_own_headers(client: Client, services: FakeServices):
    for _ in range(3):
        for origin in ("https://a.example", "https://b.example"):
            response = await ask(client, headers={"Origin": origin})
            assert response.headers["Access-Control-Allow-Origin"] == origin
        response = await ask(client, headers={"Origin": "https://evil.example"})
        assert "Access-Control-Allow-Origin" not in response.headers
    assert asked(services) == 6


async def test_a_request_keeps_the_name_that_its_client_gave_it(client: Client):
    await ask_twice(client)
    response = await ask(client, headers={"X-Request-ID": "mine-1"})
    assert response.headers["X-Request-ID"] == "mine-1"
    response = await ask(client, headers={"X-Request-ID": "no good\tname"})
    assert len(response.headers["X-Request-ID"]) == 32


async def test_other_methods_and_requests_with_a_body_go_to_the_application(client: Client, services: FakeServices):
    await ask_twice(client)
    assert (await client.head(URL, query_string=CLOSED)).status_code == 200
    assert (await client.post(URL, query_string=CLOSED)).status_code == 405
    large = await client.get(URL, query_string=CLOSED, headers={"Content-Length": str(2 << 20)})
    assert large.status_code == 413
    assert asked(services) == 3


async def test_what_it_answers_is_counted_like_any_answer(client: Client):
    for _ in range(4):
        await ask(client)
    text = (await (await client.get("/metrics")).get_data()).decode()
    assert 'candlery_http_requests_total{method="GET",route="/api/v1/ohlcv",status="200"} 4.0' in text
    assert 'candlery_http_request_seconds_count{route="/api/v1/ohlcv"} 4.0' in text


async def test_memory_is_bounded_and_what_was_asked_for_last_stays(services: FakeServices):
    services = FakeServices(answer_cache_bytes=40_000)
    services.revisions.vouch(FOREVER_S)
    services.ohlcv.more = {"stamp": Stamp(1, 5, 0), "until_ms": None}
    client = create_app(services.config, services).test_client()  # type: ignore[arg-type]
    for limit in range(1, 40):
        await ask_twice(client, limit=limit)
        await ask(client, limit=1)
    before = asked(services)
    await ask(client, limit=1)
    await ask(client, limit=39)
    assert asked(services) == before
    await ask(client, limit=2)
    assert asked(services) == before + 1


async def test_without_memory_nothing_is_kept():
    services = FakeServices(answer_cache_bytes=0)
    services.revisions.vouch(FOREVER_S)
    services.ohlcv.more = {"stamp": Stamp(1, 5, 0), "until_ms": None}
    client = create_app(services.config, services).test_client()  # type: ignore[arg-type]
    for count in (1, 2, 3):
        await ask(client)
        assert asked(services) == count


async def test_questions_that_were_asked_once_are_forgotten_in_time(
    client: Client, services: FakeServices, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("app_extensions.answer_cache.MOST_ASKED", 3)
    for limit in (1, 2, 3, 4, 1, 1, 1):
        await ask(client, limit=limit)
    assert asked(services) == 6


async def test_a_day_of_minutes_is_given_again(client: Client, services: FakeServices):
    answers = [await ask(client, end=START_MS + DAY_MS, limit=1440) for _ in range(3)]
    bars = [json.loads(await answer.get_data())["bars"] for answer in answers]
    assert bars[0] == bars[1] == bars[2]
    assert len(bars[1]) == 1440
    assert asked(services) == 2
