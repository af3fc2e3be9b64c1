"""Answers as bytes: JSON once, and what clients may keep."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import msgspec
from quart import Response, request
from werkzeug.http import parse_etags
from xxhash import xxh3_128

from services.revisions import Stamp

#: How long clients may keep an answer about a closed range that is known in full.
CLOSED_MAX_AGE_S = 3600

#: Under this name a handler leaves in the scope the `Keep` of an answer that may be given again without it.
KEEP = "candlery.keep"
#: Under this name the scope says that the same was asked before.
AGAIN = "candlery.again"
#: Added to the entity tag of an answer that is compressed: strong tags are of bytes.
GZIPPED = "-gzip"

#: Under this name the scope has the error that a layer before the application met in its place.
ERROR = "candlery.error"
OK, NOT_MODIFIED = 200, 304

#: To JSON.
encode = msgspec.json.Encoder().encode


def json_answer(content: object, *, simulated: bool = False) -> Response:
    """The content as JSON; simulated data is labelled."""
    return body_answer(encode(content), simulated=simulated)


def body_answer(body: bytes, *, simulated: bool = False) -> Response:
    """JSON that is encoded already."""
    headers = {"Content-Type": "application/json"}
    if simulated:
        headers["X-Candlery-Simulated"] = "true"
    return Response(body, headers=headers)


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


class Wire(NamedTuple):
    """An answer as it goes over the wire, whoever sends it; its headers are lower-case and Latin-1.

    `keep`: what may be given again to whoever asks the same, where that was wanted.
    """

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes
    keep: Keep | None

    def response(self) -> Response:
        """For Quart to send; what may be kept is left in the scope."""
        if self.keep is not None:
            scope_of(request)[KEEP] = self.keep
        response = Response(self.body, self.status, headers=dict(self.headers))
        if self.status == NOT_MODIFIED:
            for name in ("Content-Length", "Content-Type"):
                response.headers.pop(name, None)
        return response


def wire(
    body: bytes, headers: Mapping[str, str], *, etag: str | None, known: str | None, keep: Keep | None = None
) -> Wire:
    """JSON, or only word that the client has it already. With an entity tag clients may keep it.

    `known`: the request's `If-None-Match`.
    """
    every = list(headers.items())
    if etag is None:
        return Wire(OK, [("content-type", "application/json"), *every, ("cache-control", "no-store")], body, keep)
    every += (("etag", f'"{etag}"'), ("cache-control", f"private, max-age={CLOSED_MAX_AGE_S}"))
    if known is not None and is_known(known, etag):
        return Wire(NOT_MODIFIED, every, b"", keep)
    return Wire(OK, [("content-type", "application/json"), *every], body, keep)


def scope_of(asked: Any) -> dict[str, Any]:
    """What the server and the layers before the application say of a request."""
    return cast("dict[str, Any]", asked.scope)


def is_known(known: str, etag: str) -> bool:
    """Whether a client that says `If-None-Match: known` has the answer already, compressed or not."""
    tags = parse_etags(known)
    return tags.star_tag or tags.contains_weak(etag) or tags.contains_weak(etag + GZIPPED)


def tag_of(parts: Iterable[bytes | memoryview]) -> str:
    """An entity tag for a body in parts."""
    digest = xxh3_128()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
