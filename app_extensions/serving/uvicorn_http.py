"""Uvicorn's HTTP/1.1 on httptools, with what its own is missing where clients are slow, hostile or in a hurry.

* A head of more than 64 KB is refused with 431; uvicorn collects it for ever.
* A connection that asks for nothing is closed after a while from its beginning on, however it drips.
* Pipelined requests are parsed as they are answered; uvicorn makes all of them at once, some 100 times their size.
* A client that leaves is told of to the request that is answered, also where others wait behind it.
* A body behind the offer of another protocol is a body; httptools would take it for the next request.
* A client that sends more than it should can read its answer before the connection ends.
* 304 and 204 have no body, whatever length they tell of; HTTP/1.0 gets no chunks. Trailers do not become headers.
  HTTP/1.1 needs one Host. A WebSocket begins when everything before it is answered, or not at all.
* What is cancelled is no fault.
"""

import asyncio
import logging
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app_extensions.serving.port import HEAD, MAX_HEAD_BYTES, WrittenHead, written

log = logging.getLogger(__name__)

#: So much is parsed at once: some 200 of the shortest requests.
_SLICE_BYTES = 8 << 10
#: And so much is read ahead, since reading is how a client's end is learnt.
_AHEAD_BYTES = 64 << 10
#: Of a client whose connection is going to be closed, so much is dropped unread by us, for so long, while it reads.
_LINGER_BYTES = 1 << 20
_LINGER_S = 2.0
_BODILESS = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})


def install() -> None:
    """Let uvicorn make its requests of this kind."""
    httptools_impl.RequestResponseCycle = Cycle  # type: ignore[misc]


class _RefusedError(Exception):
    """A head that cannot be taken, though it was understood."""


class Cycle(RequestResponseCycle):
    """One request and its answer."""

    _is_bodiless = False
    #: For HTTP/1.0, which knows no chunks: the end of the connection is that of an answer whose length nobody knows.
    _ends_with_connection = False

    async def run_asgi(self, app: Any) -> None:
        """Run the application; an answer that it leaves undone is no answer."""
        try:
            await app(self.scope, self.receive, self.send)
        except Exception:
            log.exception("a request failed in the server")
        finally:
            if not self.response_complete and not self.disconnected:
                if self.response_started:
                    self.transport.close()
                else:
                    await self.send_500_response()
            self.on_response = _nothing

    async def send(self, message: Any) -> None:
        """What the application says."""
        if message["type"] == "http.response.start":
            await self._start(message)
            return
        if self._is_bodiless:
            message = {**message, "body": b""}
        if self._ends_with_connection:
            self.expected_content_length = len(message.get("body", b""))
        if self.more_body:
            # The connection cannot go on, but it is for the protocol to end it, so that the client reads the answer.
            self.keep_alive = True
        await super().send(message)

    async def _start(self, message: Any) -> None:
        head = message.get(HEAD)
        if head is not None and not self.flow.write_paused and not self.disconnected:
            self._begin(message["status"], head)
            return
        if self.scope["http_version"] == "1.0" and not _tells_length(message):
            self._ends_with_connection = True
            self.chunked_encoding = False
        await super().send(message)
        if message["status"] in _BODILESS:
            self._is_bodiless = True
            self.expected_content_length = 0

    def _begin(self, status: int, head: WrittenHead) -> None:
        """Send a head that is written out, which saves a look at each of its headers."""
        self.response_started = True
        self.waiting_for_100_continue = False
        self.chunked_encoding, self.expected_content_length = False, head.length
        end = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        self.transport.write(b"".join((STATUS_LINE[status], written(self.default_headers), head.lines, end)))


def _tells_length(message: Any) -> bool:
    return any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))


def _nothing() -> None:
    """The answer is complete."""


