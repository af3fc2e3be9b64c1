"""Uvicorn's WebSockets, with what its own are missing; see `wire_link`."""

import asyncio
import logging
from contextlib import suppress
from typing import Any, cast

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.wsproto_impl import WSProtocol
from wsproto.connection import ConnectionState
from wsproto.events import RejectConnection, Request
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from app_extensions.serving.wire_link import Framing, WireLink
from blueprints.stream_link import LINK

log = logging.getLogger(__name__)

#: Messages that wait for the application; what is more waits unread.
_MOST_WAITING = 16


class WebsocketProtocol(WSProtocol):
    """A WebSocket whose application has its `Link`."""

    _link: WireLink
    #: Whether the application knows of it.
    _is_asked = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take over a connection that asks for a WebSocket."""
        super().connection_made(transport)
        self._link = WireLink(
            transport, lambda: cast("Framing", self.conn), self._drained, message_bytes=self.config.ws_max_size
        )

    def data_received(self, data: bytes) -> None:
        """Take what the client has sent."""
        if self._link.is_over:
            return
        if not self._link.has_patience(len(data)):
            # Taking no more holds the client up; it is going to be cut off.
            self.transport.pause_reading()
            return
        if self._is_asked and not self.handshake_complete:
            # It speaks before the handshake is over.
            self._refuse()
            return
        try:
            self.conn.receive_data(data)
        except (RemoteProtocolError, LocalProtocolError):
            # Its handshake is none.
            self._refuse()
        else:
            self.handle_events()

    def handle_events(self) -> None:
        """Do what was asked for, as far as the application keeps up."""
        if self.conn.state is ConnectionState.CONNECTING:
            for event in self.conn.events():
                if isinstance(event, Request):
                    self.handle_connect(event)
            return
        for message in self._link.messages():
            self.queue.put_nowait(cast("Any", message))
            if self.queue.qsize() >= _MOST_WAITING:
                self._pause()
                return
        if self._link.is_over:
            self.queue.put_nowait({"type": "websocket.disconnect", "code": 1005})
            self.transport.close()

    def handle_connect(self, event: Request) -> None:
        """Ask the application whether the client is welcome."""
        self._is_asked = True
        super().handle_connect(event)
        cast("dict[str, Any]", self.scope["extensions"])[LINK] = self._link

    async def run_asgi(self) -> None:
        """Run the application; the connection ends with it."""
        try:
            await self.app(self.scope, self.receive, self.send)
        except Exception:
            log.exception("a WebSocket failed in the server")
        finally:
            if not self.handshake_complete:
                self.send_500_response()
            self.transport.close()

    async def send(self, message: Any) -> None:
        """What the application says; a client that is gone is told of by `receive`."""
        with suppress(ClientDisconnected):
            await super().send(message)

    async def receive(self) -> Any:
        """What the client says."""
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            self.transport.resume_reading()
            self.handle_events()
        return await self.queue.get()

    def shutdown(self) -> None:
        """Do nothing: the application ends its clients itself, in its own words."""

    async def _drained(self) -> None:
        await self.writable.wait()
        if self.disconnected:
            raise ConnectionResetError("the client is gone")

    def _pause(self) -> None:
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def _refuse(self) -> None:
        """End a connection that cannot become a WebSocket."""
        if not self.transport.is_closing():
            headers = [*self.default_headers, (b"content-length", b"0"), (b"connection", b"close")]
            with suppress(LocalProtocolError):
                self.transport.write(self.conn.send(RejectConnection(status_code=400, headers=headers)))
        self.handshake_complete = self.disconnected = True
        self.queue.put_nowait({"type": "websocket.disconnect", "code": 1006})
        self.transport.close()
