"""`GET /api/v1/coverage`: what is known of each stretch of time."""

from collections.abc import Sequence

from quart import Blueprint, Response, request

from blueprints.answers import body_answer, encode
from blueprints.context import in_time, services
from blueprints.ohlcv_request import time_range
from blueprints.params import Params
from blueprints.schemas import coverage_report
from domain.errors import CandleryError, InvalidParameterError
from domain.series import Series
from domain.time_range import TimeRange
from domain.timeframe import DAY_MS, Timeframe
from services.coverage import Tile
from services.heavy import aside

blueprint = Blueprint("coverage", __name__, url_prefix="/api/v1")

NAMES = ("market", "provider", "symbol", "timeframe", "start", "end")


@blueprint.get("/coverage")
async def get_coverage() -> Response:
    """Verdicts that tile the range; no provider is asked for bars."""
    params = Params(request.query_string, allowed=NAMES)
    series = Series(*(params.required(name) for name in ("market", "provider", "symbol")))
    timeframe = params.timeframe()
    wanted = _wanted(params, timeframe)
    async with in_time():
        tiles = await services().ohlcv.coverage(series, timeframe, wanted)
        simulated = await _is_simulated(series)
    body = await aside(len(tiles), _report, series, timeframe, tiles, simulated=simulated)
    return body_answer(body, simulated=simulated)


def _report(series: Series, timeframe: Timeframe, tiles: Sequence[Tile], *, simulated: bool) -> bytes:
    return encode(coverage_report(series, timeframe, tiles, simulated=simulated))


def _wanted(params: Params, timeframe: Timeframe) -> TimeRange:
    params.required("start")
    now_ms = services().clock.now_ms()
    start_ms, end_ms = time_range(params, now_ms=now_ms)
    assert start_ms is not None
    wanted = TimeRange(start_ms, now_ms if end_ms is None else end_ms)
    most = services().config.max_coverage_buckets
    if timeframe.buckets_between(*wanted) > most:
        days = most * timeframe.nominal_ms // DAY_MS
        msg = f"start lies too far before end: a range may span {most} buckets of {timeframe.value} ({days} days)."
        raise InvalidParameterError("start", msg)
    return wanted


async def _is_simulated(series: Series) -> bool:
    """Whether the bars are made up. A provider that cannot be opened makes none up."""
    try:
        feed = await services().markets.feed(series.market, series.provider)
    except CandleryError:
        return False
    return feed.capabilities.simulated
