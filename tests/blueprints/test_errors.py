"""Every wrong question gets a problem that says what was wrong with it, and never a 500."""

import json
from typing import Any

import pytest
from quart import Quart
from quart.typing import TestClientProtocol as Client
from werkzeug.exceptions import BadRequest, InternalServerError, UnsupportedMediaType

from app_extensions.error_mapping import MAX_DETAIL, PROBLEMS, problem_of
from domain.errors import CandleryError, DatabaseUnavailableError, IncompleteError
from domain.timeframe import DAY_MS, MINUTE_MS
from plugins.base import (
    AuthenticationPluginError,
    NetworkPluginError,
    PluginError,
    PluginFeatureNotSupportedError,
    RateLimitPluginError,
    SymbolNotFoundPluginError,
)
from tests.fakes import FakeServices, gap
from tests.support.market import START_MS

BASE = "market=test&provider=fake&symbol=BTC/USDT"
OHLCV = f"/api/v1/ohlcv?{BASE}"
COVERAGE = f"/api/v1/coverage?{BASE}"
SYMBOLS = "/api/v1/symbols?market=test&provider=fake"
NOW_MS = START_MS + 30 * DAY_MS

WRONG: list[tuple[str, int, str, str | None]] = [
    # every name
    ("/api/v1/ohlcv", 400, "invalid_parameter", "market"),
    ("/api/v1/ohlcv?market=test", 400, "invalid_parameter", "provider"),
    ("/api/v1/ohlcv?market=test&provider=fake", 400, "invalid_parameter", "symbol"),
    ("/api/v1/ohlcv?market=nope&provider=fake&symbol=BTC/USDT", 404, "unknown_market", None),
    ("/api/v1/ohlcv?market=test&provider=nope&symbol=BTC/USDT", 404, "unknown_provider", None),
    ("/api/v1/ohlcv?market=test&provider=fake&symbol=NO/SUCH", 404, "unknown_symbol", None),
    ("/api/v1/ohlcv?market=test&provider=fake&symbol=%27;DROP%20TABLE%20bars", 404, "unknown_symbol", None),
    ("/api/v1/ohlcv?market=test&provider=fake&symbol=%F0%9F%92%B0", 404, "unknown_symbol", None),
    # parameters as such
    (f"{OHLCV}&foo=1", 400, "invalid_parameter", "foo"),
    (f"{OHLCV}&Limit=1", 400, "invalid_parameter", "Limit"),
    (f"{OHLCV}&%00=1", 400, "invalid_parameter", "?"),
    (f"{OHLCV}&=1", 400, "invalid_parameter", ""),
    (f"{OHLCV}&limit=1&limit=1", 400, "invalid_parameter", "limit"),
    (f"{OHLCV}&market=test", 400, "invalid_parameter", "market"),
    (f"{OHLCV}&symbol=BTC/USDT", 400, "invalid_parameter", "symbol"),
    (f"{OHLCV}&symbol=", 400, "invalid_parameter", "symbol"),
    ("/api/v1/ohlcv?market=&provider=fake&symbol=X", 400, "invalid_parameter", "market"),
    ("/api/v1/ohlcv?market=%20&provider=fake&symbol=X", 400, "invalid_parameter", "market"),
    ("/api/v1/ohlcv?market=test&provider=fake&symbol=A%00B", 400, "invalid_parameter", "symbol"),
    ("/api/v1/ohlcv?market=test&provider=fake&symbol=A%0AB", 400, "invalid_parameter", "symbol"),
    ("/api/v1/ohlcv?market=test&provider=fake&symbol=" + "A" * 201, 400, "invalid_parameter", "symbol"),
    ("/api/v1/ohlcv?market=test&provider=fake&symbol=%FF%FE", 400, "invalid_parameter", "query"),
    ("/api/v1/ohlcv?" + "&".join(f"symbol={n}" for n in range(2100)), 400, "invalid_parameter", "query"),
    (f"{OHLCV}&" + "&".join(f"symbol={n}" for n in range(60)), 400, "invalid_parameter", "symbol"),
    # limit
    *((f"{OHLCV}&limit={text}", 400, "invalid_parameter", "limit") for text in ("0", "-1", "10001", "9" * 30, "1.5")),
    *((f"{OHLCV}&limit={text}", 400, "invalid_parameter", "limit") for text in ("ten", "1e3", "0x10", "%D9%A1", "")),
    (f"{OHLCV}&limit=10000&" + "&".join(f"symbol={n}" for n in range(11)), 400, "invalid_parameter", "limit"),
    # times
    *((f"{OHLCV}&start={text}", 400, "invalid_parameter", "start") for text in ("yesterday", "2024-13-01", "12:00")),
    *((f"{OHLCV}&start={text}", 400, "invalid_parameter", "start") for text in ("-1", "1.5e12", "nan", "9" * 40)),
    *((f"{OHLCV}&start={text}", 400, "invalid_parameter", "start") for text in ("1969-12-31", "2100-01-01")),
    (f"{OHLCV}&start={NOW_MS + 1}", 400, "invalid_parameter", "start"),
    (f"{OHLCV}&start={START_MS}&end={START_MS}", 400, "invalid_parameter", "end"),
    (f"{OHLCV}&start={START_MS}&end={START_MS - 1}", 400, "invalid_parameter", "end"),
    (f"{OHLCV}&end=2022-12-13T00:00:00%2B99:00", 400, "invalid_parameter", "end"),
    # the rest
    (f"{OHLCV}&timeframe=7m", 400, "unsupported_timeframe", None),
    (f"{OHLCV}&timeframe=1H", 400, "unsupported_timeframe", None),
    (f"{OHLCV}&timeframe=1m&timeframe=5m", 400, "invalid_parameter", "timeframe"),
    (f"{OHLCV}&include_forming=maybe", 400, "invalid_parameter", "include_forming"),
    (f"{OHLCV}&fill=linear", 400, "invalid_parameter", "fill"),
    (f"{OHLCV}&require=everything", 400, "invalid_parameter", "require"),
    (f"{OHLCV}&format=xml", 400, "invalid_parameter", "format"),
    *(
        (f"{OHLCV}&format={name}", 501, "feature_not_supported", None)
        for name in ("csv", "arrow", "parquet", "msgpack")
    ),
    # coverage
    (COVERAGE, 400, "invalid_parameter", "start"),
    (f"{COVERAGE}&start={START_MS}&end={START_MS}", 400, "invalid_parameter", "end"),
    (f"{COVERAGE}&start={NOW_MS + 1}", 400, "invalid_parameter", "start"),
    (f"{COVERAGE}&start=0", 400, "invalid_parameter", "start"),
    (f"{COVERAGE}&start={START_MS}&end=2099-12-31", 400, "invalid_parameter", "start"),
    (f"{COVERAGE}&start={START_MS}&limit=5", 400, "invalid_parameter", "limit"),
    (f"{COVERAGE}&start={START_MS}&symbol=ETH/USDT", 400, "invalid_parameter", "symbol"),
    (f"{COVERAGE}&start={START_MS}&timeframe=2m", 400, "unsupported_timeframe", None),
    ("/api/v1/coverage?market=test&provider=fake&symbol=NO&start=2022-12-13", 404, "unknown_symbol", None),
    # listings
    ("/api/v1/markets?market=test", 400, "invalid_parameter", "market"),
    ("/api/v1/providers", 400, "invalid_parameter", "market"),
    ("/api/v1/providers?market=nope", 404, "unknown_market", None),
    ("/api/v1/symbols?market=test", 400, "invalid_parameter", "provider"),
    ("/api/v1/symbols?market=test&provider=nope", 404, "unknown_provider", None),
    (f"{SYMBOLS}&limit=1001", 400, "invalid_parameter", "limit"),
    (f"{SYMBOLS}&query=", 400, "invalid_parameter", "query"),
    ("/healthz?x=1", 400, "invalid_parameter", "x"),
    ("/readyz?x=1", 400, "invalid_parameter", "x"),
    ("/metrics?x=1", 400, "invalid_parameter", "x"),
    # paths
    *((path, 404, "not_found", None) for path in ("/nothing", "/api", "/api/v1", "/api/v1/", "/api/v2/ohlcv")),
    *((f"{path}/", 404, "not_found", None) for path in ("/api/v1/ohlcv", "/api/v1/markets", "/healthz", "/metrics")),
    *((path, 404, "not_found", None) for path in ("/api//v1/ohlcv", "/%FF", "/%00", "/..%2f..%2fetc/passwd", "/%")),
    *((path, 404, "not_found", None) for path in ("/api/v1/backfill", "/api/v1/ticker", "/udf/config", "/docs")),
]


