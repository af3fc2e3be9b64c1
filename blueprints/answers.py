"""Answers as bytes: JSON once, and what clients may keep."""

import hashlib

import msgspec
from quart import Response, request

#: How long clients may keep an answer about a closed range that is known in full.
CLOSED_MAX_AGE_S = 3600

#: To JSON.
encode = msgspec.json.Encoder().encode


def json_answer(content: object, *, simulated: bool = False) -> Response:
    """The content as JSON; simulated data is labelled."""
    return body_answer(encode(content), simulated=simulated)


def body_answer(body: bytes, *, simulated: bool = False) -> Response:
    """JSON that is encoded already."""
    response = Response(body, mimetype="application/json")
    if simulated:
        response.headers["X-Candlery-Simulated"] = "true"
    return response


def keepable(response: Response, etag: str) -> Response:
    """Let clients keep the answer, and answer 304 where they have it already."""
    response.set_etag(etag)
    response.headers["Cache-Control"] = f"private, max-age={CLOSED_MAX_AGE_S}"
    known = request.if_none_match
    if known.star_tag or known.contains_weak(etag):
        response.status_code = 304
        response.set_data(b"")
        for name in ("Content-Length", "Content-Type"):
            response.headers.pop(name, None)
    return response


def tag_of(body: bytes) -> str:
    """An entity tag for the bytes."""
    return hashlib.sha256(body).hexdigest()[:32]
