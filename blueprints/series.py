"""`GET /api/v1/series`: what is stored of each series."""

from collections.abc import Sequence

import msgspec
from quart import Blueprint, Response, request

from blueprints.answers import json_answer
from blueprints.context import in_time, services
from blueprints.page_token import seal, unseal, wrong_token
from blueprints.params import Params
from domain.errors import UnknownProviderError
from domain.series import Series
from services.series_summary import SeriesFilter, StoredPart

blueprint = Blueprint("series", __name__, url_prefix="/api/v1")

NAMES = ("market", "provider", "symbol", "limit", "page_token")
DEFAULT_SERIES = 100
MAX_SERIES = 1000


class NativeOut(msgspec.Struct, frozen=True):
    """A coarser timeframe of which the provider's own bars are stored."""

    timeframe: str
    first_bar: int
    last_bar: int


class SeriesOut(msgspec.Struct, frozen=True, kw_only=True):
    """A stored series. Of a series that no minute was asked for yet, the times are null."""

    market: str
    provider: str
    symbol: str
    calendar: str | None
    start: int | None
    end: int | None
    first_bar: int | None
    last_bar: int | None
    bars: int
    missing: dict[str, int]
    lag_seconds: float | None
    native: Sequence[NativeOut]


class SeriesPage(msgspec.Struct, frozen=True):
    """Stored series, and where the next ones are."""

    series: Sequence[SeriesOut]
    next_page_token: str | None


@blueprint.get("/series")
async def get_series() -> Response:
    """Stored series by market, provider and symbol; no provider is asked for anything."""
    params = Params(request.query_string, allowed=NAMES)
    wanted = SeriesFilter(*(params.text(name) for name in ("market", "provider", "symbol")))
    limit = params.whole("limit", default=DEFAULT_SERIES, low=1, high=MAX_SERIES)
    token = params.text("page_token")
    after = None if token is None else _place(token, wanted)
    async with in_time():
        found, has_more = await services().summaries.page(wanted, limit=limit, after=after)
    if not found and after is None:
        _check_names(wanted)
    last = found[-1].series if found and has_more else None
    return json_answer(SeriesPage([_series_out(one) for one in found], _token(wanted, last)))


def _check_names(wanted: SeriesFilter) -> None:
    """Tell a name that stands for nothing from one of which nothing is stored."""
    if wanted.market is None:
        return
    known = [info.id for _, info in services().loader.providers(wanted.market)]
    if wanted.provider is not None and wanted.provider not in known:
        names = ", ".join(known)
        raise UnknownProviderError(f"The market {wanted.market!r} has no provider {wanted.provider!r}; it has {names}.")


def _token(wanted: SeriesFilter, last: Series | None) -> str | None:
    return None if last is None else seal(("series", *wanted), msgspec.msgpack.encode(last))


def _place(token: str, wanted: SeriesFilter) -> Series:
    try:
        return Series(*msgspec.msgpack.decode(unseal(token, ("series", *wanted)), type=tuple[str, str, str]))
    except msgspec.MsgspecError:
        raise wrong_token() from None


def _series_out(one: StoredPart) -> SeriesOut:
    start_ms, end_ms = one.range or (None, None)
    return SeriesOut(
        market=one.series.market,
        provider=one.series.provider,
        symbol=one.series.symbol,
        calendar=one.calendar,
        start=start_ms,
        end=end_ms,
        first_bar=one.first_ms,
        last_bar=one.last_ms,
        bars=one.bars,
        missing={verdict.value: minutes for verdict, minutes in one.missing.items()},
        lag_seconds=one.lag_s,
        native=[NativeOut(bars.timeframe.value, bars.first_ms, bars.last_ms) for bars in one.native],
    )
