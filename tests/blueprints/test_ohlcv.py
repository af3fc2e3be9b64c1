"""`GET /api/v1/ohlcv`: what comes out for what goes in."""

import asyncio
import json
from typing import Any

import pytest
from quart import Quart
from quart.typing import TestClientProtocol as Client

from app import create_app
from blueprints import ohlcv
from domain.series import Series
from domain.timeframe import DAY_MS, MINUTE_MS, Timeframe
from services.fill import Fill
from tests.fakes import FakeServices, bar, gap
from tests.support.market import START_MS

URL = "/api/v1/ohlcv"
ONE = {"market": "test", "provider": "fake", "symbol": "BTC/USDT"}
CLOSED = {**ONE, "start": START_MS, "end": START_MS + 10 * MINUTE_MS}


async def ask(client: Client, **query: Any) -> dict[str, Any]:
    response = await client.get(URL, query_string={**ONE, **query})
    assert response.status_code == 200, await response.get_data()
    return json.loads(await response.get_data())


async def test_the_answer_has_the_shape_of_the_contract(client: Client):
    response = await client.get(URL, query_string={**CLOSED, "limit": 2})
    assert response.content_type == "application/json"
    answer = json.loads(await response.get_data())
    token = answer.pop("next_page_token")
    assert isinstance(token, str)
    assert answer == {
        "market": "test",
        "provider": "fake",
        "symbol": "BTC/USDT",
        "timeframe": "1m",
        "columns": ["ts", "open", "high", "low", "close", "volume"],
        "bars": [[START_MS, 1.0, 2.0, 0.5, 1.0, 10.0], [START_MS + MINUTE_MS, 1.0, 2.0, 0.5, 1.001, 10.0]],
        "sources": ["database"],
        "coverage": {"complete": True, "gaps": []},
    }


async def test_without_a_start_come_the_last_bars_before_the_end_and_no_token(client: Client, services: FakeServices):
    answer = await ask(client, end=START_MS + 10 * MINUTE_MS, limit=3)
    assert [row[0] for row in answer["bars"]] == [START_MS + n * MINUTE_MS for n in (7, 8, 9)]
    assert answer["next_page_token"] is None
    assert services.ohlcv.queries[0].start_ms is None


async def test_what_is_not_given_has_its_default(client: Client, services: FakeServices):
    await ask(client)
    query = services.ohlcv.queries[0]
    assert query.series == Series("test", "fake", "BTC/USDT")
    assert (query.timeframe, query.start_ms, query.end_ms, query.limit) == (Timeframe.M1, None, None, 1000)
    assert (query.include_forming, query.fill, query.carry) == (False, Fill.NONE, None)


@pytest.mark.parametrize(
    "text",
    [
        "1670889600000",
        "2022-12-13",
        "2022-12-13T00:00:00",
        "2022-12-13T00:00:00Z",
        "2022-12-13T00:00:00.000Z",
        "2022-12-13T01:00:00+01:00",
        "2022-12-12T19:00:00-05:00",
    ],
)
async def test_times_may_be_written_in_many_ways(client: Client, services: FakeServices, text: str):
    await ask(client, start=text)
    assert services.ohlcv.queries[0].start_ms == START_MS


async def test_a_plus_sign_that_was_not_escaped_is_understood(client: Client, services: FakeServices):
    response = await client.get(f"{URL}?market=test&provider=fake&symbol=BTC/USDT&start=2022-12-13T01:00:00+01:00")
    assert response.status_code == 200
    assert services.ohlcv.queries[0].start_ms == START_MS


@pytest.mark.parametrize(("text", "value"), [("true", True), ("1", True), ("false", False), ("0", False)])
async def test_flags_are_words_or_digits(client: Client, services: FakeServices, text: str, value: object):
    await ask(client, include_forming=text)
    assert services.ohlcv.queries[0].include_forming is value


async def test_filled_and_forming_bars_are_named_only_where_they_were_asked_for(client: Client, services: FakeServices):
    services.ohlcv.more = {"filled": [1], "forming": [2]}
    assert not {"filled", "forming"} & set(await ask(client))
    answer = await ask(client, fill="previous", include_forming="true")
    assert (answer["filled"], answer["forming"]) == ([1], [2])


async def test_simulated_bars_are_labelled_in_the_body_and_in_a_header(client: Client, services: FakeServices):
    plain = await client.get(URL, query_string=ONE)
    assert "simulated" not in json.loads(await plain.get_data())
    assert "X-Candlery-Simulated" not in plain.headers
    services.ohlcv.more = {"simulated": True}
    labelled = await client.get(URL, query_string=ONE)
    assert json.loads(await labelled.get_data())["simulated"] is True
    assert labelled.headers["X-Candlery-Simulated"] == "true"