async def assert_problem(response: Any, status: int, code: str, parameter: str | None = None) -> dict[str, Any]:
    """The one shape of every error."""
    answer: dict[str, Any] = json.loads(await response.get_data())
    assert (response.status_code, answer["code"], answer.get("parameter")) == (status, code, parameter), answer
    assert response.content_type == "application/problem+json"
    assert answer["type"] == f"urn:candlery:error:{code}"
    assert answer["status"] == status
    assert answer["title"]
    assert answer["request_id"] == response.headers["X-Request-ID"]
    assert response.headers["Cache-Control"] == "no-store"
    assert "ETag" not in response.headers
    assert ("Retry-After" in response.headers) is (status == 503)
    if status != 500:
        assert answer["detail"]
    return answer


@pytest.mark.parametrize(("url", "status", "code", "parameter"), WRONG, ids=lambda value: str(value)[:70])
async def test_a_wrong_question_is_told_what_is_wrong(
    client: Client, url: str, status: int, code: str, parameter: str | None
):
    await assert_problem(await client.get(url), status, code, parameter)


async def test_a_misspelt_parameter_is_told_the_right_spelling(client: Client):
    answer = await assert_problem(await client.get(f"{OHLCV}&timefame=1h"), 400, "invalid_parameter", "timefame")
    assert "did you mean timeframe?" in answer["detail"]


