"""Hypercorn's WebSockets, with what its own are missing; see `wire_link`.

Besides, no permessage-deflate is negotiated: Hypercorn does with everybody who offers it, at some 300 KB a client.
"""

import asyncio
from dataclasses import replace
from http import HTTPStatus
from typing import Any, cast

from hypercorn.protocol import h2, h11
from hypercorn.protocol.events import Data, Event, Request, StreamClosed
from hypercorn.protocol.ws_stream import WSStream
from hypercorn.typing import AppWrapper
from wsproto.frame_protocol import CloseReason

from app_extensions.serving.wire_link import WireLink
from blueprints.stream_link import LINK

_EXTENSIONS = b"sec-websocket-extensions"


def install() -> None:
    """Let Hypercorn make its WebSockets of this kind."""
    for module in (h11, h2):
        module.WSStream = LinkedStream  # type: ignore[attr-defined]


class LinkedStream(WSStream):
    """A WebSocket whose application has its `Link`, over HTTP/1.1; over HTTP/2 there is none."""

    def __init__(self, app: Any, *args: Any) -> None:
        """Take what Hypercorn gives."""
        super().__init__(app, *args)
        self._app = app
        self.app = cast("AppWrapper", self._with_link)
        self._link = self._make_link(_writer_behind(self.send))

    def _make_link(self, writer: asyncio.StreamWriter | None) -> WireLink | None:
        if writer is None:
            return None
        return WireLink(
            writer.transport,
            lambda: getattr(self, "connection", None),
            writer.drain,
            message_bytes=self.config.websocket_max_message_size,
        )

    async def _with_link(self, scope: Any, *rest: Any) -> None:
        if self._link is not None:
            scope["extensions"][LINK] = self._link
        await self._app(scope, *rest)

    async def handle(self, event: Event) -> None:
        """Take an event of the connection."""
        if isinstance(event, Request):
            headers = [(name, value) for name, value in event.headers if name.lower() != _EXTENSIONS]
            event = replace(event, headers=headers)
        elif isinstance(event, Data) and self._link is not None and not self._link.has_patience(len(event.data)):
            # Taking no more holds the client up; dropping it unread would keep the processor busy.
            await self._link.until_aborted()
            return
        elif isinstance(event, Data) and not self.closed and not self.handshake.accepted:
            await self._refuse()
            return
        await super().handle(event)
        if isinstance(event, Request) and self.closed:
            # The handshake was none; Hypercorn leaves the connection open for ever.
            await self.send(StreamClosed(stream_id=self.stream_id))

    async def _refuse(self) -> None:
        """End a connection that says something before the handshake is over; it would stay open, too."""
        assert self.app_put is not None
        await self._send_error_response(HTTPStatus.BAD_REQUEST)
        self.closed = True
        await self.app_put({"type": "websocket.disconnect", "code": CloseReason.ABNORMAL_CLOSURE.value})
        await self.send(StreamClosed(stream_id=self.stream_id))

    async def _handle_events(self) -> None:
        assert self._link is not None
        assert self.app_put is not None
        for message in self._link.messages():
            await self.app_put(message)
        if self._link.is_over:
            await self.send(StreamClosed(stream_id=self.stream_id))


def _writer_behind(send: Any) -> asyncio.StreamWriter | None:
    """Where a stream's `send` ends up; None where other streams share the connection."""
    protocol = send.__self__
    if type(protocol) is not h11.H11Protocol:
        return None
    server: Any = cast("Any", protocol.send).__self__
    return cast("asyncio.StreamWriter", server.writer)
