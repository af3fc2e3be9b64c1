"""What each web server makes of HTTP/1.1, under an application that is nothing but ASGI."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app_extensions.server import bind
from app_extensions.serving import hypercorn_server, uvicorn_server
from app_extensions.serving.port import HEAD, MAX_HEAD_BYTES, WrittenHead, serve_asgi
from app_extensions.serving.uvicorn_http import Cycle
from tests.support.raw_socket import RawSocket, raw_socket
from tests.support.servers import chosen_server, each_server  # noqa: F401
from tests.support.streaming import answers, until

pytestmark = pytest.mark.usefixtures("each_server")

WAIT_S = 20
GET = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


class Application:
    """Answers as the path says, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.headers: list[list[tuple[bytes, bytes]]] = []
        self.bodies: list[bytes] = []
        self.gone: list[str] = []
        self.gate = asyncio.Event()
        self.lives: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for phase in ("startup", "shutdown"):
                await receive()
                self.lives.append(phase)
                await send({"type": f"lifespan.{phase}.complete"})
            return
        self.asked.append(scope["path"])
        self.headers.append(list(scope["headers"]))
        await getattr(self, scope["path"].split("/")[1])(scope, receive, send)

    async def plain(self, scope: Any, receive: Any, send: Any) -> None:
        await answer(send, 200, scope["path"].encode())

    async def slow(self, scope: Any, receive: Any, send: Any) -> None:
        await self.gate.wait()
        await answer(send, 200, scope["path"].encode())

    async def same(self, scope: Any, receive: Any, send: Any) -> None:
        """Nothing new, with the length of what is old."""
        await start(send, 304, length=60_000)
        await send({"type": "http.response.body", "body": b""})

    async def none(self, scope: Any, receive: Any, send: Any) -> None:
        await start(send, 204)
        await send({"type": "http.response.body", "body": b"this is not sent"})

    async def written(self, scope: Any, receive: Any, send: Any) -> None:
        """With headers that are written out already."""
        status = int(scope["path"].split("/")[2])
        body = scope["path"].encode() if status == 200 else b""
        headers = [(b"content-length", b"%d" % len(body)), (b"x-one", b"1")][not body :]
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        head = WrittenHead(lines, len(body))
        await send({"type": "http.response.start", "status": status, "headers": headers, HEAD: head})
        await send({"type": "http.response.body", "body": body})

    async def parts(self, scope: Any, receive: Any, send: Any) -> None:
        await start(send, 200)
        for part in (b"one ", b"two ", b"three"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def echo(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                self.bodies.append(body)
                await answer(send, 200, body)
                return
        self.gone.append(scope["path"])

    async def wait(self, scope: Any, receive: Any, send: Any) -> None:
        """Until the client leaves."""
        await start(send, 200)
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone.append(scope["path"])

    async def early(self, scope: Any, receive: Any, send: Any) -> None:
        """Says no before it has read anything."""
        await answer(send, 413, b"too large")

    async def fail(self, scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("a fault of the application")

    async def break_off(self, scope: Any, receive: Any, send: Any) -> None:
        await start(send, 200)
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ValueError("a fault half-way")


async def start(send: Any, status: int, *, length: int | None = None) -> None:
    headers = [] if length is None else [(b"content-length", b"%d" % length)]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def answer(send: Any, status: int, body: bytes) -> None:
    await start(send, status, length=len(body))
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving(app: Callable[[Any, Any, Any], Awaitable[None]]) -> AsyncIterator[int]:
    """The port on which the application is served."""
    listening, stop = bind("127.0.0.1", 0), asyncio.Event()
    port = listening[0].getsockname()[1]
    running = asyncio.create_task(serve_asgi(app, listening, stop, server=chosen_server(), grace_s=1))
    try:
        await answers(port, running)
        yield port
    finally:
        stop.set()
        async with asyncio.timeout(WAIT_S):
            await running


@pytest.fixture
async def app() -> AsyncIterator[Application]:
    one = Application()
    yield one
    assert one.lives == ["startup", "shutdown"]


@pytest.fixture
async def port(app: Application) -> AsyncIterator[int]:
    async with serving(app) as number:
        yield number


@pytest.fixture
async def socket(port: int) -> AsyncIterator[RawSocket]:
    async with raw_socket(port) as one:
        yield one


async def hear(socket: RawSocket, *, has_body: bool = True) -> tuple[int, dict[str, str], bytes]:
    """One answer: its status, its headers and, where its length is told, its body."""
    async with asyncio.timeout(WAIT_S):
        head = (await socket.reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.rstrip().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        size = int(headers.get("content-length", "0")) if has_body else 0
        return int(first.split()[1]), headers, await socket.reader.readexactly(size)


async def rest(socket: RawSocket) -> bytes:
    async with asyncio.timeout(WAIT_S):
        return await socket.reader.read()


async def test_answers_have_a_date_and_no_name_of_the_server(socket: RawSocket):
    socket.writer.write(GET % b"/plain")
    status, headers, body = await hear(socket)
    assert (status, body) == (200, b"/plain")
    assert headers["date"].endswith("GMT")
    assert "server" not in headers


async def test_many_requests_in_one_piece_are_answered_in_their_order(socket: RawSocket, app: Application):
    socket.writer.write(b"".join(GET % b"/plain/%d" % number for number in range(1_000)) + LAST % b"/plain/last")
    found = [(await hear(socket))[2] for _ in range(1_001)]
    assert found == [b"/plain/%d" % number for number in range(1_000)] + [b"/plain/last"]
    assert await rest(socket) == b""
    assert len(app.asked) == 1_001


async def test_a_request_waits_for_the_answer_to_the_one_before(socket: RawSocket, app: Application):
    socket.writer.write(GET % b"/slow" + GET % b"/plain")
    await until(lambda: app.asked)
    app.gate.set()
    assert [(await hear(socket))[2] for _ in range(2)] == [b"/slow", b"/plain"]


async def test_requests_that_wait_take_no_more_than_their_bytes(socket: RawSocket, app: Application):
    """Uvicorn's own would make all of them at once, each some hundred times its size."""
    socket.writer.write(GET % b"/slow" + GET % b"/plain" * 4_999)
    await until(lambda: app.asked)
    await asyncio.sleep(0.3)
    assert sum(isinstance(one, Cycle) for one in gc.get_objects()) < 500
    assert app.asked == ["/slow"]
    app.gate.set()
    assert [(await hear(socket))[2] for _ in range(5_000)] == [b"/slow"] + [b"/plain"] * 4_999


@pytest.mark.parametrize(("path", "status", "length"), [(b"/same", 304, "60000"), (b"/none", 204, None)])
async def test_what_has_no_body_is_followed_by_the_next_answer(
    socket: RawSocket, path: bytes, status: int, length: str | None
):
    socket.writer.write(GET % path + LAST % b"/plain")
    found, headers, _ = await hear(socket, has_body=False)
    assert (found, headers.get("content-length")) == (status, length)
    assert "transfer-encoding" not in headers
    assert (await hear(socket))[2] == b"/plain"
    assert await rest(socket) == b""


async def test_head_has_the_length_and_no_body(socket: RawSocket):
    socket.writer.write(b"HEAD /plain HTTP/1.1\r\nHost: x\r\n\r\n" + LAST % b"/plain/after")
    status, headers, _ = await hear(socket, has_body=False)
    assert (status, headers["content-length"]) == (200, "6")
    assert (await hear(socket))[2] == b"/plain/after"


async def test_a_head_that_is_written_out_is_sent_like_any_other(port: int):
    async with raw_socket(port) as new, raw_socket(port) as old:
        new.writer.write(GET % b"/written/200/a" + GET % b"/written/304" + LAST % b"/written/200/b")
        old.writer.write(b"GET /written/200/c HTTP/1.0\r\n\r\n")
        for socket, wanted in (
            (new, (200, b"/written/200/a", None)),
            (new, (304, b"", None)),
            (new, (200, b"/written/200/b", "close")),
            (old, (200, b"/written/200/c", "close")),
        ):
            status, headers, body = await hear(socket)
            assert (status, body, headers.get("connection")) == wanted
            assert headers["x-one"] == "1"
            assert headers["date"].endswith("GMT")
        assert await rest(new) == await rest(old) == b""


async def test_an_answer_of_unknown_length_comes_in_chunks_but_for_http_1_0(port: int):
    async with raw_socket(port) as new, raw_socket(port) as old:
        new.writer.write(LAST % b"/parts")
        old.writer.write(b"GET /parts HTTP/1.0\r\n\r\n")
        head, _, body = (await rest(new)).partition(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head.lower()
        assert body == b"4\r\none \r\n4\r\ntwo \r\n5\r\nthree\r\n0\r\n\r\n"
        head, _, body = (await rest(old)).partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head.lower()
        assert body == b"one two three"


async def test_a_body_comes_whole_however_it_is_sent(socket: RawSocket, app: Application):
    body = b"0123456789" * 30_000
    socket.writer.write(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert (await hear(socket))[2] == body
    socket.writer.write(b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    for part in (b"some", b"thing"):
        socket.writer.write(b"%x\r\n%s\r\n" % (len(part), part))
        await socket.writer.drain()
    socket.writer.write(b"0\r\nX-Behind: it\r\n\r\n")
    assert (await hear(socket))[2] == b"something"
    # What comes behind a body is no header of the request.
    assert b"x-behind" not in dict(app.headers[1])
    socket.writer.write(b"POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert (await hear(socket))[0] == 100
    socket.writer.write(b"ok")
    assert (await hear(socket))[2] == b"ok"


async def test_a_refusal_can_be_read_though_the_body_is_still_being_sent(socket: RawSocket, app: Application):
    socket.writer.write(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 400000\r\n\r\n")
    status, _, body = await hear(socket)
    assert (status, body) == (413, b"too large")
    socket.writer.write(b"x" * 200_000)
    # And then it ends: what follows could be taken for anything.
    await socket.hear_end()
    assert app.asked == ["/early"]


LARGE = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"x" * 2 * MAX_HEAD_BYTES)
HEADS = [
    (LARGE, 431),
    (b"GET /plain HTTP/1.1\r\nHost: x\r\nX-Large: %s" % (b"x" * 2 * MAX_HEAD_BYTES), 431),
    (b"GET /plain HTTP/1.1\r\nHost: x\r\n" + b"X-Many: y\r\n" * 20_000, 431),
    (b"GET /plain HTTP/1.1\r\n\r\n", 400),
    (b"GET /plain HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
    (b"GET /plain HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    (b"GET /plain HTTP/1.1\r\nHost : x\r\n\r\n", 400),
    (b"nonsense\r\n\r\n", 400),
]


@pytest.mark.parametrize(("head", "status"), HEADS, ids=lambda value: value if isinstance(value, int) else value[:20])
async def test_heads_that_cannot_be_taken_are_refused(socket: RawSocket, app: Application, head: bytes, status: int):
    socket.writer.write(head)
    try:
        found, headers, _ = await hear(socket)
        assert (found, headers["connection"]) == (status, "close")
    except ConnectionError:
        # Hypercorn closes without reading on, and what it said can be lost with that.
        assert (chosen_server(), status) == ("hypercorn", 431)
    await socket.hear_end()
    assert app.asked == []


async def test_what_came_before_nonsense_is_answered(socket: RawSocket, app: Application):
    socket.writer.write(GET % b"/slow" + b"nonsense\r\n\r\n")
    await until(lambda: app.asked)
    app.gate.set()
    assert [(await hear(socket))[0] for _ in range(2)] == [200, 400]
    await socket.hear_end()


async def test_what_came_before_a_body_that_is_nonsense_is_answered(socket: RawSocket, app: Application):
    body = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\nnonsense\r\n"
    socket.writer.write(GET % b"/slow" + GET % b"/plain" + body)
    await until(lambda: app.asked)
    app.gate.set()
    assert [(await hear(socket))[0] for _ in range(3)] == [200, 200, 400]
    await socket.hear_end()
    assert app.bodies == []


async def test_a_body_that_turns_into_nonsense_ends_the_request(socket: RawSocket, app: Application):
    socket.writer.write(b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\nnonsense\r\n")
    assert (await hear(socket))[0] == 400
    await socket.hear_end()
    await until(lambda: app.gone)
    assert app.bodies == []


async def test_a_client_that_leaves_is_told_of_also_when_other_requests_wait_behind(port: int, app: Application):
    # Hypercorn reads nothing while a request waits, and learns of the end when it writes.
    behind = (b"", GET % b"/plain") if chosen_server() == "uvicorn" else (b"", b"")
    for more in behind:
        async with raw_socket(port) as socket:
            socket.writer.write(GET % b"/wait" + more)
            async with asyncio.timeout(WAIT_S):
                await socket.reader.readuntil(b"begun")
    await until(lambda: app.gone == ["/wait"] * 2)
    assert app.asked == ["/wait"] * 2


async def test_faults_of_the_application_are_told_in_the_log_and_not_to_the_client(
    port: int, app: Application, caplog: pytest.LogCaptureFixture
):
    async with raw_socket(port) as socket:
        socket.writer.write(LAST % b"/fail")
        answer = await rest(socket)
        assert answer.startswith(b"HTTP/1.1 500")
        assert b"fault" not in answer
    async with raw_socket(port) as socket:
        socket.writer.write(LAST % b"/break_off")
        # It is not taken for whole.
        assert not (await rest(socket)).endswith(b"0\r\n\r\n")
    found = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [str(record.exc_info[1]) for record in found if record.exc_info] == [
        "a fault of the application",
        "a fault half-way",
    ]


async def test_who_asks_for_nothing_is_shown_out_however_they_drip(app: Application, monkeypatch: pytest.MonkeyPatch):
    for module in (hypercorn_server, uvicorn_server):
        monkeypatch.setattr(module, "KEEP_ALIVE_S", 1)
    async with (
        serving(app) as port,
        raw_socket(port) as mute,
        raw_socket(port) as dripping,
        raw_socket(port) as idle,
        raw_socket(port) as waiting,
    ):
        waiting.writer.write(GET % b"/slow")
        idle.writer.write(GET % b"/plain")
        assert (await hear(idle))[0] == 200

        async def drip() -> None:
            for byte in GET % b"/plain" * 100:
                dripping.writer.write(bytes([byte]))
                await asyncio.sleep(0.1)

        dropping = asyncio.create_task(drip())
        for socket in (mute, dripping, idle):
            await socket.hear_end()
        dropping.cancel()
        # Who is waiting for an answer gets it.
        app.gate.set()
        assert (await hear(waiting))[2] == b"/slow"


async def test_another_protocol_that_is_offered_is_not_taken(socket: RawSocket):
    socket.writer.write(
        GET.replace(b"Host: x", b"Host: x\r\nConnection: Upgrade\r\nUpgrade: telnet") % b"/plain"
        + b"POST /echo HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nok"
        + LAST % b"/plain"
    )
    assert [(await hear(socket))[2] for _ in range(3)] == [b"/plain", b"ok", b"/plain"]