async def test_an_unknown_timeframe_is_told_those_that_there_are(client: Client):
    answer = await assert_problem(await client.get(f"{OHLCV}&timeframe=7m"), 400, "unsupported_timeframe")
    assert "1m, 3m, 5m" in answer["detail"]
    assert "1M" in answer["detail"]


async def test_too_wide_a_coverage_question_is_told_how_wide_it_may_be(client: Client):
    answer = await assert_problem(await client.get(f"{COVERAGE}&start=0"), 400, "invalid_parameter", "start")
    assert "1000000 buckets of 1m (694 days)" in answer["detail"]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"])
@pytest.mark.parametrize("path", ["/api/v1/ohlcv", "/healthz", "/metrics"])
async def test_other_methods_are_told_which_there_are(client: Client, method: str, path: str):
    response = await client.open(path, method=method)
    await assert_problem(response, 405, "method_not_allowed")
    assert response.headers["Allow"] == "GET, HEAD, OPTIONS"


async def test_a_body_that_is_too_large_is_refused_before_it_is_read(client: Client):
    await assert_problem(await client.get(OHLCV, headers={"Content-Length": str((1 << 20) + 1)}), 413, "body_too_large")


RAISED: list[tuple[Exception, int, str]] = [
    (AuthenticationPluginError("bad key"), 502, "provider_authentication_failed"),
    (RateLimitPluginError("slow down", retry_after_s=7.2), 503, "provider_rate_limited"),
    (NetworkPluginError("gone"), 503, "provider_unavailable"),
    (SymbolNotFoundPluginError("no such symbol"), 404, "unknown_symbol"),
    (PluginFeatureNotSupportedError("no bars"), 501, "feature_not_supported"),
    (PluginError("odd"), 502, "provider_error"),
    (DatabaseUnavailableError(), 503, "database_unavailable"),
    (IncompleteError(), 503, "incomplete"),
    (CandleryError("something of ours"), 500, "internal_error"),
    (ValueError("secret"), 500, "internal_error"),
    (MemoryError("secret"), 500, "internal_error"),
]


@pytest.mark.parametrize(("error", "status", "code"), RAISED, ids=lambda value: type(value).__name__)
async def test_each_failure_has_its_status_and_code(
    client: Client, services: FakeServices, error: Exception, status: int, code: str
):
    services.ohlcv.error = error
    await assert_problem(await client.get(OHLCV), status, code)
    two = f"{OHLCV}&symbol=ETH/USDT"
    services.ohlcv.market["ETH/USDT"] = []
    await assert_problem(await client.get(two), status, code)


async def test_the_client_is_told_how_long_a_provider_wants_to_be_left_alone(client: Client, services: FakeServices):
    services.ohlcv.error = RateLimitPluginError("slow down", retry_after_s=7.2)
    assert (await client.get(OHLCV)).headers["Retry-After"] == "8"


