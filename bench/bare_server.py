"""What Candlery's answers are held against: `python -m bench.bare_server asgi|quart SERVER BODY`.

It answers everything with the bytes of a file, on the web server that Candlery runs on, with the same settings.
"""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from quart import Quart, Response

from app_extensions import event_loop
from app_extensions.server import bind
from app_extensions.serving.port import serve_asgi

Application = Callable[[Any, Any, Any], Awaitable[None]]


def bare_asgi(body: bytes) -> Application:
    """An application of nothing but ASGI."""
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for phase in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{phase}.complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": body})

    return app


def bare_quart(body: bytes) -> Application:
    """A Quart application with one route."""
    app = Quart("bare")

    @app.get("/api/v1/ohlcv")
    async def bars() -> Response:
        return Response(body, mimetype="application/json")

    return app


async def main(kind: str, server: str, body: bytes) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    app = bare_asgi(body) if kind == "asgi" else bare_quart(body)
    listening = bind("127.0.0.1", 0)
    # Who connects before it serves is kept waiting, not sent away.
    listening[0].listen()
    port = listening[0].getsockname()[1]
    serving = asyncio.create_task(
        serve_asgi(app, listening, stop, server=server, grace_s=1.0, message_bytes=1 << 16), name="bare server"
    )
    sys.stdout.write(f"ready: http://127.0.0.1:{port}\n")
    sys.stdout.flush()
    await serving


if __name__ == "__main__":
    event_loop.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]).read_bytes()))