class _Flow(FlowControl):
    """Reads no more while there is far more to do than can be done now."""

    def __init__(self, protocol: "HttpProtocol") -> None:
        super().__init__(protocol.transport)
        self._protocol = protocol

    def pause_reading(self) -> None:
        """Asked for where a request has to wait."""
        if self._protocol.is_full:
            super().pause_reading()

    def pause_for_body(self) -> None:
        """Asked for where a body is not taken."""
        super().pause_reading()

    def resume_reading(self) -> None:
        """Asked for where something is taken."""
        if not self._protocol.is_full:
            super().resume_reading()


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        super().connection_made(transport)
        self.flow: _Flow = _Flow(self)
        #: What is parsed once there are answers for what was before.
        self._held = b""
        #: Bytes since the parser came to the end of anything.
        self._fed = 0
        self._is_headed = False
        self._refusal: HTTPStatus | None = None
        self._linger_bytes = -1
        self._answered: RequestResponseCycle | None = None
        self._end_in(self.timeout_keep_alive)

    @property
    def is_full(self) -> bool:
        """Whether nothing more can be taken now."""
        return len(self._held) > _AHEAD_BYTES

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everybody of the end."""
        cycle = self._answered
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        self.pipeline.clear()
        self._held = b""
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what the client has sent."""
        if self._linger_bytes >= 0:
            self._linger_bytes -= len(data)
            if self._linger_bytes < 0:
                self.transport.abort()
        elif self.pipeline or self._held:
            self._held += data
            self.flow.pause_reading()
        elif self._refusal is None:
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        while data and not self.pipeline and not self.transport.is_closing():
            part, data = data[:_SLICE_BYTES], data[_SLICE_BYTES:]
            self._fed += len(part)
            try:
                self.parser.feed_data(part)
            except httptools.HttpParserUpgrade as exc:
                data = part[exc.args[0] :] + data
                if self._should_upgrade():
                    self._upgrade(data)
                    return
                # This one is through with the connection where the client wanted to close it.
                self.parser = httptools.HttpRequestParser(self)
                data = self._head_without_offer() + data
            except httptools.HttpParserError as exc:
                cause = exc.__context__
                self._refuse(cause.args[0] if isinstance(cause, _RefusedError) else HTTPStatus.BAD_REQUEST)
                return
            if self._fed > MAX_HEAD_BYTES:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
                return
        self._held = data
        self.flow.pause_reading()

    def _upgrade(self, early: bytes) -> None:
        """Make it a WebSocket."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._refuse(HTTPStatus.BAD_REQUEST)
            return
        self.handle_websocket_upgrade()
        if early:
            self.transport.get_protocol().data_received(early)  # type: ignore[attr-defined]

    def _head_without_offer(self) -> bytes:
        """The head that was just parsed, but for its wish for another protocol."""
        asked = b"%b %b HTTP/1.1\r\n" % (self.scope["method"].encode(), self.url)
        return asked + written(header for header in self.headers if header[0] != b"upgrade") + b"\r\n"

    def on_message_begin(self) -> None:
        """A request begins."""
        self._is_headed = False
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header of it; what comes behind the body is none."""
        if not self._is_headed:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin to answer it, or let it wait."""
        self._fed = 0
        self._is_headed = True
        hosts = [name for name, _ in self.headers].count(b"host")
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            raise _RefusedError(HTTPStatus.BAD_REQUEST)
        self._unset_keepalive_if_required()
        if not self.parser.should_upgrade():
            super().on_headers_complete()
        elif self.parser.get_method() == b"CONNECT":
            raise _RefusedError(HTTPStatus.BAD_REQUEST)
        else:
            self.scope["method"] = self.parser.get_method().decode("ascii")

    def on_body(self, body: bytes) -> None:
        """A part of its body."""
        self._fed = 0
        super().on_body(body)
        if len(self.cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_for_body()

    def on_message_complete(self) -> None:
        """All of it is there."""
        self._fed = 0
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Go on with the next request."""
        if not self.pipeline and (self._refusal is not None or self.cycle.more_body):
            self._linger()
            return
        super().on_response_complete()
        if self._held and not self.pipeline:
            held, self._held = self._held, b""
            self._parse(held)
        self.flow.resume_reading()

    def shutdown(self) -> None:
        """The server ends: so does the connection, with the answers that are under way."""
        if self._linger_bytes >= 0:
            self.transport.close()
        else:
            super().shutdown()

    def _refuse(self, fault: HTTPStatus) -> None:
        """Take nothing more; say why, behind the answers that are under way."""
        self._refusal = fault
        cycle = self.cycle
        if self.pipeline:
            # The ones before it are answered; of this one, the rest of its body will not be understood.
            if cycle.more_body:
                self.pipeline.popleft()
        elif cycle is None or cycle.response_complete:
            self._linger()
        elif cycle.more_body:
            cycle.disconnected = True
            cycle.waiting_for_100_continue = False
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.close()
            else:
                self._linger()

    def _linger(self) -> None:
        """Say what is to be said last, and give the client some time to read it before the connection ends."""
        if self.transport.is_closing():
            return
        if self._refusal is not None:
            self.transport.write(_refusal(self._refusal, self.server_state.default_headers))
        self._held = b""
        self.pipeline.clear()
        self._linger_bytes = _LINGER_BYTES
        self._end_in(_LINGER_S)
        self.flow.resume_reading()
        with suppress(OSError):
            self.transport.write_eof()

    def _end_in(self, delay_s: float) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(delay_s, self.timeout_keep_alive_handler)


def _refusal(status: HTTPStatus, headers: list[tuple[bytes, bytes]]) -> bytes:
    always = written([*headers, (b"content-length", b"0"), (b"connection", b"close")])
    return b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) + always + b"\r\n"
