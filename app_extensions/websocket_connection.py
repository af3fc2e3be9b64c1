"""WebSockets in Quart, without its queue that grows for ever and its two tasks a client."""

from typing import Any

from quart.asgi import ASGIWebsocketConnection
from werkzeug.datastructures import Headers

from blueprints.stream_link import STAY, ClientGoneError


class WebsocketConnection(ASGIWebsocketConnection):
    """Runs everything in the server's own task, and gets messages from the server when they are asked for.

    A handler either refuses the handshake, or leaves in the scope, as `STAY`, what is to be run with the client once
    the handshake is done: Quart's request and its contexts, some 6 KB a client, are gone by then.
    """

    async def __call__(self, receive: Any, send: Any) -> None:
        """Serve the connection to its end."""
        incoming = _Incoming(receive)
        self.queue = incoming  # type: ignore[assignment]
        await self.handle_websocket(self._create_websocket_from_scope(send), send)
        scope: Any = self.scope
        stay = scope.pop(STAY, None)
        if stay is not None:
            await self.accept_connection(send, Headers(), None)
            await stay(incoming.get)


class _Incoming:
    """The messages of one client."""

    def __init__(self, receive: Any) -> None:
        self._receive = receive

    async def get(self) -> str | bytes:
        """The next message.

        Raises:
            ClientGoneError: there will be none.
        """
        while True:
            event = await self._receive()
            if event["type"] == "websocket.disconnect":
                raise ClientGoneError
            if event["type"] == "websocket.receive":
                text: str | None = event.get("text")
                binary: bytes = event.get("bytes") or b""
                return binary if text is None else text
