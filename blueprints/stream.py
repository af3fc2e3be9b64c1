"""`/api/v1/stream`: live bars over a WebSocket, and `GET /api/v1/stream/subscriptions`: what is live now."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec
from quart import Blueprint, Response, request, websocket
from quart_cors import cors_exempt

from blueprints.answers import encode, json_answer
from blueprints.context import services, stream_hub
from blueprints.params import Params
from blueprints.stream_client import StreamClient
from blueprints.stream_hub import Leave
from blueprints.stream_link import LINK, STAY, ClientGoneError, Link, Receive
from domain.series import Series
from services.market_service import MarketService
from services.subscription_service import SeriesOverview

log = logging.getLogger(__name__)

blueprint = Blueprint("stream", __name__, url_prefix="/api/v1")

#: A browser's, for the scheme.
_PORTS = {"http": ":80", "https": ":443"}
_RETRY_AFTER_S = 5


class LiveSeriesOut(msgspec.Struct, frozen=True, kw_only=True):
    """A series that is live in this process; `clients` are subscriptions by timeframe."""

    market: str
    provider: str
    symbol: str
    state: str
    detail: str | None
    owner: bool
    clients: dict[str, int]
    settled_until: int | None
    last_event: int | None


class LiveOut(msgspec.Struct, frozen=True, kw_only=True):
    """What is live in this process."""

    clients: int
    subscriptions: int
    series: Sequence[LiveSeriesOut]


@blueprint.get("/stream/subscriptions")
async def get_subscriptions() -> Response:
    """The live series of this process, and how many listen."""
    Params(request.query_string, allowed=())
    hub = stream_hub()
    found = [_series_out(one) for one in services().subscriptions.overview()]
    return json_answer(LiveOut(clients=len(hub.clients), subscriptions=hub.subscriptions, series=found))


@blueprint.websocket("/stream")
@cors_exempt  # its own check would refuse our own pages
async def stream() -> Response | None:
    """Refuse the client, or leave what serves it."""
    scope = cast("dict[str, Any]", websocket.scope)
    link = cast("Link | None", scope["extensions"].get(LINK))
    refusal = _refusal(link)
    if refusal is None and link is not None:
        use = services()
        simulated = _is_simulated(use.markets)
        join = partial(StreamClient, stream_hub(), link, use.subscriptions, use.clock, is_simulated=simulated)
        scope[STAY] = partial(_serve, join)
    return refusal


async def _serve(join: Callable[[], StreamClient], receive: Receive) -> None:
    """Do what the client asks for as long as it is there."""
    client = join()
    try:
        while True:
            client.take(await receive())
    except ClientGoneError:
        return
    except Exception:
        log.exception("a client of the stream had to go")
        client.end(Leave.ERROR)
    finally:
        await client.leave()


def _refusal(link: Link | None) -> Response | None:
    """Why a handshake is refused; None where it is not."""
    origin, hub = websocket.headers.get("Origin"), stream_hub()
    if origin is not None and not _is_welcome(origin, websocket.host, services().config.cors_origins):
        return _problem(
            403, "forbidden", "Pages of this origin may not call; CANDLERY_CORS_ORIGINS names those that may."
        )
    if link is None:
        return _problem(501, "feature_not_supported", "WebSockets are served over HTTP/1.1 only.")
    if hub.is_stopping:
        return _problem(503, "not_ready", "The server is going away.")
    if hub.is_full:
        return _problem(503, "not_ready", "There are too many clients; come back later.")
    return None


def _is_welcome(origin: str, host: str, welcome: Sequence[str]) -> bool:
    """Whether a page of the origin may open a stream: one of this host's own, or one that the settings name.

    Browsers let any page open a WebSocket to any host; it is the server that must look.
    """
    if "*" in welcome or origin in welcome:
        return True
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    port = _PORTS.get(parts.scheme, "")
    return bool(parts.netloc) and parts.netloc.lower().removesuffix(port) == host.lower().removesuffix(port)


def _problem(status: int, code: str, detail: str) -> Response:
    title = code.replace("_", " ").capitalize()
    content = {"type": f"urn:candlery:error:{code}", "title": title, "status": status, "code": code, "detail": detail}
    response = Response(encode(content), status, mimetype="application/problem+json")
    response.headers["Cache-Control"] = "no-store"
    if status == 503:  # noqa: PLR2004 - wait
        response.headers["Retry-After"] = str(_RETRY_AFTER_S)
    return response


def _is_simulated(markets: MarketService) -> Callable[[Series], bool]:
    """Tells whether the bars of a series are made up. A provider that is not open makes none up."""

    def tell(series: Series) -> bool:
        provider = (series.market, series.provider)
        opened = markets.open_providers()
        return any((one.market, one.provider) == provider and one.feed.capabilities.simulated for one in opened)

    return tell


def _series_out(one: SeriesOverview) -> LiveSeriesOut:
    return LiveSeriesOut(
        market=one.series.market,
        provider=one.series.provider,
        symbol=one.series.symbol,
        state=one.state.value,
        detail=one.detail,
        owner=one.owner_here,
        clients={timeframe.value: listeners for timeframe, listeners in one.clients.items()},
        settled_until=one.settled_ms,
        last_event=one.last_event_ms,
    )
