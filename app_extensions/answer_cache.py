"""Answers that are given again: a layer before the application, which repeats an answer from its bytes.

What is asked for a second time is kept. The application says of it what its bars were read under, and until when it is
good. A write to one of its series makes it unreachable, and so does any doubt whether such a write would be heard of.
What must be asked of every request, such as who sends it, belongs before this layer.
"""

import asyncio
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from functools import lru_cache
from time import perf_counter
from typing import Any, NamedTuple

from quart import Quart
from werkzeug.datastructures import Accept
from werkzeug.http import parse_accept_header

from app_extensions.ohlcv_lane import ROUTE, plain_headers
from app_extensions.request_context import Asgi, Meter, named, own_headers
from app_extensions.serving.port import HEAD, WrittenHead, written
from blueprints.answers import AGAIN, GZIPPED, KEEP, Keep, is_known
from blueprints.context import EXTENSION

Headers = list[tuple[bytes, bytes]]

#: Larger answers are not kept.
MAX_BODY_BYTES = 2 << 20
_OVERHEAD_BYTES = 2_000
#: Questions that are known to have been asked once.
MOST_ASKED = 10_000
_GZIP_LEVEL = 1
#: Compressing more than this takes longer than handing it to a thread.
_GZIP_ON_LOOP_BYTES = 16 << 10
#: What each answer has of its own.
_OWN = frozenset({b"x-request-id", b"server-timing"})


class _Form(NamedTuple):
    """An answer in one coding, ready to be sent; `lines` are its headers as they go over the wire."""

    status: int
    headers: Headers
    lines: bytes
    body: bytes

    @classmethod
    def of(cls, status: int, headers: Headers, body: bytes = b"") -> "_Form":
        """Write the headers out; where there is a body, they tell its length."""
        headers = [pair for pair in headers if pair[0].lower() != b"content-length"]
        if body:
            headers.append((b"content-length", b"%d" % len(body)))
        return cls(status, headers, written(headers), body)


class _Kept:
    """One answer."""

    __slots__ = ("expires_ms", "keep", "turn", "whole", "zipped")

    def __init__(self, keep: Keep, headers: Iterable[tuple[bytes, bytes]], expires_ms: int) -> None:
        self.keep = keep
        self.expires_ms = expires_ms if keep.until_ms is None else min(expires_ms, keep.until_ms)
        self.whole = _Form.of(200, [pair for pair in headers if pair[0].lower() not in _OWN], keep.body)
        self.turn: asyncio.Lock | None = None
        self.zipped: _Form | None = None

    @property
    def not_modified(self) -> _Form:
        """For who has it already."""
        return _Form.of(304, [pair for pair in self.whole.headers if pair[0].lower() != b"content-type"])

    @property
    def tag(self) -> str | None:
        """The entity tag, in its quotes."""
        return next((value.decode("latin-1") for name, value in self.whole.headers if name.lower() == b"etag"), None)

    @property
    def size(self) -> int:
        return len(self.whole.body) + (len(self.zipped.body) if self.zipped else 0) + _OVERHEAD_BYTES

    async def zip(self) -> _Form:
        """The answer with its body compressed."""
        body = self.whole.body
        zipped = _gzip(body) if len(body) <= _GZIP_ON_LOOP_BYTES else await asyncio.to_thread(_gzip, body)
        headers = [pair for pair in self.whole.headers if pair[0].lower() != b"etag"]
        headers.append((b"content-encoding", b"gzip"))
        if (tag := self.tag) is not None:
            headers.append((b"etag", (tag[:-1] + GZIPPED + '"').encode("latin-1")))
        return _Form.of(200, headers, zipped)


