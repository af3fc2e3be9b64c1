"""WebSockets in Quart, without its queue that grows for ever and its two tasks a client."""

from typing import Any

from quart.asgi import ASGIWebsocketConnection

from blueprints.stream_link import ClientGoneError


class WebsocketConnection(ASGIWebsocketConnection):
    """Runs the handler in the server's own task. It gets messages when it asks for them, straight from the server.

    A handler must await `websocket.receive()` all the time: that is how it learns, by a `ClientGoneError`, that the
    client has gone, and nobody cancels it.
    """

    async def __call__(self, receive: Any, send: Any) -> None:
        """Serve the connection to its end."""
        self.queue = _Incoming(receive)  # type: ignore[assignment]
        await self.handle_websocket(self._create_websocket_from_scope(send), send)


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
