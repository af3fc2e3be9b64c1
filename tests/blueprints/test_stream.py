"""The stream's protocol, over the real server."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import pytest

from domain.bar import Bar
from domain.errors import DatabaseUnavailableError, UnsupportedTimeframeError
from domain.series import Series, Verdict
from domain.time_range import TimeRange
from domain.timeframe import Timeframe
from plugins.base import NetworkPluginError, RateLimitPluginError
from services.live import BarState, FeedState, GapEvent, LiveEvent, LiveQuery, StatusEvent
from tests.support.servers import each_server  # noqa: F401
from tests.support.streaming import SERIES, Socket, StreamServer, a_bar, connected, serving, until

pytestmark = pytest.mark.usefixtures("each_server")


@pytest.fixture
async def server() -> AsyncIterator[StreamServer]:
    async with serving() as one:
        yield one


@pytest.fixture
async def socket(server: StreamServer) -> AsyncIterator[Socket]:
    async with connected(server) as one:
        yield one


SUBSCRIBE = {"op": "subscribe", "id": "a", **SERIES, "timeframe": "1m"}


async def test_a_subscription_is_confirmed_then_what_was_before_then_live_then_bars(
    server: StreamServer, socket: Socket
):
    server.subscriptions.parts = [[Bar(0, 1, 2, 0.5, 1.5, 10)], [Bar(60_000, 1, 2, 0.5, 1.5, 10)]]
    assert await socket.subscribe() == [
        {"id": "a", "type": "subscribed", **SERIES, "timeframe": "1m"},
        {"id": "a", "type": "snapshot", "bars": [[0, 1.0, 2.0, 0.5, 1.5, 10.0]]},
        {"id": "a", "type": "snapshot", "bars": [[60_000, 1.0, 2.0, 0.5, 1.5, 10.0]]},
        {"id": "a", "type": "live"},
    ]
    for state in BarState:
        server.subscriptions.tell(a_bar(120_000, state))
        told = {"id": "a", "type": "bar", "bar": [120_000, 1.0, 2.0, 0.5, 1.5, 10.0], "state": state.value}
        assert await socket.hear() == told


TOLD: list[tuple[LiveEvent, dict[str, Any]]] = [
    (
        GapEvent(TimeRange(0, 60_000), Verdict.FETCH_FAILED),
        {"type": "gap", "start": 0, "end": 60_000, "verdict": "fetch_failed"},
    ),
    (StatusEvent(FeedState.DOWN, 'it "hung"'), {"type": "status", "state": "down", "detail": 'it "hung"'}),
    (StatusEvent(FeedState.UP), {"type": "status", "state": "up", "detail": None}),
]


@pytest.mark.parametrize(("event", "message"), TOLD, ids=lambda value: type(value).__name__)
async def test_gaps_and_states_are_told(
    server: StreamServer, socket: Socket, event: LiveEvent, message: dict[str, Any]
):
    await socket.subscribe()
    server.subscriptions.tell(event)
    assert await socket.hear() == {"id": "a", **message}


async def test_bars_that_are_made_up_are_labelled(server: StreamServer, socket: Socket):
    opened = server.services.markets.opened[0]
    opened.feed.capabilities = msgspec.structs.replace(opened.feed.capabilities, simulated=True)
    assert (await socket.subscribe())[0] == {
        "id": "a",
        "type": "subscribed",
        **SERIES,
        "timeframe": "1m",
        "simulated": True,
    }


async def test_all_clients_share_one_encoding_and_each_has_its_own_ids(server: StreamServer):
    async with connected(server) as one, connected(server) as other:
        await one.subscribe('"quoted" é')
        await other.subscribe("b")
        await other.subscribe("c")
        event = a_bar(0)
        server.subscriptions.tell(event)
        assert (await one.hear())["id"] == '"quoted" é'
        assert [(await other.hear())["id"], (await other.hear())["id"]] == ["b", "c"]
        assert event.wire is not None


ASKED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"timeframe": None, "since": None, "last": None, "bars": None}, {}),
    ({"timeframe": "1M"}, {"timeframe": Timeframe.MN1}),
    ({"bars": "closed"}, {"closed_only": True}),
    ({"bars": "all", "last": 1}, {"last": 1}),
    ({"last": 10_000.0}, {"last": 10_000}),
    ({"since": 1_600_000_000_000}, {"since_ms": 1_600_000_000_000}),
    ({"since": "1600000000000"}, {"since_ms": 1_600_000_000_000}),
    ({"since": "2020-09-13T12:26:40Z"}, {"since_ms": 1_600_000_000_000}),
]


@pytest.mark.parametrize(("asked", "meant"), ASKED, ids=lambda value: str(value))
async def test_what_is_asked_is_what_is_meant(
    server: StreamServer, socket: Socket, asked: dict[str, Any], meant: dict[str, Any]
):
    message = {"op": "subscribe", "id": "a", **SERIES, **asked}
    await socket.say(**message)
    await socket.hear_until("live")
    query = {"series": Series(*SERIES.values()), "timeframe": Timeframe.M1} | meant
    assert server.subscriptions.made[0].query == LiveQuery(**query)


WRONG: list[tuple[Any, str, str | None]] = [
    ("", "invalid_parameter", "message"),
    ("{", "invalid_parameter", "message"),
    ("[]", "invalid_parameter", "message"),
    ('"ping"', "invalid_parameter", "message"),
    ('{"op": NaN}', "invalid_parameter", "message"),
    ('{"op": "ping", "op": "ping"}', "invalid_parameter", "message"),
    ("[" * 60_000, "invalid_parameter", "message"),
    ('{"op": ' + "9" * 5_000 + "}", "invalid_parameter", "message"),
    (b'{"op": "ping"}', "invalid_parameter", "message"),
    ({}, "invalid_parameter", "op"),
    ({"op": None}, "invalid_parameter", "op"),
    ({"op": ["ping"]}, "invalid_parameter", "op"),
    ({"op": "PING"}, "invalid_parameter", "op"),
    ({"op": "\ud800" * 100}, "invalid_parameter", "op"),
    ({"op": "ping", "id": "a"}, "invalid_parameter", "id"),
    ({"op": "auth"}, "invalid_parameter", "key"),
    ({"op": "auth", "key": 5}, "invalid_parameter", "key"),
    ({"op": "auth", "key": "secret"}, "feature_not_supported", None),
    ({"op": "unsubscribe"}, "invalid_parameter", "id"),
    ({"op": "unsubscribe", "id": "never"}, "not_found", None),
    ({**SUBSCRIBE, "id": None}, "invalid_parameter", "id"),
    ({**SUBSCRIBE, "id": 7}, "invalid_parameter", "id"),
    ({**SUBSCRIBE, "id": ""}, "invalid_parameter", "id"),
    ({**SUBSCRIBE, "id": "x" * 65}, "invalid_parameter", "id"),
    ({**SUBSCRIBE, "id": "\ud800"}, "invalid_parameter", "id"),
    ({**SUBSCRIBE, "id": "a\n"}, "invalid_parameter", "id"),
    ({**SUBSCRIBE, "market": None}, "invalid_parameter", "market"),
    ({**SUBSCRIBE, "provider": ["fake"]}, "invalid_parameter", "provider"),
    ({**SUBSCRIBE, "symbol": "NONE"}, "unknown_symbol", None),
    ({**SUBSCRIBE, "timeframe": "7m"}, "unsupported_timeframe", None),
    ({**SUBSCRIBE, "timeframe": 1}, "invalid_parameter", "timeframe"),
    ({**SUBSCRIBE, "since": 1, "last": 1}, "invalid_parameter", "last"),
    ({**SUBSCRIBE, "since": "yesterday"}, "invalid_parameter", "since"),
    ({**SUBSCRIBE, "since": 4_000_000_000_000}, "invalid_parameter", "since"),
    ({**SUBSCRIBE, "since": 1.5}, "invalid_parameter", "since"),
    ({**SUBSCRIBE, "since": True}, "invalid_parameter", "since"),
    ({**SUBSCRIBE, "last": 0}, "invalid_parameter", "last"),
    ({**SUBSCRIBE, "last": 10_001}, "invalid_parameter", "last"),
    ({**SUBSCRIBE, "last": "5"}, "invalid_parameter", "last"),
    ({**SUBSCRIBE, "last": True}, "invalid_parameter", "last"),
    ({**SUBSCRIBE, "last": 1.5}, "invalid_parameter", "last"),
    ({**SUBSCRIBE, "bars": "some"}, "invalid_parameter", "bars"),
    ({**SUBSCRIBE, "bars": []}, "invalid_parameter", "bars"),
    ({**SUBSCRIBE, "barz": "all"}, "invalid_parameter", "barz"),
]


async def test_whatever_is_wrong_is_an_error_that_says_so_and_the_socket_stays_open(socket: Socket):
    for message, code, parameter in WRONG:
        if isinstance(message, bytes):
            await socket.ws.send_bytes(message)
        else:
            await socket.ws.send_str(message if isinstance(message, str) else json.dumps(message))
        told = await socket.hear()
        expected = {"type": "error", "code": code} | ({} if parameter is None else {"parameter": parameter})
        shown = str(message)[:100]
        assert {name: value for name, value in told.items() if name not in {"id", "detail"}} == expected, shown
        assert 10 < len(told["detail"]) < 300, shown
        given = message.get("id") if isinstance(message, dict) else None
        fine = isinstance(given, str) and given.isprintable() and len(given) < 65
        assert told["id"] == (given if fine else None), shown
    assert await socket.ask(op="ping") == {"type": "pong"}


FAILURES = [
    (DatabaseUnavailableError(), "database_unavailable"),
    (UnsupportedTimeframeError("Not here."), "unsupported_timeframe"),
    (NetworkPluginError("It hangs."), "provider_unavailable"),
    (RateLimitPluginError("Slower."), "provider_rate_limited"),
]


@pytest.mark.parametrize("field", ["error", "run_error"])
@pytest.mark.parametrize(("error", "code"), FAILURES, ids=[code for _, code in FAILURES])
async def test_a_subscription_that_cannot_be_had_is_an_error_and_its_id_is_free_again(
    server: StreamServer, socket: Socket, field: str, error: Exception, code: str
):
    setattr(server.subscriptions, field, error)
    await socket.say(**SUBSCRIBE)
    told = (await socket.hear_until("error"))[-1]
    assert (told["id"], told["code"], told["detail"]) == ("a", code, str(error))
    assert server.hub.subscriptions == 0
    assert all(one.closed for one in server.subscriptions.made)
    setattr(server.subscriptions, field, None)
    assert (await socket.subscribe())[-1] == {"id": "a", "type": "live"}


async def test_a_fault_of_ours_tells_the_client_nothing_of_it(
    server: StreamServer, socket: Socket, caplog: pytest.LogCaptureFixture
):
    server.subscriptions.error = ZeroDivisionError("the secret")
    assert await socket.ask(**SUBSCRIBE) == {"type": "error", "id": "a", "code": "internal_error"}
    assert "the secret" in caplog.text


async def test_an_id_in_use_is_refused_and_its_subscription_goes_on(server: StreamServer, socket: Socket):
    await socket.subscribe()
    told = await socket.ask(**SUBSCRIBE)
    assert (told["id"], told["code"]) == ("a", "conflict")
    server.subscriptions.tell(a_bar(0))
    assert (await socket.hear())["type"] == "bar"


async def test_after_unsubscribing_nothing_more_is_told_and_the_id_is_free(server: StreamServer, socket: Socket):
    await socket.subscribe()
    await socket.subscribe("b")
    assert await socket.ask(op="unsubscribe", id="a") == {"id": "a", "type": "unsubscribed"}
    assert server.subscriptions.made[0].closed
    server.subscriptions.tell(a_bar(0))
    assert (await socket.hear())["id"] == "b"
    assert (await socket.subscribe())[-1]["id"] == "a"


async def test_a_subscription_that_is_still_being_made_can_be_given_up(server: StreamServer, socket: Socket):
    server.subscriptions.gate = asyncio.Event()
    await socket.say(**SUBSCRIBE)
    assert await socket.ask(op="unsubscribe", id="a") == {"id": "a", "type": "unsubscribed"}
    server.subscriptions.gate.set()
    assert (await socket.subscribe())[-1] == {"id": "a", "type": "live"}
    assert len(server.subscriptions.made) == 1


async def test_a_subscription_that_takes_too_long_is_an_error():
    async with serving(request_timeout_s=0.1) as server, connected(server) as socket:
        server.subscriptions.gate = asyncio.Event()
        assert (await socket.ask(**SUBSCRIBE))["code"] == "incomplete"


async def test_a_connection_has_so_many_subscriptions_at_most():
    async with serving(stream_max_subscriptions=2) as server, connected(server) as socket:
        await socket.subscribe("a")
        await socket.subscribe("b")
        told = await socket.ask(**{**SUBSCRIBE, "id": "c"})
        assert (told["id"], told["code"]) == ("c", "conflict")
        await socket.ask(op="unsubscribe", id="a")
        await socket.subscribe("c")


async def test_a_client_that_goes_leaves_nothing_behind(server: StreamServer):
    server.subscriptions.parts = [[Bar(0, 1, 2, 0.5, 1.5, 10)]]
    async with connected(server) as socket:
        await socket.subscribe("a")
        server.subscriptions.gate = asyncio.Event()
        await socket.say(**{**SUBSCRIBE, "id": "b"})
        await until(lambda: server.hub.subscriptions == 2)
    await until(lambda: not server.hub.connections)
    assert (len(server.hub.clients), server.hub.subscriptions) == (0, 0)
    assert [one.closed for one in server.subscriptions.made] == [True]
    assert server.hub.disconnects.total() == 1
    names = [task.get_name() for task in asyncio.all_tasks()]
    assert not [name for name in names if name.startswith(("subscribe", "wait for a slow"))]


async def test_heartbeats_come_by_themselves():
    async with serving(heartbeat_s=0.15) as server, connected(server) as socket:
        got = [json.loads((await socket.ws.receive()).data) for _ in range(3)]
    assert [one["type"] for one in got] == ["heartbeat"] * 3
    assert got[0]["ts"] < got[1]["ts"] < got[2]["ts"]


ORIGINS = [
    (None, (), 101),
    ("http://127.0.0.1:{port}", (), 101),
    ("https://127.0.0.1:{port}", (), 101),
    ("http://127.0.0.1", (), 403),
    ("http://evil.example", (), 403),
    ("null", (), 403),
    ("http://[", (), 403),
    ("", (), 403),
    ("http://evil.example", ("https://charts.example",), 403),
    ("https://charts.example", ("https://charts.example",), 101),
    ("http://127.0.0.1:{port}", ("https://charts.example",), 101),
    (None, ("https://charts.example",), 101),
    ("http://evil.example", ("*",), 101),
]


@pytest.mark.parametrize(("origin", "welcome", "status"), ORIGINS)
async def test_pages_of_other_origins_may_not_connect_unless_the_settings_say_so(
    origin: str | None, welcome: tuple[str, ...], status: int
):
    async with serving(cors_origins=welcome) as server:
        headers = {} if origin is None else {"Origin": origin.format(port=server.port)}
        if status == 101:
            async with connected(server, headers=headers) as socket:
                assert await socket.ask(op="ping") == {"type": "pong"}
            return
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with connected(server, headers=headers):
                pytest.fail("it was let in")
        assert refused.value.status == status


async def test_one_client_too_many_is_refused_until_another_has_left():
    async with serving(stream_max_clients=1) as server:
        async with connected(server) as socket:
            await socket.ask(op="ping")
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                async with connected(server):
                    pytest.fail("it was let in")
            assert refused.value.status == 503
        await until(lambda: not server.hub.connections)
        async with connected(server) as socket:
            assert await socket.ask(op="ping") == {"type": "pong"}


async def test_sockets_to_other_places_are_refused_like_any_request(server: StreamServer):
    for path, status in (("/api/v1/nothing", 404), ("/healthz", 400), ("/api/v1/stream/", 404)):
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(server.url + path)
        assert refused.value.status == status


async def test_the_live_series_are_listed(server: StreamServer, socket: Socket):
    await socket.subscribe()
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{server.url}/api/v1/stream/subscriptions") as answer:
            listed = await answer.json()
        async with session.get(f"{server.url}/api/v1/stream/subscriptions?x=1") as answer:
            assert answer.status == 400
        async with session.get(f"{server.url}/api/v1/stream") as answer:
            assert answer.status == 400
    assert listed == {
        "clients": 1,
        "subscriptions": 1,
        "series": [
            {
                **SERIES,
                "state": "down",
                "detail": "away",
                "owner": True,
                "clients": {"1m": 1},
                "settled_until": 60_000,
                "last_event": None,
            }
        ],
    }


async def test_what_the_stream_does_is_counted(server: StreamServer, socket: Socket):
    await socket.subscribe()
    now_ms = server.services.clock.now_ms()
    server.subscriptions.tell(a_bar(0, BarState.FORMING, venue_ms=now_ms))
    server.subscriptions.tell(a_bar(0, BarState.FORMING))
    server.subscriptions.tell(a_bar(0, venue_ms=4_000_000_000_000))
    assert (await socket.hear())["state"] == "closed"
    async with aiohttp.ClientSession() as session, session.get(f"{server.url}/metrics") as answer:
        text = await answer.text()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("candlery_stream"))
    assert values["candlery_stream_clients"] == "1.0"
    assert values["candlery_stream_subscriptions"] == "1.0"
    assert values["candlery_stream_messages_sent_total"] == "3.0"
    assert values["candlery_stream_forming_conflated_total"] == "2.0"
    assert values['candlery_stream_disconnects_total{reason="slow"}'] == "0.0"
    assert values['candlery_stream_bar_lag_seconds_bucket{le="0.005"}'] == "1.0"
    assert values["candlery_stream_bar_lag_seconds_count"] == "1.0"