class AnswerCache:
    """Repeats answers to `GET /api/v1/ohlcv`, the least recently used giving way beyond `max_bytes`."""

    def __init__(self, web: Quart, app: Asgi, meter: Meter, *, max_bytes: int, ttl_s: float) -> None:
        """Take the application, as Quart's own and as what is called; `ttl_s`: an answer is given again so long."""
        self._web = web
        self._app = app
        self._meter = meter
        self._max_bytes = max_bytes
        self._ttl_ms = int(ttl_s * 1000)
        self._kept: OrderedDict[tuple[bytes, bytes | None], _Kept] = OrderedDict()
        #: Questions that were asked once.
        self._asked: dict[int, None] = {}
        self._bytes = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer, or have the application answer."""
        asked = plain_headers(scope)
        if asked is None:
            await self._app(scope, receive, send)
            return
        began_s = perf_counter()
        key = (scope["query_string"], asked.get(b"origin"))
        kept = self._find(key)
        if kept is None:
            if self._was_asked(key):
                scope[AGAIN] = True
                send = self._listening(key, scope, send)
            await self._app(scope, receive, send)
        else:
            status, headers, lines, body = await self._pick(kept, asked)
            took_s = perf_counter() - began_s
            own = own_headers(named(asked.get(b"x-request-id")), took_s)
            head = WrittenHead(lines + written(own), len(body))
            await send({"type": "http.response.start", "status": status, "headers": [*headers, *own], HEAD: head})
            await send({"type": "http.response.body", "body": body})
            self._meter("GET", ROUTE, status, took_s)

    def _find(self, key: tuple[bytes, bytes | None]) -> _Kept | None:
        kept = self._kept.get(key)
        services = self._web.extensions.get(EXTENSION)
        if kept is None or services is None:
            return None
        holds = services.revisions.holds
        if kept.expires_ms > services.clock.now_ms():
            for stamp in kept.keep.stamps:
                if not holds(stamp):
                    break
            else:
                self._kept.move_to_end(key)
                return kept
        self._forget(key)
        return None

    def _was_asked(self, key: tuple[bytes, bytes | None]) -> bool:
        """Whether it was asked before. Most questions are asked once, and keeping their answers costs more."""
        asked = hash(key)
        if asked in self._asked:
            return True
        self._asked[asked] = None
        if len(self._asked) > MOST_ASKED:
            del self._asked[next(iter(self._asked))]
        return False

    def _listening(self, key: tuple[bytes, bytes | None], scope: Any, send: Any) -> Any:
        """Keep the answer as it passes, where the application says that it may be."""

        async def pass_on(message: Any) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:  # noqa: PLR2004 - OK
                keep = scope.get(KEEP)
                if keep is not None:
                    self._keep(key, keep, message["headers"])
            await send(message)

        return pass_on

    def _keep(self, key: tuple[bytes, bytes | None], keep: Keep, headers: Iterable[tuple[bytes, bytes]]) -> None:
        services = self._web.extensions.get(EXTENSION)
        if services is None or len(keep.body) > MAX_BODY_BYTES or not all(map(services.revisions.holds, keep.stamps)):
            return
        self._forget(key)
        self._kept[key] = kept = _Kept(keep, headers, services.clock.now_ms() + self._ttl_ms)
        self._bytes += kept.size
        self._make_room()

    async def _pick(self, kept: _Kept, asked: dict[bytes, bytes]) -> _Form:
        """What to send to whoever asks so."""
        known = asked.get(b"if-none-match")
        if known is not None and (tag := kept.tag) is not None and is_known(known.decode("latin-1"), tag.strip('"')):
            return kept.not_modified
        coding = asked.get(b"accept-encoding")
        if coding is None or not _takes_gzip(coding):
            return kept.whole
        return kept.zipped or await self._zip(kept)

    async def _zip(self, kept: _Kept) -> _Form:
        kept.turn = kept.turn or asyncio.Lock()
        async with kept.turn:
            if kept.zipped is not None:
                return kept.zipped
            kept.zipped = zipped = await kept.zip()
        self._bytes = sum(each.size for each in self._kept.values())
        self._make_room()
        return zipped

    def _make_room(self) -> None:
        while self._bytes > self._max_bytes:
            self._forget(next(iter(self._kept)))

    def _forget(self, key: tuple[bytes, bytes | None]) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._bytes -= kept.size


def install(web: Quart, meter: Meter, *, max_bytes: int, ttl_s: float) -> None:
    """Put the layer before the application."""
    if max_bytes:
        web.asgi_app = AnswerCache(web, web.asgi_app, meter, max_bytes=max_bytes, ttl_s=ttl_s)  # type: ignore[method-assign]


def _gzip(body: bytes) -> bytes:
    """In gzip's format, with no time in it: the same bytes make the same bytes."""
    packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return packer.compress(body) + packer.flush()


@lru_cache(maxsize=256)
def _takes_gzip(header: bytes) -> bool:
    return bool(parse_accept_header(header.decode("latin-1"), Accept).quality("gzip") > 0)
