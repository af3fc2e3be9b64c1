"""What every request and every answer has: an id, a time taken, and headers that keep browsers careful."""

import re
from collections.abc import Callable
from time import perf_counter
from uuid import uuid4

from quart import Quart, Response, g, request
from werkzeug.exceptions import RequestEntityTooLarge

from app_extensions.logging_setup import request_id_var

#: Told of each request that was answered: its method, route and status, and the seconds that it took.
Meter = Callable[[str, str, int, float], None]
#: What a client may call its request.
SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
#: For any body. The largest that makes sense, a backfill of 500 symbols with long names, stays below.
MAX_BODY_BYTES = 1 << 20


def install(app: Quart) -> None:
    """Begin and finish every request of the application."""
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.before_request(_begin)
    app.after_request(_finish)


async def _begin() -> None:
    g.began = perf_counter()
    given = request.headers.get("X-Request-ID", "")
    g.request_id = given if SANE_ID.fullmatch(given) else uuid4().hex
    request_id_var.set(g.request_id)
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise RequestEntityTooLarge


async def _finish(response: Response) -> Response:
    headers = response.headers
    headers["X-Request-ID"] = g.request_id
    headers["Server-Timing"] = f"total;dur={(perf_counter() - g.began) * 1000:.1f}"
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Referrer-Policy"] = "no-referrer"
    headers.setdefault("Cache-Control", "no-store")
    return response
