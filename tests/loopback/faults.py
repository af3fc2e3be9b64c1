"""What can go wrong with an answer, and a script that says when."""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from email.utils import formatdate
from typing import NamedTuple

from aiohttp import web

#: `[ts_ms, open, high, low, close, volume]` in the order in which the exchange sends them; values may become nonsense.
Rows = list[list[object]]


class RowFault(NamedTuple):
    """Changes the rows of an otherwise healthy answer."""

    name: str
    apply: Callable[[Rows], Rows]


class WireFault(NamedTuple):
    """Takes the place of the answer; is handed the request and the healthy body."""

    name: str
    answer: Callable[[web.Request, str], Awaitable[web.StreamResponse]]


Fault = RowFault | WireFault


class FaultScript:
    """Which call meets which fault. None lets a call through."""

    def __init__(self) -> None:
        self._next: deque[Fault | None] = deque()
        self._nth: dict[int, Fault] = {}
        self._random: tuple[random.Random, float, Sequence[Fault]] | None = None
        #: Calls so far, and the names of the faults that they met.
        self.calls = 0
        self.met: list[str] = []
        #: Set as soon as a call hangs.
        self.hanging = asyncio.Event()

    def next(self, *faults: Fault | None) -> None:
        """One for each call to come."""
        self._next.extend(faults)

    def on(self, nth: int, fault: Fault) -> None:
        """For the n-th call of all, counted from 1."""
        self._nth[nth] = fault

    def randomly(self, faults: Sequence[Fault], *, probability: float, seed: int) -> None:
        self._random = (random.Random(seed), probability, faults)

    def clear(self) -> None:
        """The exchange recovers."""
        self._next.clear()
        self._nth.clear()
        self._random = None

    def pick(self) -> Fault | None:
        self.calls += 1
        fault = self._pick()
        if fault is not None:
            self.met.append(fault.name)
        if fault is HANG:
            self.hanging.set()
        return fault

    def _pick(self) -> Fault | None:
        if self._next:
            return self._next.popleft()
        if self.calls in self._nth:
            return self._nth[self.calls]
        if self._random is not None:
            rng, probability, faults = self._random
            return rng.choice(faults) if rng.random() < probability else None
        return None


def _fixed(
    name: str, *, status: int, body: str, headers: dict[str, str] | None = None, kind: str = "application/json"
) -> WireFault:
    async def answer(request: web.Request, healthy: str) -> web.StreamResponse:
        return web.Response(status=status, text=body, headers=headers, content_type=kind)

    return WireFault(name, answer)


def too_many(*, retry_after: str | None = "0.05") -> WireFault:
    headers = None if retry_after is None else {"Retry-After": retry_after}
    body = '{"code":-1003,"msg":"Too many requests; current limit is 6000 request weight per 1 MINUTE."}'
    return _fixed("429", status=429, body=body, headers=headers)


def too_many_until(now_ms: int, *, seconds: float) -> WireFault:
    """429 with Retry-After as a date."""
    return too_many(retry_after=formatdate(now_ms / 1000 + seconds, usegmt=True))


def banned(*, retry_after: str = "0.05") -> WireFault:
    body = '{"code":-1003,"msg":"Way too much request weight used; IP banned until 1700000000000."}'
    return _fixed("418", status=418, body=body, headers={"Retry-After": retry_after})


def kraken_error(text: str) -> WireFault:
    """Kraken's errors come with status 200."""
    return _fixed(text, status=200, body=f'{{"error":["{text}"]}}')


async def _hang(request: web.Request, healthy: str) -> web.StreamResponse:
    await asyncio.sleep(60)
    return web.Response()


async def _drop(request: web.Request, healthy: str) -> web.StreamResponse:
    """Promise the whole body, send half of it, and cut the connection."""
    body = healthy.encode()
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(body) + 100)})
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    assert request.transport is not None
    request.transport.close()
    return response


