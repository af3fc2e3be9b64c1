"""A lane of its own for `GET /api/v1/ohlcv`: what makes up most of the traffic goes by the application's machinery.

Routing, contexts and request objects take longer than the answer. Only plain requests come this way; those with a body,
an origin or a header twice, other methods, and every error are the application's, whose handler is the same.
"""

from time import perf_counter
from typing import Any

from quart import Quart

from app_extensions.logging_setup import request_id_var
from app_extensions.request_context import CAREFUL, NAME, Asgi, Meter, named, own_headers
from blueprints.answers import AGAIN, ERROR, KEEP, Wire
from blueprints.context import EXTENSION, HttpServices
from blueprints.ohlcv import answer

ROUTE = "/api/v1/ohlcv"
_BODY = frozenset({b"content-length", b"transfer-encoding"})


class OhlcvLane:
    """Answers plain requests, and passes all others on."""

    def __init__(self, web: Quart, app: Asgi, meter: Meter) -> None:
        """Take the application, as Quart's own and as what is called."""
        self._web = web
        self._app = app
        self._meter = meter

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer, or have the application answer."""
        services = self._web.extensions.get(EXTENSION)
        headers = plain_headers(scope)
        if services is None or headers is None or b"origin" in headers:
            await self._app(scope, receive, send)
            return
        began_s = perf_counter()
        scope[NAME] = request_id = named(headers.get(b"x-request-id"))
        token = request_id_var.set(request_id.decode())
        try:
            found = await self._ask(scope, headers, services)
        except Exception as exc:  # noqa: BLE001 - the application tells of it
            scope[ERROR] = exc
            await self._app(scope, receive, send)
            return
        finally:
            request_id_var.reset(token)
        scope[KEEP] = found.keep
        own = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in found.headers]
        own += (*CAREFUL, *own_headers(request_id, perf_counter() - began_s))
        if found.body:
            own.append((b"content-length", b"%d" % len(found.body)))
        await send({"type": "http.response.start", "status": found.status, "headers": own})
        await send({"type": "http.response.body", "body": found.body})
        self._meter("GET", ROUTE, found.status, perf_counter() - began_s)

    @staticmethod
    async def _ask(scope: Any, headers: dict[bytes, bytes], services: HttpServices) -> Wire:
        known = headers.get(b"if-none-match")
        return await answer(
            scope["query_string"],
            services,
            known=None if known is None else known.decode("latin-1"),
            again=AGAIN in scope,
        )


def plain_headers(scope: Any) -> dict[bytes, bytes] | None:
    """The headers of a `GET` of this route, without a body or a header twice; None of any other request."""
    if scope["type"] != "http" or scope["path"] != ROUTE or scope["method"] != "GET":
        return None
    headers = dict(scope["headers"])
    return headers if len(headers) == len(scope["headers"]) and _BODY.isdisjoint(headers) else None


def install(web: Quart, meter: Meter) -> None:
    """Put the lane before the application."""
    web.asgi_app = OhlcvLane(web, web.asgi_app, meter)  # type: ignore[method-assign]
