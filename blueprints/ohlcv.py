"""`GET /api/v1/ohlcv`: bars of one symbol or several."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

from msgspec import UNSET
from quart import Blueprint, Response, request

from blueprints.answers import AGAIN, ERROR, Keep, Wire, encode, scope_of, tag_of, wire
from blueprints.context import HttpServices, in_time, services
from blueprints.ohlcv_request import OhlcvRequest, parse_ohlcv
from blueprints.schemas import CoverageOut, OhlcvOut, gaps_out
from domain.errors import IncompleteError
from domain.packed import Text, texts_of
from services.bar_walk import OhlcvAnswer, OhlcvQuery
from services.fill import Fill

blueprint = Blueprint("ohlcv", __name__, url_prefix="/api/v1")

#: Symbols that are looked up at once.
CONCURRENCY = 8
#: With more bars than this, encoding would hold up the event loop for milliseconds.
ROWS_ON_LOOP = 5_000

T = TypeVar("T")
#: The source of what is given again.
_MEMORY = ["cache"]


@blueprint.get("/ohlcv")
async def get_ohlcv() -> Response:
    """Answer what the lane before the application leaves to it, or tell of the error that was met there."""
    scope = scope_of(request)
    if (error := scope.get(ERROR)) is not None:
        raise error
    known = request.headers.get("If-None-Match")
    return (await answer(request.query_string, services(), known=known, again=AGAIN in scope)).response()


async def answer(query: bytes, use: HttpServices, *, known: str | None, again: bool) -> Wire:
    """Parse, ask, answer. `known`: the request's `If-None-Match`; `again`: the answer would be kept if it may be."""
    asked = parse_ohlcv(query, use.config, now_ms=use.clock.now_ms())
    async with in_time(use):
        answers = await _ask_all(asked.queries(), use.ohlcv.bars)
    if asked.complete_only:
        _insist_on_complete(answers)
    if sum(len(answer.bars) + len(answer.gaps) for answer in answers) > ROWS_ON_LOOP:
        rendered = await asyncio.to_thread(render, asked, answers)
    else:
        rendered = render(asked, answers)
    headers = {"vary": "Accept-Encoding"}
    if any(answer.simulated for answer in answers):
        headers["x-candlery-simulated"] = "true"
    keep = _keep(rendered, answers) if again else None
    return wire(rendered.body(), headers, etag=rendered.tag, known=known, keep=keep)


def _keep(rendered: "Rendered", answers: Sequence[OhlcvAnswer]) -> Keep | None:
    """What may be given again, where it is known what could change it."""
    stamps = [answer.stamp for answer in answers if answer.stamp is not None and answer.until_ms != 0]
    if len(stamps) < len(answers):
        return None
    ends = [answer.until_ms for answer in answers if answer.until_ms is not None]
    return Keep(rendered.body_from_memory(), stamps, min(ends, default=None))


async def _ask_all(
    queries: Sequence[OhlcvQuery | None], bars: Callable[[OhlcvQuery], Awaitable[OhlcvAnswer]]
) -> list[OhlcvAnswer]:
    """The answers in the order of the queries; the first error ends them all."""
    if len(queries) == 1 and queries[0] is not None:
        return [await bars(queries[0])]
    turns = asyncio.Semaphore(CONCURRENCY)

    async def ask(query: OhlcvQuery | None) -> OhlcvAnswer:
        if query is None:
            return OhlcvAnswer(in_past=True)
        async with turns:
            return await bars(query)

    failure: Exception | None = None
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(query), name="bars of one symbol") for query in queries]
    except ExceptionGroup as errors:
        failure = errors.exceptions[0]
    if failure is not None:
        raise failure
    return [task.result() for task in tasks]


def _insist_on_complete(answers: Sequence[OhlcvAnswer]) -> None:
    gaps = [gap for answer in answers for gap in answer.gaps]
    if not gaps:
        return
    first = gaps[0]
    error = next((answer.error for answer in answers if answer.error is not None), None)
    words = f"{len(gaps)} stretch{'es are' if len(gaps) > 1 else ' is'} not known in full; the first, from "
    words += f"{_iso(first.range.start_ms)} to {_iso(first.range.end_ms)}, is {first.verdict.value}."
    incomplete = IncompleteError(words if error is None else f"{words} The provider failed: {error.detail}")
    if error is not None and error.retry_after_s:
        incomplete.retry_after_s = error.retry_after_s
    raise incomplete from error


class Rendered(NamedTuple):
    """An answer's JSON, in parts.

    Attributes:
        start: all before the sources.
        end: the rest of it, with no source named.
        sources: where this one's bars came from.
        tag: the entity tag of an answer of which nothing can change any more, but by a correction. It is of everything
            but the sources, which tell how this one answer came about.
    """

    start: Sequence[Text]
    end: bytes
    sources: Sequence[str]
    tag: str | None

    def body(self) -> bytes:
        """The answer as it came about."""
        return self._with(self.sources)

    def body_from_memory(self) -> bytes:
        """The answer as it is given again."""
        return self._with(_MEMORY if self.sources else ())

    def _with(self, sources: Sequence[str]) -> bytes:
        return b"".join([*self.start, self.end.replace(b'"sources":[]', b'"sources":' + encode(sources), 1)])


def render(asked: OhlcvRequest, answers: Sequence[OhlcvAnswer]) -> Rendered:
    """Put the answer together."""
    complete = not any(answer.gaps for answer in answers)
    single = len(asked.symbols) == 1

    def each(pick: Callable[[OhlcvAnswer], T]) -> T | dict[str, T]:
        return pick(answers[0]) if single else dict(zip(asked.symbols, map(pick, answers), strict=True))

    out = OhlcvOut(
        market=asked.market,
        provider=asked.provider,
        symbol=asked.symbols[0] if single else asked.symbols,
        timeframe=asked.timeframe.value,
        next_page_token=asked.next_token(answers),
        sources=(),
        coverage=CoverageOut(complete, each(gaps_out)),
        filled=each(lambda answer: answer.filled) if asked.fill is not Fill.NONE else UNSET,
        forming=each(lambda answer: answer.forming) if asked.include_forming else UNSET,
        simulated=True if any(answer.simulated for answer in answers) else UNSET,
    )
    before, name, after = encode(out).partition(b'"bars":')
    start, end = [before, name, *_bars(asked.symbols, answers)], after.removeprefix(b"null")
    closed = all(answer.in_past or _is_full(answer, asked.limit) for answer in answers)
    sources = list(dict.fromkeys(name for answer in answers for name in answer.sources))
    return Rendered(start, end, sources, tag_of([*start, end]) if complete and closed else None)


def _bars(symbols: Sequence[str], answers: Sequence[OhlcvAnswer]) -> list[Text]:
    """The parts of the bars' JSON, by symbol where there are several."""
    if len(symbols) == 1:
        return texts_of(answers[0].bars)
    out: list[Text] = []
    for symbol, answer in zip(symbols, answers, strict=True):
        out += (b"," if out else b"{", encode(symbol), b":", *texts_of(answer.bars))
    return [*out, b"}"]


def _is_full(answer: OhlcvAnswer, limit: int) -> bool:
    """A full page with more behind it stays as it is, however time goes on."""
    return answer.next_ms is not None and len(answer.bars) >= limit


def _iso(ts_ms: int) -> str:
    return datetime.fromtimestamp(ts_ms / 1000, UTC).isoformat().replace("+00:00", "Z")