async def test_gaps_are_told_with_their_verdicts(client: Client, services: FakeServices):
    services.ohlcv.more = {"gaps": [gap(START_MS, START_MS + MINUTE_MS)]}
    expected = [{"start": START_MS, "end": START_MS + MINUTE_MS, "verdict": "fetch_failed"}]
    assert (await ask(client))["coverage"] == {"complete": False, "gaps": expected}


async def test_the_pages_together_are_the_whole_range_once(client: Client):
    rows, token = [], None
    for _ in range(200):
        answer = await ask(client, start=START_MS, limit=100, **({"page_token": token} if token else {}))
        rows += answer["bars"]
        token = answer["next_page_token"]
        if token is None:
            break
    assert [row[0] for row in rows] == [START_MS + n * MINUTE_MS for n in range(1440)]


async def test_the_limit_may_change_from_page_to_page(client: Client):
    token = (await ask(client, start=START_MS, limit=5))["next_page_token"]
    answer = await ask(client, start=START_MS, limit=2, page_token=token)
    assert [row[0] for row in answer["bars"]] == [START_MS + n * MINUTE_MS for n in (5, 6)]


async def test_a_fill_goes_on_from_the_last_close_of_the_page_before(client: Client, services: FakeServices):
    token = (await ask(client, start=START_MS, limit=5, fill="previous"))["next_page_token"]
    services.ohlcv.more = {"bars": [], "next_ms": START_MS + DAY_MS}
    token = (await ask(client, start=START_MS, limit=5, fill="previous", page_token=token))["next_page_token"]
    await ask(client, start=START_MS, limit=5, fill="previous", page_token=token)
    # The page in the middle was empty, and hands on what it was given.
    assert [query.carry for query in services.ohlcv.queries] == [None, 1.004, 1.004]
    assert services.ohlcv.queries[-1].start_ms == START_MS + DAY_MS


@pytest.mark.parametrize(
    "change",
    [
        {"symbol": "ETH/USDT"},
        {"start": START_MS + 1},
        {"end": START_MS + DAY_MS},
        {"timeframe": "5m"},
        {"fill": "previous"},
        {"include_forming": "true"},
    ],
)
async def test_a_token_is_good_for_its_own_question_only(
    client: Client, services: FakeServices, change: dict[str, Any]
):
    services.ohlcv.market["ETH/USDT"] = [bar(START_MS)]
    token = (await ask(client, start=START_MS, limit=5))["next_page_token"]
    response = await client.get(URL, query_string={**ONE, "start": START_MS, "page_token": token, **change})
    await assert_bad_token(response)


async def test_no_change_to_a_token_goes_unnoticed(client: Client):
    token = (await ask(client, start=START_MS, limit=5))["next_page_token"]
    for at in range(len(token)):
        other = "A" if token[at] != "A" else "B"
        tampered = token[:at] + other + token[at + 1 :]
        response = await client.get(URL, query_string={**ONE, "start": START_MS, "page_token": tampered})
        await assert_bad_token(response)


@pytest.mark.parametrize("token", ["x", "AAAA", "====", "!", "é", "A" * 300, "null", "-1"])
async def test_what_is_no_token_is_refused(client: Client, token: str):
    response = await client.get(URL, query_string={**ONE, "start": START_MS, "page_token": token})
    await assert_bad_token(response)


async def assert_bad_token(response: Any) -> None:
    answer = json.loads(await response.get_data())
    assert (response.status_code, answer["code"], answer["parameter"]) == (400, "invalid_parameter", "page_token")


async def test_several_symbols_come_by_symbol(client: Client, services: FakeServices):
    services.ohlcv.market["ETH/USDT"] = [bar(START_MS)]
    answer = await ask(client, symbol=["ETH/USDT", "BTC/USDT"], start=START_MS, limit=2, fill="previous")
    assert answer["symbol"] == ["ETH/USDT", "BTC/USDT"]
    assert {symbol: [row[0] for row in rows] for symbol, rows in answer["bars"].items()} == {
        "ETH/USDT": [START_MS],
        "BTC/USDT": [START_MS, START_MS + MINUTE_MS],
    }
    assert answer["coverage"] == {"complete": True, "gaps": {"ETH/USDT": [], "BTC/USDT": []}}
    assert answer["filled"] == {"ETH/USDT": [START_MS], "BTC/USDT": [START_MS]}
    assert answer["sources"] == ["database"]


async def test_pages_go_on_while_any_symbol_has_more_and_ask_no_more_of_those_that_have_not(
    client: Client, services: FakeServices
):
    services.ohlcv.market["ETH/USDT"] = [bar(START_MS + n * MINUTE_MS) for n in range(250)]
    rows: dict[str, list[int]] = {"ETH/USDT": [], "BTC/USDT": []}
    token: dict[str, str] = {}
    pages = 0
    while pages < 100:
        pages += 1
        answer = await ask(client, symbol=["BTC/USDT", "ETH/USDT"], start=START_MS, limit=100, **token)
        for symbol, bars in answer["bars"].items():
            rows[symbol] += [row[0] for row in bars]
        if answer["next_page_token"] is None:
            break
        token = {"page_token": answer["next_page_token"]}
    assert pages == 15
    assert rows == {symbol: [b.ts for b in services.ohlcv.market[symbol]] for symbol in rows}
    assert sum(query.series.symbol == "ETH/USDT" for query in services.ohlcv.queries) == 3


