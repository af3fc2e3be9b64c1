"""What every request and every answer has: an id, a time taken, and headers that keep browsers careful.

It is a layer before the application, so that it costs no answer more than a few microseconds.
"""

import os
import re
from collections.abc import Awaitable, Callable
from random import Random
from time import perf_counter
from typing import Any

from quart import Quart, request
from werkzeug.exceptions import RequestEntityTooLarge

from app_extensions.logging_setup import request_id_var

Asgi = Callable[[Any, Any, Any], Awaitable[None]]
#: Told of each request that was answered: its method, route and status, and the seconds that it took.
Meter = Callable[[str, str, int, float], None]

#: Under this name the scope of a request has the `perf_counter` of its beginning.
BEGAN = "candlery.began"
#: Under this name it has what the request is called, where a layer before has named it.
NAME = "candlery.request_id"
#: For any body. The largest that makes sense, a backfill of 500 symbols with long names, stays below.
MAX_BODY_BYTES = 1 << 20
#: Ids need not be secret, and are made without asking the system each time.
_ids = Random(os.urandom(32))  # noqa: S311
_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
#: Headers of every answer.
CAREFUL = ((b"x-content-type-options", b"nosniff"),)
NO_STORE = (b"cache-control", b"no-store")


def install(app: Quart) -> None:
    """Begin and finish every request of the application."""
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.before_request(_refuse_large)
    app.asgi_app = RequestContext(app.asgi_app)  # type: ignore[method-assign]


class RequestContext:
    """Names each request, and completes each answer."""

    def __init__(self, app: Asgi) -> None:
        """Take what answers."""
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, and its answer back."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s = scope[BEGAN] = perf_counter()
        request_id = scope.get(NAME) or named(
            next((v for name, v in scope["headers"] if name == b"x-request-id"), None)
        )

        async def complete(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [*message["headers"], *CAREFUL, *own_headers(request_id, perf_counter() - began_s)]
                if not any(name.lower() == b"cache-control" for name, _ in headers):
                    headers.append(NO_STORE)
                message = {**message, "headers": headers}
            await send(message)

        token = request_id_var.set(request_id.decode())
        try:
            await self._app(scope, receive, complete)
        finally:
            request_id_var.reset(token)


def named(given: bytes | None) -> bytes:
    """What a request is called: as its client says, where that is a name."""
    return given if given is not None and _SANE_ID.fullmatch(given) else b"%032x" % _ids.getrandbits(128)


def own_headers(request_id: bytes, took_s: float) -> tuple[tuple[bytes, bytes], ...]:
    """The headers that no two answers share."""
    return (b"x-request-id", request_id), (b"server-timing", b"total;dur=%.1f" % (took_s * 1000))


async def _refuse_large() -> None:
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise RequestEntityTooLarge
