"""Answers as bytes: JSON once, and what clients may keep."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import msgspec
from quart import Response, request
from werkzeug.datastructures import ETags

from services.revisions import Stamp

#: How long clients may keep an answer about a closed range that is known in full.
CLOSED_MAX_AGE_S = 3600

#: Under this name a handler leaves in the scope the `Keep` of an answer that may be given again without it.
KEEP = "candlery.keep"
#: Added to the entity tag of an answer that is compressed: strong tags are of bytes.
GZIPPED = "-gzip"

#: To JSON.
encode = msgspec.json.Encoder().encode


def json_answer(content: object, *, simulated: bool = False) -> Response:
    """The content as JSON; simulated data is labelled."""
    return body_answer(encode(content), simulated=simulated)


def body_answer(
    body: bytes, *, simulated: bool = False, etag: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """JSON that is encoded already. With an entity tag clients may keep it, and get 304 where they have it already."""
    every = {"Content-Type": "application/json", **(headers or {})}
    if simulated:
        every["X-Candlery-Simulated"] = "true"
    if etag is not None:
        every |= {"ETag": f'"{etag}"', "Cache-Control": f"private, max-age={CLOSED_MAX_AGE_S}"}
        if is_known(request.if_none_match, etag):
            return _not_modified(every)
    return Response(body, headers=every)


def _not_modified(headers: dict[str, str]) -> Response:
    response = Response(b"", 304, headers=headers)
    for name in ("Content-Length", "Content-Type"):
        response.headers.pop(name, None)
    return response


class Keep(NamedTuple):
    """An answer that is good for everybody who asks the same: the server may give it without asking anybody.

    Attributes:
        body: with the sources of who gets it from memory.
        stamps: what its bars were read under; it is good as long as all of them hold.
        until_ms: and until then; None: for good.
    """

    body: bytes
    stamps: Sequence[Stamp]
    until_ms: int | None


def keep(answer: Keep) -> None:
    """Let whatever stands before the application keep the answer to the current request."""
    cast("dict[str, Any]", request.scope)[KEEP] = answer


def is_known(known: ETags, etag: str) -> bool:
    """Whether a client has the answer already, compressed or not."""
    return known.star_tag or known.contains_weak(etag) or known.contains_weak(etag + GZIPPED)


def tag_of(body: bytes) -> str:
    """An entity tag for the bytes."""
    return hashlib.sha256(body).hexdigest()[:32]
