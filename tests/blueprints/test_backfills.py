"""Backfills over HTTP: made, planned, listed, followed and steered."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from quart import Quart
from quart.typing import TestClientProtocol as Client

import blueprints.backfills
from app import create_app
from blueprints.context import STOPPING
from domain.errors import DatabaseUnavailableError, UnknownSymbolError
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, MINUTE_MS
from plugins.base import AuthenticationPluginError, NetworkPluginError
from services.backfills import BackfillRequest, Job, JobError, JobState, Origin, Plan, Progress, SymbolPlan
from tests.fakes import FakeBackfills, FakeServices
from tests.support.event_stream import follow
from tests.support.market import START_MS

URL = "/api/v1/backfills"
EVENTS = f"{URL}/job-1/events"
NOW_MS = START_MS + 30 * DAY_MS
WANTED: dict[str, Any] = {"market": "test", "provider": "fake", "symbols": ["BTC/USDT", "ETH/USDT"], "start": START_MS}


async def post(client: Client, content: object = WANTED, url: str = URL, **options: Any) -> Any:
    return await client.post(url, json=content, **options)


async def read(response: Any, status: int = 200) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(await response.get_data())
    assert response.status_code == status, answer
    return answer


async def refusal(response: Any) -> tuple[int, str, str | None, str]:
    answer = json.loads(await response.get_data())
    assert response.content_type == "application/problem+json"
    return response.status_code, answer["code"], answer.get("parameter"), answer["detail"]


# Making


async def test_a_new_job_is_accepted_told_in_full_and_found_at_its_location(client: Client):
    response = await post(client, {**WANTED, "end": START_MS + DAY_MS})
    answer = await read(response, 202)
    assert response.headers["Location"] == "/api/v1/backfills/job-1"
    assert answer == {
        "id": "job-1",
        "state": "queued",
        "origin": "operator",
        "market": "test",
        "provider": "fake",
        "symbols": ["BTC/USDT", "ETH/USDT"],
        "start": START_MS,
        "end": START_MS + DAY_MS,
        "created_at": NOW_MS,
        "started_at": None,
        "finished_at": None,
        "progress": {
            "chunks_done": 0,
            "chunks_failed": 0,
            "chunks_total": 2,
            "bars_written": 0,
            "percent": 0.0,
            "eta_seconds": None,
        },
        "error_count": 0,
        "errors": [],
    }
    assert await read(await client.get(response.headers["Location"])) == answer


@pytest.mark.parametrize(
    ("times", "wanted"),
    [
        ({"start": START_MS}, (START_MS, NOW_MS)),
        ({"start": START_MS, "end": None}, (START_MS, NOW_MS)),
        ({"start": "2022-12-13", "end": "2022-12-14T01:00:00+01:00"}, (START_MS, START_MS + DAY_MS)),
        ({"start": str(START_MS), "end": NOW_MS + 1}, (START_MS, NOW_MS)),
        ({"start": NOW_MS - 1, "end": "2099-12-31"}, (NOW_MS - 1, NOW_MS)),
    ],
)
async def test_times_are_read_and_end_at_the_present(
    client: Client, services: FakeServices, times: dict[str, object], wanted: tuple[int, int]
):
    await read(await post(client, {**WANTED, **times}), 202)
    assert tuple(services.backfills.requests[-1].range) == wanted


async def test_a_symbol_that_does_not_exist_is_an_error_of_the_job_and_not_of_the_others(client: Client):
    answer = await read(await post(client, {**WANTED, "symbols": ["BTC/USDT", "NO/SUCH"]}), 202)
    assert answer["progress"]["chunks_total"] == 1
    assert answer["error_count"] == 1
    error = {"symbol": "NO/SUCH", "detail": "There is no such symbol.", "attempts": 0, "start": None, "end": None}
    assert answer["errors"] == [error]


async def test_five_hundred_symbols_are_taken_and_one_more_is_told_the_limit(client: Client):
    symbols = ["BTC/USDT", *(f"S{number}" for number in range(499))]
    await read(await post(client, {**WANTED, "symbols": symbols}), 202)
    told = await refusal(await post(client, {**WANTED, "symbols": [*symbols, "X"]}))
    assert told == (400, "invalid_parameter", "symbols", "symbols must hold 1 to 500 strings, not 501.")


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"market": None}, "market", "market is missing"),
    ({"provider": 7}, "provider", "provider must be a string"),
    ({"symbols": "BTC/USDT"}, "symbols", 'must be a list of strings, such as ["BTC/USDT"], not a string'),
    ({"symbols": []}, "symbols", "1 to 500"),
    ({"symbols": ["A", "A"]}, "symbols", "'A' twice"),
    ({"start": None}, "start", "start is missing"),
    ({"start": NOW_MS}, "start", "lies in the future"),
    ({"start": "2099-01-01"}, "start", "lies in the future"),
    ({"end": START_MS}, "end", "end must be after start"),
    ({"start": NOW_MS + 2, "end": NOW_MS + 1}, "end", "end must be after start"),
    ({"end": "tomorrow"}, "end", "is not a time"),
    ({"dry_run": "yes"}, "dry_run", "must be true or false"),
    ({"dryrun": True}, "dryrun", "did you mean dry_run?"),
    ({"symbol": "A"}, "symbol", "did you mean symbols?"),
    ({"timeframe": "1m"}, "timeframe", "there are market, provider, symbols, start, end, dry_run"),
]


@pytest.mark.parametrize(("change", "parameter", "words"), WRONG, ids=lambda value: str(value)[:40])
async def test_a_wrong_field_is_told_what_would_be_right(
    client: Client, services: FakeServices, change: dict[str, Any], parameter: str, words: str
):
    status, code, named, detail = await refusal(await post(client, {**WANTED, **change}))
    assert (status, code, named) == (400, "invalid_parameter", parameter)
    assert words in detail
    assert services.backfills.requests == []


async def test_query_parameters_are_refused(client: Client):
    for method, path in (("POST", URL), ("GET", f"{URL}/x"), ("POST", f"{URL}/x/pause"), ("GET", f"{URL}/x/events")):
        status, code, named, _ = await refusal(await client.open(f"{path}?dry_run=true", method=method))
        assert (status, code, named) == (400, "invalid_parameter", "dry_run")


@pytest.mark.parametrize(
    "kind",
    [None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json", "a/b/c"],
)
async def test_a_body_that_is_not_said_to_be_json_is_refused(client: Client, kind: str | None):
    headers = {} if kind is None else {"Content-Type": kind}
    response = await client.post(URL, data=json.dumps(WANTED), headers=headers)
    status, code, _, detail = await refusal(response)
    assert (status, code) == (415, "unsupported_media_type")
    assert "Content-Type: application/json" in detail


async def test_a_compressed_body_is_refused(client: Client):
    response = await post(client, headers={"Content-Encoding": "gzip"})
    assert (await refusal(response))[:2] == (415, "unsupported_media_type")


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8"])
async def test_json_by_any_spelling_is_understood(client: Client, kind: str):
    response = await client.post(URL, data=json.dumps(WANTED), headers={"Content-Type": kind})
    await read(response, 202)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b"[]", b"[" * 100_000], ids=str)
async def test_a_body_that_is_no_json_object_is_refused(client: Client, raw: bytes):
    response = await client.post(URL, data=raw, headers={"Content-Type": "application/json"})
    assert (await refusal(response))[:3] == (400, "invalid_parameter", "body")


async def test_a_body_of_more_than_a_mebibyte_is_refused_whether_its_length_was_told_or_not(web: Quart):
    kind = {"Content-Type": "application/json"}
    large = b" " * (1 << 20) + b"{}"
    told = await refusal(await web.test_client().post(URL, data=large, headers=kind))
    assert told == (413, "body_too_large", None, "The request's body is larger than 1 MiB.")
    async with web.test_client().request(URL, method="POST", headers=kind) as connection:
        await connection.send(large)
    assert (await refusal(await connection.as_response()))[:2] == (413, "body_too_large")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (UnknownSymbolError("fake lists none of them."), 404, "unknown_symbol"),
        (AuthenticationPluginError("bad key"), 502, "provider_authentication_failed"),
        (NetworkPluginError("gone"), 503, "provider_unavailable"),
        (DatabaseUnavailableError(), 503, "database_unavailable"),
        (RuntimeError("secret"), 500, "internal_error"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_what_goes_wrong_has_its_status_and_code(
    client: Client, services: FakeServices, error: Exception, status: int, code: str
):
    services.backfills.error = error
    for response in (await post(client), await post(client, {**WANTED, "dry_run": True})):
        answer = await read(response, status)
        assert answer["code"] == code


async def test_unknown_names_are_not_found(client: Client):
    for change, code in (
        ({"market": "no"}, "unknown_market"),
        ({"provider": "no"}, "unknown_provider"),
        ({"symbols": ["NO"]}, "unknown_symbol"),
    ):
        assert (await refusal(await post(client, {**WANTED, **change})))[:2] == (404, code)


async def test_a_request_that_takes_too_long_is_ended(services: FakeServices):
    services = FakeServices(request_timeout_s=0.1)
    never = asyncio.Event()

    async def hang(request: BackfillRequest) -> Plan:
        await never.wait()
        raise AssertionError

    services.backfills.plan = hang  # type: ignore[method-assign]
    client = create_app(services.config, services).test_client()  # type: ignore[arg-type]
    assert (await refusal(await post(client, {**WANTED, "dry_run": True})))[:2] == (503, "incomplete")


# Planning


async def test_a_dry_run_shows_the_plan_and_makes_no_job(client: Client):
    content = {**WANTED, "symbols": ["BTC/USDT", "NO/SUCH"], "end": START_MS + DAY_MS, "dry_run": True}
    response = await post(client, content)
    assert "Location" not in response.headers
    assert await read(response) == {
        "dry_run": True,
        "market": "test",
        "provider": "fake",
        "start": START_MS,
        "end": START_MS + DAY_MS,
        "minutes": 1440,
        "chunks": 1,
        "calls": 1,
        "estimated_seconds": 1.5,
        "symbols": [
            {
                "symbol": "BTC/USDT",
                "minutes": 1440,
                "chunks": 1,
                "gap_count": 1,
                "gaps": [{"start": START_MS, "end": START_MS + DAY_MS}],
            }
        ],
        "errors": [
            {"symbol": "NO/SUCH", "detail": "There is no such symbol.", "attempts": 0, "start": None, "end": None}
        ],
    }
    assert await read(await client.get(URL)) == {"backfills": []}


async def test_of_very_many_gaps_the_first_thousand_are_listed_and_all_are_counted(
    client: Client, services: FakeServices
):
    gaps = RangeSet((START_MS + 2 * n * MINUTE_MS, START_MS + (2 * n + 1) * MINUTE_MS) for n in range(1500))

    async def plan(request: BackfillRequest) -> Plan:
        return Plan(request, (SymbolPlan("BTC/USDT", gaps, (request.range,) * 3),), (), calls=3, estimated_s=0.0)

    services.backfills.plan = plan  # type: ignore[method-assign]
    answer = await read(await post(client, {**WANTED, "dry_run": True}))
    (told,) = answer["symbols"]
    assert (told["gap_count"], told["minutes"], answer["minutes"]) == (1500, 1500, 1500)
    assert [gap["start"] for gap in told["gaps"]] == [gap.start_ms for gap in gaps][:1000]


# Showing


async def test_jobs_are_listed_newest_first_up_to_the_limit(client: Client):
    for _ in range(3):
        await read(await post(client), 202)
    assert [job["id"] for job in (await read(await client.get(URL)))["backfills"]] == ["job-3", "job-2", "job-1"]
    two = await read(await client.get(f"{URL}?limit=2"))
    assert two["backfills"][-1] == await read(await client.get(f"{URL}/job-2"))
    assert len(two["backfills"]) == 2


@pytest.mark.parametrize("query", ["limit=0", "limit=501", "limit=x", "limit="])
async def test_a_limit_that_cannot_be_is_refused(client: Client, query: str):
    assert (await refusal(await client.get(f"{URL}?{query}")))[:3] == (400, "invalid_parameter", "limit")


async def test_a_job_shows_its_progress_and_its_errors(client: Client, services: FakeServices):
    await post(client)
    part = TimeRange(START_MS, START_MS + DAY_MS)
    await services.backfills.move(
        "job-1",
        state=JobState.RUNNING,
        origin=Origin.HEALING,
        started_ms=NOW_MS + 5,
        progress=Progress(1, 1, 3, 1234, 12.3456),
        errors=(JobError("BTC/USDT", "the venue is down", 10, part),),
        error_count=1,
    )
    answer = await read(await client.get(f"{URL}/job-1"))
    assert (answer["state"], answer["origin"], answer["started_at"]) == ("running", "healing", NOW_MS + 5)
    assert answer["progress"] == {
        "chunks_done": 1,
        "chunks_failed": 1,
        "chunks_total": 3,
        "bars_written": 1234,
        "percent": 66.7,
        "eta_seconds": 12.3,
    }
    error = {"symbol": "BTC/USDT", "detail": "the venue is down", "attempts": 10, "start": START_MS, "end": part.end_ms}
    assert (answer["errors"], answer["error_count"]) == ([error], 1)


@pytest.mark.parametrize(
    ("progress", "percent"),
    [
        (Progress(0, 0, 0, 0, None), 100.0),
        (Progress(0, 0, 7, 0, None), 0.0),
        (Progress(499_999, 0, 500_000, 0, None), 99.9),
        (Progress(499_999, 1, 500_000, 0, None), 100.0),
    ],
)
async def test_a_hundred_percent_is_said_of_all_chunks_only(
    client: Client, services: FakeServices, progress: Progress, percent: float
):
    await post(client)
    await services.backfills.move("job-1", progress=progress)
    assert (await read(await client.get(f"{URL}/job-1")))["progress"]["percent"] == percent


STRANGE_IDS = ("job-9", "%00", "%F0%9F%92%B0", "a" * 65, "..", "'", "%0A", "00000000-0000-0000-0000-000000000000")


@pytest.mark.parametrize("job_id", STRANGE_IDS)
async def test_an_id_of_no_job_is_not_found(client: Client, job_id: str):
    for method, end in (("GET", ""), ("GET", "/events"), ("HEAD", "/events"), ("POST", "/pause"), ("POST", "/retry")):
        response = await client.open(f"{URL}/{job_id}{end}", method=method)
        assert response.status_code == 404
        assert response.content_type == "application/problem+json"
        if method != "HEAD":
            assert json.loads(await response.get_data())["code"] == "not_found"


# Steering


@pytest.mark.parametrize(
    ("before", "action", "after"),
    [
        (JobState.RUNNING, "pause", "paused"),
        (JobState.PAUSED, "resume", "queued"),
        (JobState.QUEUED, "cancel", "cancelled"),
        (JobState.FAILED, "retry", "queued"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"json": {}}], ids=["no body", "empty object"])
async def test_a_job_is_steered_and_shown(
    client: Client, services: FakeServices, before: JobState, action: str, after: str, options: Any
):
    await post(client)
    await services.backfills.move("job-1", state=before)
    answer = await read(await client.post(f"{URL}/job-1/{action}", **options))
    assert answer["state"] == after
    assert answer == await read(await client.get(f"{URL}/job-1"))


@pytest.mark.parametrize("action", ["pause", "resume", "cancel", "retry"])
async def test_a_job_whose_state_forbids_it_is_a_conflict(client: Client, services: FakeServices, action: str):
    await post(client)
    await services.backfills.move("job-1", state=JobState.DONE)
    told = await refusal(await client.post(f"{URL}/job-1/{action}"))
    assert told == (409, "conflict", None, "The backfill is done.")


async def test_steering_takes_no_fields(client: Client):
    await post(client)
    told = await refusal(await post(client, {"force": True}, url=f"{URL}/job-1/pause"))
    assert told[:3] == (400, "invalid_parameter", "force")


async def test_other_methods_are_told_which_there_are(client: Client):
    for path, methods in (
        ("", "GET, HEAD, OPTIONS, POST"),
        ("/x", "GET, HEAD, OPTIONS"),
        ("/x/pause", "OPTIONS, POST"),
    ):
        response = await client.open(f"{URL}{path}", method="DELETE")
        assert (response.status_code, response.headers["Allow"]) == (405, methods)
    assert (await client.get(f"{URL}/x/pause")).status_code == 405
    assert (await client.post(f"{URL}/x/stop")).status_code == 404


async def test_pages_of_the_origins_of_the_settings_may_make_jobs():
    services = FakeServices(cors_origins=("https://charts.example.org",))
    client = create_app(services.config, services).test_client()  # type: ignore[arg-type]
    origin = {"Origin": "https://charts.example.org"}
    asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "Content-Type"}
    allowed = (await client.options(URL, headers={**origin, **asking})).headers
    assert "POST" in allowed["Access-Control-Allow-Methods"]
    assert "content-type" in allowed["Access-Control-Allow-Headers"].lower()
    made = await post(client, headers=origin)
    assert made.headers["Access-Control-Allow-Origin"] == "https://charts.example.org"
    assert "Location" in made.headers["Access-Control-Expose-Headers"]


# Following


async def nobody_watches(backfills: FakeBackfills) -> None:
    async with asyncio.timeout(10):
        await backfills.unwatched.wait()


async def test_a_job_is_followed_from_now_through_each_change_to_its_end(client: Client, services: FakeServices):
    made = await read(await post(client), 202)
    async with follow(client, EVENTS) as stream:
        assert await stream.event() == ("progress", 1, made)
        assert stream.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert stream.headers["Cache-Control"] == "no-store"
        assert stream.headers["X-Accel-Buffering"] == "no"
        for done in range(1, 3):
            await services.backfills.move("job-1", state=JobState.RUNNING, progress=Progress(done, 0, 3, 9, None))
            name, number, job = await stream.event()
            assert (name, number, job["progress"]["chunks_done"]) == ("progress", done + 1, done)
        await services.backfills.move("job-1", state=JobState.DONE)
        name, number, job = await stream.event()
        assert (name, number) == ("end", 4)
        assert job == await read(await client.get(f"{URL}/job-1"))
        await nobody_watches(services.backfills)


async def test_the_stream_of_a_job_that_is_over_is_its_end_and_nothing_more(client: Client, services: FakeServices):
    await post(client)
    await services.backfills.move("job-1", state=JobState.CANCELLED)
    async with asyncio.timeout(10):
        response = await client.get(EVENTS)
        text = (await response.get_data()).decode()
    assert text.count("event:") == 1
    assert "event: end\nid: 1\ndata: {" in text
    assert text.endswith("}\n\n")


async def test_silence_is_filled_with_comments_and_no_change_is_lost(
    client: Client, services: FakeServices, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(blueprints.backfills, "KEEP_ALIVE_S", 0.01)
    await post(client)
    async with follow(client, EVENTS) as stream:
        await stream.event()
        for done in (1, 2):
            for _ in range(3):
                assert await stream.block() == [": keep-alive"]
            await services.backfills.move("job-1", progress=Progress(done, 0, 3, 9, None))
            assert (await stream.event())[2]["progress"]["chunks_done"] == done


async def test_a_client_that_goes_away_ends_the_watch(client: Client, services: FakeServices):
    await post(client)
    async with follow(client, EVENTS) as stream:
        await stream.event()
        assert services.backfills.watchers == 1
    await nobody_watches(services.backfills)


async def test_a_stream_outlasts_the_time_that_other_requests_have():
    services = FakeServices(request_timeout_s=0.1)
    web = create_app(services.config, services)  # type: ignore[arg-type]
    web.config["RESPONSE_TIMEOUT"] = 0.1
    client = web.test_client()
    await post(client)
    async with follow(client, EVENTS) as stream:
        await stream.event()
        await asyncio.sleep(0.3)
        await services.backfills.move("job-1", state=JobState.DONE)
        assert (await stream.event())[0] == "end"


async def test_an_absence_of_the_database_does_not_end_a_stream(client: Client, services: FakeServices):
    await post(client)
    gone = DatabaseUnavailableError()
    gone.retry_after_s = 0.01
    async with follow(client, EVENTS) as stream:
        await stream.event()
        await services.backfills.interrupt(gone)
        await services.backfills.move("job-1", progress=Progress(2, 0, 3, 9, None))
        name, number, job = await stream.event()
        assert (name, number, job["progress"]["chunks_done"]) == ("progress", 2, 2)


async def test_without_the_database_no_stream_begins(client: Client, services: FakeServices):
    await post(client)
    services.backfills.error = DatabaseUnavailableError()
    assert (await refusal(await client.get(EVENTS)))[:2] == (503, "database_unavailable")


async def test_streams_end_when_the_server_does(web: Quart, client: Client, services: FakeServices):
    await post(client)
    async with follow(client, EVENTS) as stream:
        await stream.event()
        web.extensions[STOPPING].set()
        await nobody_watches(services.backfills)


async def test_head_of_a_stream_has_its_headers_and_ends(client: Client, services: FakeServices):
    await post(client)
    async with asyncio.timeout(10):
        response = await client.head(EVENTS)
    assert (response.status_code, response.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
    assert services.backfills.watchers == 0


async def test_a_client_that_reads_nothing_is_not_collected_for(web: Quart, services: FakeServices):
    """The job is looked at again only when the client took what there was."""
    await post(web.test_client())
    backfills, honest, seen = services.backfills, services.backfills.watch, []
    taken: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)
    gone = asyncio.Event()

    async def noting(job_id: str) -> AsyncIterator[Job]:
        async with aclosing(honest(job_id)) as jobs:
            async for job in jobs:
                seen.append(job.progress.chunks_done)
                yield job

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        await taken.put(message.get("body", b""))

    backfills.watch = noting  # type: ignore[assignment,method-assign]
    asking = asyncio.create_task(web.asgi_app(http_scope(EVENTS), receive, send))  # type: ignore[arg-type]
    async with asyncio.timeout(10):
        while b"event: progress" not in await taken.get():
            pass
        for done in range(1, 100):
            await backfills.move("job-1", progress=Progress(done, 0, 100, 9, None))
            await asyncio.sleep(0)
        # One waits to be taken, one to be sent.
        assert len(seen) <= 3
        while b'"chunks_done":99' not in await taken.get():
            pass
        assert len(seen) <= 4
        gone.set()
        await asking
    await nobody_watches(backfills)


def http_scope(path: str) -> dict[str, Any]:
    """A GET as a server passes it on."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"x")],
    }
