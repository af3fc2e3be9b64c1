"""What is changed of Hypercorn's and Quart's WebSockets holds with the versions that are installed."""

import asyncio
import json

import aiohttp
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ResponseReceived
from hypercorn.protocol import h2 as hypercorn_h2
from hypercorn.protocol import h11 as hypercorn_h11

from app_extensions.serving.hypercorn_websocket import LinkedStream, install
from blueprints.stream_link import PING, text_frame
from tests.support.raw_socket import CLOSE, TEXT, RawSocket, frame, raw_socket
from tests.support.raw_socket import PING as PING_KIND
from tests.support.servers import chosen_server, each_server  # noqa: F401
from tests.support.streaming import connected, serving, until

pytestmark = pytest.mark.usefixtures("each_server")


def test_hypercorn_makes_its_websockets_of_our_kind():
    install()
    assert hypercorn_h11.WSStream is LinkedStream
    assert hypercorn_h2.WSStream is LinkedStream


async def test_no_compression_is_negotiated_though_the_client_offers_it():
    async with serving() as server:
        async with raw_socket(server.port) as socket:
            head = await socket.shake_hands(more="Sec-WebSocket-Extensions: permessage-deflate\r\n")
        assert head.startswith("HTTP/1.1 101")
        assert "extensions" not in head.lower()
        async with connected(server, compress=15) as client:
            assert client.ws.compress == 0
            assert await client.ask(op="ping") == {"type": "pong"}


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536, 200_000])
async def test_a_frame_of_any_size_is_read_as_it_was_written(size: int):
    text = "é" * (size // 2) + "x" * (size % 2)
    reader = asyncio.StreamReader()
    reader.feed_data(text_frame(text) + PING)
    socket = RawSocket(reader, None)  # type: ignore[arg-type]
    assert await socket.hear() == (TEXT, text.encode())
    assert await socket.hear() == (PING_KIND, b"")


async def test_a_ping_is_answered_and_a_close_too():
    async with serving() as server, raw_socket(server.port) as socket:
        await socket.shake_hands()
        socket.writer.write(frame(PING_KIND, b"hello"))
        assert await socket.hear() == (10, b"hello")
        socket.writer.write(frame(CLOSE, (1000).to_bytes(2)))
        assert await socket.hear_close() == 1000
        await socket.hear_end()
        await until(lambda: not server.hub.connections)


async def test_a_message_in_pieces_is_one_message():
    async with serving() as server, raw_socket(server.port) as socket:
        await socket.shake_hands()
        socket.writer.write(frame(TEXT, b'{"op": ', last=False) + frame(PING_KIND) + frame(0, b'"ping"}'))
        assert (await socket.hear())[0] == 10
        assert await socket.hear() == (TEXT, b'{"type":"pong"}')


@pytest.mark.parametrize("size", [1, 1_000, 1 << 20])
async def test_many_messages_are_taken_in_their_order_however_they_are_cut_up(size: int):
    count = 100 if size == 1 else 3_000
    words = [json.dumps({"op": "unsubscribe", "id": f"é{number}"}, ensure_ascii=False) for number in range(count)]
    frames = b"".join(
        frame(TEXT, text.encode()) + (frame(PING_KIND) if at % 7 else b"") for at, text in enumerate(words)
    )
    async with serving(stream_message_burst=100_000) as server, raw_socket(server.port) as socket:
        await socket.shake_hands()

        async def say() -> None:
            for at in range(0, len(frames), size):
                socket.writer.write(frames[at : at + size])
                await socket.writer.drain()

        saying = asyncio.create_task(say())
        told = []
        while len(told) < count:
            kind, payload = await socket.hear()
            told += [json.loads(payload)["id"]] if kind == TEXT else []
        await saying
        assert told == [f"é{number}" for number in range(count)]


async def test_a_client_that_vanishes_in_the_midst_of_the_handshake_leaves_nothing():
    async with serving() as server:
        async with raw_socket(server.port) as socket:
            await socket.shake_hands()
        async with raw_socket(server.port) as socket:
            socket.writer.write(
                b"GET /api/v1/stream HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            )
        await until(lambda: server.hub.disconnects.total() == 1)
        assert not server.hub.connections
        async with connected(server) as client:
            assert await client.ask(op="ping") == {"type": "pong"}


async def test_who_speaks_before_the_handshake_is_over_is_refused_and_leaves_nothing():
    async with serving() as server, raw_socket(server.port) as socket:
        assert (await socket.shake_hands(behind=frame(TEXT, b'{"op": "ping"}'))).startswith("HTTP/1.1 400")
        await socket.hear_end()
        await until(lambda: not server.hub.connections)


async def test_a_websocket_that_is_asked_for_behind_another_request_does_not_get_between_its_words():
    async with serving() as server, raw_socket(server.port) as socket:
        socket.writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await socket.shake_hands()).startswith("HTTP/1.1 200")
        async with asyncio.timeout(20):
            assert await socket.reader.readexactly(15) == b'{"status":"ok"}'
            # Which of the two is up to the server.
            assert (await socket.reader.readline()).split()[1] in {b"101", b"400"}


@pytest.mark.parametrize(
    "fault", ["Sec-WebSocket-Version: 12\r\n", "Sec-WebSocket-Key: short\r\n", "Connection: close\r\n"]
)
async def test_a_handshake_that_is_none_is_refused(fault: str):
    async with serving() as server, raw_socket(server.port) as socket:
        head = "GET /api/v1/stream HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        socket.writer.write(f"{head}{fault}\r\n".encode())
        async with asyncio.timeout(20):
            assert (await socket.reader.readline()).split()[1] == b"400"
        await socket.hear_end()
        assert not server.hub.connections


async def test_over_http2_a_stream_is_refused_clearly():
    async with serving() as server, raw_socket(server.port) as socket:
        client = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        client.initiate_connection()
        method, place = (":method", "CONNECT"), (":path", "/api/v1/stream")
        where = [(":scheme", "http"), (":authority", "x"), (":protocol", "websocket")]
        client.send_headers(1, [method, place, *where, ("sec-websocket-version", "13")])
        socket.writer.write(client.data_to_send())
        async with asyncio.timeout(20):
            if chosen_server() == "uvicorn":
                assert (await socket.reader.readline()).startswith(b"HTTP/1.1 400 ")
                return
            while True:
                events = client.receive_data(await socket.reader.read(1 << 16))
                found = [event for event in events if isinstance(event, ResponseReceived)]
                if found:
                    break
        assert found[0].headers is not None
        assert dict(found[0].headers)[":status"] == "501"


async def test_ordinary_requests_are_served_as_ever():
    async with serving() as server, aiohttp.ClientSession() as session, session.get(f"{server.url}/healthz") as answer:
        assert (answer.status, json.loads(await answer.text())) == (200, {"status": "ok"})