async def test_one_unknown_symbol_among_several_fails_the_request(client: Client):
    response = await client.get(URL, query_string={**ONE, "symbol": ["BTC/USDT", "NO/SUCH"]})
    answer = json.loads(await response.get_data())
    assert (response.status_code, answer["code"]) == (404, "unknown_symbol")
    assert "NO/SUCH" in answer["detail"]


async def test_as_many_symbols_as_the_settings_allow_can_be_asked_for():
    services = FakeServices(max_symbols=30)
    names = [f"S{n}" for n in range(30)]
    services.ohlcv.market = {name: [bar(START_MS), bar(START_MS + MINUTE_MS)] for name in names}
    client = create_app(services.config, services).test_client()  # type: ignore[arg-type]
    query = {**ONE, "symbol": names, "start": START_MS, "limit": 1, "fill": "previous"}
    answer = json.loads(await (await client.get(URL, query_string=query)).get_data())
    assert list(answer["bars"]) == names
    second = await client.get(URL, query_string={**query, "page_token": answer["next_page_token"]})
    bars = json.loads(await second.get_data())["bars"]
    assert all([row[0] for row in rows] == [START_MS + MINUTE_MS] for rows in bars.values())
    response = await client.get(URL, query_string={**ONE, "symbol": [*names, "S30"]})
    assert json.loads(await response.get_data())["parameter"] == "symbol"


async def test_large_answers_are_the_same_as_small_ones(client: Client, monkeypatch: pytest.MonkeyPatch):
    small = await ask(client, limit=1440)
    monkeypatch.setattr(ohlcv, "ROWS_ON_LOOP", 0)
    assert await ask(client, limit=1440) == small


async def test_a_closed_and_known_range_may_be_kept_and_is_confirmed_by_its_tag(client: Client, services: FakeServices):
    first = await client.get(URL, query_string=CLOSED)
    tag = first.headers["ETag"]
    assert tag.startswith('"')
    assert "max-age=3600" in first.headers["Cache-Control"]
    services.ohlcv.more = {"sources": ["cache"]}
    for known in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        again = await client.get(URL, query_string=CLOSED, headers={"If-None-Match": known})
        assert (again.status_code, await again.get_data()) == (304, b"")
        assert again.headers["ETag"] == tag
        assert "max-age=3600" in again.headers["Cache-Control"]
        assert "X-Request-ID" in again.headers


async def test_a_changed_bar_has_another_tag(client: Client, services: FakeServices):
    tag = (await client.get(URL, query_string=CLOSED)).headers["ETag"]
    services.ohlcv.market["BTC/USDT"][3] = bar(START_MS + 3 * MINUTE_MS, 1.9)
    again = await client.get(URL, query_string=CLOSED, headers={"If-None-Match": tag})
    assert again.status_code == 200
    assert again.headers["ETag"] != tag


async def test_a_full_page_from_a_start_on_is_closed_though_no_end_was_given(client: Client):
    full = await client.get(URL, query_string={**ONE, "start": START_MS, "limit": 100})
    assert "ETag" in full.headers
    last = await client.get(URL, query_string={**ONE, "start": START_MS, "limit": 1440})
    assert "ETag" not in last.headers


@pytest.mark.parametrize("more", [{"in_past": False}, {"gaps": [gap(START_MS, START_MS + MINUTE_MS)]}])
async def test_what_may_still_change_is_not_kept(client: Client, services: FakeServices, more: dict[str, Any]):
    services.ohlcv.more = more
    response = await client.get(URL, query_string=CLOSED)
    assert response.headers["Cache-Control"] == "no-store"
    assert "ETag" not in response.headers


async def test_garbage_in_if_none_match_is_passed_over(client: Client):
    response = await client.get(URL, query_string=CLOSED, headers={"If-None-Match": '"""\xff,,W/'})
    assert response.status_code == 200


async def test_an_answer_that_takes_too_long_is_an_error_that_says_to_ask_again(web: Quart):
    services = FakeServices(request_timeout_s=0.1)

    async def never(query: Any) -> Any:
        await asyncio.Event().wait()

    services.ohlcv.bars = never  # type: ignore[method-assign]
    client = create_app(services.config, services).test_client()  # type: ignore[arg-type]
    for symbols in (["BTC/USDT"], ["BTC/USDT", "ETH/USDT"]):
        response = await client.get(URL, query_string={**ONE, "symbol": symbols})
        answer = json.loads(await response.get_data())
        assert (response.status_code, answer["code"]) == (503, "incomplete")
        assert int(response.headers["Retry-After"]) >= 1
