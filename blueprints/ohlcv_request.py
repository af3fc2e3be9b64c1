"""The parameters of `GET /api/v1/ohlcv`, checked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from blueprints.context import HttpSettings
from blueprints.errors import FeatureNotSupportedError
from blueprints.page_token import Place, make_token, read_token
from blueprints.params import TOKEN, Params
from domain.errors import InvalidParameterError
from domain.series import Series
from domain.timeframe import Timeframe
from services.bar_walk import OhlcvAnswer, OhlcvQuery
from services.fill import Fill

NAMES = (
    *("market", "provider", "symbol", "timeframe", "start", "end", "limit", TOKEN),
    *("include_forming", "fill", "format", "require"),
)
DEFAULT_LIMIT = 1000
#: Most bars over all symbols of one answer; some 6 MB of JSON.
MAX_ROWS = 100_000
FORMATS = ("json", "csv", "arrow", "parquet", "msgpack")


class Require(StrEnum):
    """What an answer must be, or else an error."""

    COMPLETE = "complete"


@dataclass(frozen=True, kw_only=True)
class OhlcvRequest:
    """The checked parameters, and where each symbol's page begins."""

    market: str
    provider: str
    symbols: Sequence[str]
    timeframe: Timeframe
    start_ms: int | None
    end_ms: int | None
    limit: int
    include_forming: bool
    fill: Fill
    complete_only: bool
    places: Sequence[Place]

    def queries(self) -> list[OhlcvQuery | None]:
        """What to ask for each symbol; None where earlier pages gave all of it."""
        return [self._query(symbol, place) for symbol, place in zip(self.symbols, self.places, strict=True)]

    def next_token(self, answers: Sequence[OhlcvAnswer]) -> str | None:
        """The token of the next page; None where no symbol has more."""
        if all(answer.next_ms is None for answer in answers):
            return None
        return make_token(self._question, list(map(self._next_place, self.places, answers)))

    def at_token(self, token: str) -> "OhlcvRequest":
        """This request on the page that the token stands for."""
        return replace(self, places=read_token(token, self._question, symbols=len(self.symbols)))

    @property
    def _question(self) -> tuple[object, ...]:
        """What must not change from page to page."""
        series = (self.market, self.provider, tuple(self.symbols), self.timeframe.value)
        return (*series, self.start_ms, self.end_ms, self.include_forming, self.fill.value)

    def _query(self, symbol: str, place: Place) -> OhlcvQuery | None:
        if self.start_ms is not None and place.next_ms is None:
            return None
        return OhlcvQuery(
            series=Series(self.market, self.provider, symbol),
            timeframe=self.timeframe,
            start_ms=place.next_ms,
            end_ms=self.end_ms,
            limit=self.limit,
            include_forming=self.include_forming,
            fill=self.fill,
            carry=place.carry,
        )

    def _next_place(self, place: Place, answer: OhlcvAnswer) -> Place:
        if answer.next_ms is None or self.fill is Fill.NONE:
            return Place(answer.next_ms)
        return Place(answer.next_ms, answer.bars[-1].close if answer.bars else place.carry)


def parse_ohlcv(query: bytes, limits: HttpSettings, *, now_ms: int) -> OhlcvRequest:
    """Check every parameter of a raw query string.

    Raises:
        InvalidParameterError, UnsupportedTimeframeError, FeatureNotSupportedError: the first one that is wrong.
    """
    params = Params(query, allowed=NAMES, repeatable=("symbol",))
    market, provider = params.required("market"), params.required("provider")
    symbols = params.several("symbol", most=limits.max_symbols)
    _check_format(params)
    timeframe = params.timeframe()
    start_ms, end_ms = time_range(params, now_ms=now_ms)
    asked = OhlcvRequest(
        market=market,
        provider=provider,
        symbols=symbols,
        timeframe=timeframe,
        start_ms=start_ms,
        end_ms=end_ms,
        limit=_limit(params, len(symbols), limits.max_limit),
        include_forming=params.flag("include_forming"),
        fill=params.choice("fill", Fill.NONE),
        complete_only=params.text("require") is not None and bool(params.choice("require", Require.COMPLETE)),
        places=[Place(start_ms)] * len(symbols),
    )
    token = params.text(TOKEN)
    return asked if token is None else asked.at_token(token)


def time_range(params: Params, *, now_ms: int) -> tuple[int | None, int | None]:
    """`start` and `end`, in order and not all in the future."""
    start_ms, end_ms = params.time_ms("start"), params.time_ms("end")
    if start_ms is not None and end_ms is not None and end_ms <= start_ms:
        raise InvalidParameterError("end", "end must be after start.")
    if start_ms is not None and start_ms > now_ms:
        raise InvalidParameterError("start", "start lies in the future.")
    return start_ms, end_ms


def _limit(params: Params, symbols: int, most: int) -> int:
    limit = params.whole("limit", default=DEFAULT_LIMIT, low=1, high=most)
    if limit * symbols <= MAX_ROWS:
        return limit
    share = MAX_ROWS // symbols
    raise InvalidParameterError("limit", f"limit may be {share} at most for {symbols} symbols: {MAX_ROWS} bars in all.")


def _check_format(params: Params) -> None:
    name = params.text("format") or "json"
    if name not in FORMATS:
        raise InvalidParameterError("format", f"format must be one of {', '.join(FORMATS)}, not {name[:40]!r}.")
    if name != "json":
        raise FeatureNotSupportedError(f"This version answers in JSON only, not in {name}.")