async def test_our_own_faults_are_logged_in_full_and_told_to_nobody(
    client: Client, services: FakeServices, caplog: pytest.LogCaptureFixture
):
    services.ohlcv.error = RuntimeError("the innards")
    response = await client.get(OHLCV, headers={"X-Request-ID": "find-me"})
    body = (await response.get_data()).decode()
    await assert_problem(response, 500, "internal_error")
    assert "innards" not in body
    assert "detail" not in json.loads(body)
    assert "the innards" in caplog.text
    assert json.loads(body)["request_id"] == "find-me"


async def test_no_secret_of_a_providers_words_reaches_the_client(client: Client, services: FakeServices):
    services.ohlcv.error = NetworkPluginError("GET https://user:hunter2@host/?apiKey=hunter2&x=1 failed")
    answer = await assert_problem(await client.get(OHLCV), 503, "provider_unavailable")
    assert "hunter2" not in answer["detail"]


async def test_a_page_of_html_in_a_providers_words_is_cut(client: Client, services: FakeServices):
    services.ohlcv.error = PluginError("<p>" * 10_000)
    answer = await assert_problem(await client.get(OHLCV), 502, "provider_error")
    assert len(answer["detail"]) <= MAX_DETAIL


async def test_an_incomplete_answer_is_an_error_only_where_completeness_is_required(
    client: Client, services: FakeServices
):
    services.ohlcv.more = {
        "gaps": [gap(START_MS, START_MS + MINUTE_MS)] * 2,
        "error": NetworkPluginError("the venue is down", retry_after_s=9),
    }
    assert (await client.get(OHLCV)).status_code == 200
    response = await client.get(f"{OHLCV}&require=complete")
    answer = await assert_problem(response, 503, "incomplete")
    assert response.headers["Retry-After"] == "9"
    assert "2 stretches" in answer["detail"]
    assert "2022-12-13T00:00:00Z" in answer["detail"]
    assert "fetch_failed" in answer["detail"]
    assert "the venue is down" in answer["detail"]


async def test_a_complete_answer_passes_where_completeness_is_required(client: Client):
    assert (await client.get(f"{OHLCV}&require=complete")).status_code == 200


async def test_an_answer_incomplete_for_a_rate_limit_says_so(client: Client, services: FakeServices):
    services.ohlcv.more = {
        "gaps": [gap(START_MS, START_MS + MINUTE_MS)],
        "error": RateLimitPluginError(retry_after_s=30),
    }
    response = await client.get(f"{OHLCV}&require=complete")
    await assert_problem(response, 503, "provider_rate_limited")
    assert response.headers["Retry-After"] == "30"


async def test_an_incomplete_answer_without_a_failure_asks_to_come_back_in_seconds(
    client: Client, services: FakeServices
):
    services.ohlcv.more = {"gaps": [gap(START_MS, START_MS + MINUTE_MS)]}
    response = await client.get(f"{OHLCV}&require=complete")
    answer = await assert_problem(response, 503, "incomplete")
    assert response.headers["Retry-After"] == "5"
    assert "1 stretch is" in answer["detail"]


def test_every_error_of_ours_has_a_place_in_the_table():
    def heirs(kind: type[Exception]) -> set[type[Exception]]:
        return {kind}.union(*(heirs(heir) for heir in kind.__subclasses__()))

    ours = {kind for kind in heirs(CandleryError) if kind.__module__.startswith(("domain", "plugins", "blueprints"))}
    # These two are only ever raised as one of their heirs.
    ours -= {kind for kind in ours if kind.__name__ in {"CandleryError", "UnknownNameError"}}
    assert {kind.__name__ for kind in ours if kind not in PROBLEMS} == set()


def test_an_heir_of_a_known_error_counts_as_that_error():
    class ThirdPartyError(NetworkPluginError):
        """A plugin of somebody else's."""

    assert problem_of(ThirdPartyError()).code == "provider_unavailable"


async def test_errors_that_the_framework_raises_are_problems_too(web: Quart):
    raised: list[Exception] = []

    @web.get("/raise")
    async def fail() -> str:
        raise raised[-1]

    for error, status, code in (
        (UnsupportedMediaType(), 415, "unsupported_media_type"),
        (BadRequest(), 400, "bad_request"),
        (InternalServerError(), 500, "internal_error"),
    ):
        raised.append(error)
        await assert_problem(await web.test_client().get("/raise"), status, code)