async def _truncate(request: web.Request, healthy: str) -> web.StreamResponse:
    return web.Response(text=healthy[: len(healthy) * 2 // 3], content_type="application/json")


_HTML = "<html><head><title>Just a moment...</title></head><body>Checking your browser</body></html>"
WEIGHT_1003 = _fixed("-1003", status=400, body='{"code":-1003,"msg":"Too many requests queued."}')
OVERLOADED = _fixed("503 -1008", status=503, body='{"code":-1008,"msg":"Server is currently overloaded."}')
ERROR_500 = _fixed("500", status=500, body='{"msg":"internal"}')
ERROR_502 = _fixed("502", status=502, body="<html>502 Bad Gateway</html>", kind="text/html")
ERROR_504 = _fixed("504", status=504, body="")
GEO_BLOCK = _fixed("451", status=451, body='{"code":0,"msg":"Service unavailable from a restricted location."}')
UNAUTHORISED = _fixed("401", status=401, body='{"code":-2014,"msg":"API-key format invalid."}')
HTML = _fixed("HTML with 200", status=200, body=_HTML, kind="text/html")
EMPTY_OBJECT = _fixed("{} with 200", status=200, body="{}")
NO_BODY = _fixed("no body with 200", status=200, body="")
NULL = _fixed("null with 200", status=200, body="null")
TRUNCATED = WireFault("truncated JSON with 200", _truncate)
HANG = WireFault("hang", _hang)
DROP = WireFault("connection dropped in mid-body", _drop)


def _middle(rows: Rows) -> int:
    return len(rows) // 2


def _shuffled(rows: Rows) -> Rows:
    return rows[1::2] + rows[::2]


def _doubled(rows: Rows) -> Rows:
    return [copy for row in rows for copy in (row, list(row))]


def _contradicting(rows: Rows) -> Rows:
    """The row in the middle comes a second time with another volume."""
    at = _middle(rows)
    return [*rows[: at + 1], [*rows[at][:5], 12345.5], *rows[at + 1 :]] if rows else rows


def _with(column: int, value: object) -> Callable[[Rows], Rows]:
    def apply(rows: Rows) -> Rows:
        if rows:
            rows[_middle(rows)][column] = value
        return rows

    return apply


def _upside_down(rows: Rows) -> Rows:
    if rows:
        row = rows[_middle(rows)]
        row[2], row[3] = float(row[3]) - 1.0, float(row[2]) + 1.0  # type: ignore[arg-type]
    return rows


def _misaligned(rows: Rows) -> Rows:
    if rows:
        row = rows[_middle(rows)]
        row[0] = int(row[0]) + 17_000  # type: ignore[call-overload]
    return rows


def _nulls(rows: Rows) -> Rows:
    return [[None] * 6 for _ in rows]


OUT_OF_ORDER = RowFault("rows out of order", _shuffled)
DOUBLED = RowFault("rows doubled", _doubled)
CONTRADICTING = RowFault("a row twice with different values", _contradicting)
NAN = RowFault("NaN", _with(4, float("nan")))
NULL_PRICE = RowFault("a null price", _with(1, None))
NULL_TIME = RowFault("a null time", _with(0, None))
UPSIDE_DOWN = RowFault("high below low", _upside_down)
MISALIGNED = RowFault("a time between buckets", _misaligned)
NEGATIVE = RowFault("a negative volume", _with(5, -1.0))
SHORT = RowFault("a page shorter than asked", lambda rows: rows[: max(1, len(rows) // 3)])
EMPTY = RowFault("an empty page", lambda rows: [])
ALL_NULL = RowFault("rows of nulls", _nulls)

#: Answers that say that something is wrong, or cannot be taken for bars: nothing may come of them.
LOUD = (
    too_many(),
    banned(),
    OVERLOADED,
    ERROR_500,
    ERROR_502,
    ERROR_504,
    HTML,
    EMPTY_OBJECT,
    NO_BODY,
    NULL,
    TRUNCATED,
    DROP,
)
#: Answers with some good rows: those, and nothing else, may come of them.
QUIET = (
    OUT_OF_ORDER,
    DOUBLED,
    CONTRADICTING,
    NAN,
    NULL_PRICE,
    NULL_TIME,
    UPSIDE_DOWN,
    MISALIGNED,
    NEGATIVE,
    SHORT,
)
