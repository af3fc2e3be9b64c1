"""Errors as RFC 9457 problems: the one place where an exception class becomes a status and a code."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from math import ceil
from typing import NamedTuple

import msgspec
from quart import Quart, Response, has_request_context, request, websocket
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from app_extensions.logging_setup import mask, request_id_var
from app_extensions.request_context import MAX_BODY_BYTES
from blueprints.errors import FeatureNotSupportedError, UnsupportedMediaTypeError
from blueprints.health import UnhealthyError
from blueprints.stream_hub import Problem as StreamProblem
from domain.errors import (
    CandleryError,
    ConflictError,
    DatabaseUnavailableError,
    IncompleteError,
    InvalidParameterError,
    NotFoundError,
    UnknownMarketError,
    UnknownProviderError,
    UnknownSymbolError,
    UnsupportedTimeframeError,
)
from plugins.base import (
    AuthenticationPluginError,
    NetworkPluginError,
    PluginError,
    PluginFeatureNotSupportedError,
    RateLimitPluginError,
    SymbolNotFoundPluginError,
)

log = logging.getLogger(__name__)

#: Longer details are cut: a provider may answer with a page of HTML.
MAX_DETAIL = 500
DEFAULT_RETRY_AFTER_S = 5.0


class Problem(NamedTuple):
    """A status and its stable code."""

    status: int
    code: str


#: The closest class of an exception's ancestry counts.
PROBLEMS: Mapping[type[Exception], Problem] = {
    InvalidParameterError: Problem(400, "invalid_parameter"),
    UnsupportedTimeframeError: Problem(400, "unsupported_timeframe"),
    UnknownMarketError: Problem(404, "unknown_market"),
    UnknownProviderError: Problem(404, "unknown_provider"),
    UnknownSymbolError: Problem(404, "unknown_symbol"),
    NotFoundError: Problem(404, "not_found"),
    ConflictError: Problem(409, "conflict"),
    UnsupportedMediaTypeError: Problem(415, "unsupported_media_type"),
    FeatureNotSupportedError: Problem(501, "feature_not_supported"),
    IncompleteError: Problem(503, "incomplete"),
    DatabaseUnavailableError: Problem(503, "database_unavailable"),
    UnhealthyError: Problem(503, "not_ready"),
    AuthenticationPluginError: Problem(502, "provider_authentication_failed"),
    RateLimitPluginError: Problem(503, "provider_rate_limited"),
    NetworkPluginError: Problem(503, "provider_unavailable"),
    SymbolNotFoundPluginError: Problem(404, "unknown_symbol"),
    PluginFeatureNotSupportedError: Problem(501, "feature_not_supported"),
    PluginError: Problem(502, "provider_error"),
}
INTERNAL = Problem(500, "internal_error")
HTTP_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
}


def problem_of(error: Exception) -> Problem:
    """The status and the code of an exception."""
    if isinstance(error, IncompleteError) and isinstance(error.__cause__, RateLimitPluginError):
        return PROBLEMS[RateLimitPluginError]
    if isinstance(error, UnhealthyError) and error.database_is_down:
        return PROBLEMS[DatabaseUnavailableError]
    if isinstance(error, HTTPException) and error.code is not None and error.code < HTTPStatus.INTERNAL_SERVER_ERROR:
        return Problem(error.code, HTTP_CODES.get(error.code, "bad_request"))
    return next((PROBLEMS[kind] for kind in type(error).__mro__ if kind in PROBLEMS), INTERNAL)


def install(app: Quart) -> None:
    """Answer every error of the application as a problem."""
    app.register_error_handler(Exception, _answer)


def explain(error: Exception) -> StreamProblem:
    """An error for the stream, which has no status: its code, words, and the parameter that is wrong."""
    problem = problem_of(error)
    if problem is INTERNAL:
        log.error("a request on a stream failed", exc_info=error)
    elif problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning("a request on a stream: %s: %s", problem.code, error)
    parameter = error.parameter if isinstance(error, InvalidParameterError) else None
    return StreamProblem(problem.code, _detail(error, problem), parameter)


async def _answer(error: Exception) -> Response:
    problem = problem_of(error)
    _log(error, problem)
    content: dict[str, object] = {
        "type": f"urn:candlery:error:{problem.code}",
        "title": problem.code.replace("_", " ").capitalize(),
        "status": problem.status,
        "code": problem.code,
    }
    if detail := _detail(error, problem):
        content["detail"] = detail
    if isinstance(error, InvalidParameterError):
        content["parameter"] = error.parameter
    if isinstance(error, UnhealthyError):
        content |= error.extra
    content["request_id"] = request_id_var.get()
    response = Response(msgspec.json.encode(content), problem.status, mimetype="application/problem+json")
    response.headers.update(_headers(error, problem))
    return response


def _log(error: Exception, problem: Problem) -> None:
    if problem is INTERNAL:
        log.error("%s failed", _asked(), exc_info=error)
    elif problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning("%s: %s: %s", _asked(), problem.code, error)


def _asked() -> str:
    """Method and path; the handshake of a WebSocket is a GET."""
    return f"{request.method} {request.path}" if has_request_context() else f"GET {websocket.path}"


def _detail(error: Exception, problem: Problem) -> str | None:
    """Words for the client, without secrets; none of what is our own fault."""
    if problem is INTERNAL:
        return None
    if isinstance(error, CandleryError):
        text = mask(error.detail)
    else:
        text = {
            "not_found": "There is nothing at this path.",
            "method_not_allowed": f"{_asked().partition(' ')[0]} is not possible here.",
            "body_too_large": f"The request's body is larger than {MAX_BODY_BYTES >> 20} MiB.",
            "unsupported_media_type": "The request's body is of a kind that is not understood.",
        }.get(problem.code, "The request cannot be understood.")
    return text if len(text) <= MAX_DETAIL else f"{text[: MAX_DETAIL - 1]}…"


def _headers(error: Exception, problem: Problem) -> dict[str, str]:
    headers = {"Cache-Control": "no-store"}
    if problem.status == HTTPStatus.SERVICE_UNAVAILABLE:
        wait_s = getattr(error, "retry_after_s", None)
        headers["Retry-After"] = str(max(1, ceil(DEFAULT_RETRY_AFTER_S if wait_s is None else wait_s)))
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        headers["Allow"] = ", ".join(sorted(error.valid_methods))
    return headers
