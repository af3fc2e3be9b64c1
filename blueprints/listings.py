"""`GET /api/v1/markets`, `/providers` and `/symbols`: what there is to ask for."""

from collections.abc import Iterable
from operator import itemgetter
from typing import Protocol, TypeVar

from msgspec import UNSET
from quart import Blueprint, Response, request

from blueprints.answers import json_answer
from blueprints.context import in_time, services
from blueprints.params import Params
from blueprints.schemas import ProviderOut, SymbolOut
from domain.timeframe import Timeframe
from services.market_service import ProviderListing

blueprint = Blueprint("listings", __name__, url_prefix="/api/v1")

DEFAULT_SYMBOLS = 100
MAX_SYMBOLS = 1000


class Symbol(Protocol):
    """What is shown of a symbol; see `plugins.base.SymbolInfo`."""

    @property
    def symbol(self) -> str: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def type(self) -> str: ...  # noqa: D102
    @property
    def active(self) -> bool: ...  # noqa: D102
    @property
    def calendar(self) -> str | None: ...  # noqa: D102
    @property
    def listed_ms(self) -> int | None: ...  # noqa: D102


AnySymbol = TypeVar("AnySymbol", bound=Symbol)


@blueprint.get("/markets")
async def get_markets() -> Response:
    """Every market and its providers."""
    Params(request.query_string, allowed=())
    found = services()
    markets = [
        {"id": market, "providers": [info.id for _, info in found.loader.providers(market)]}
        for market in found.markets.markets()
    ]
    return json_answer({"markets": markets})


@blueprint.get("/providers")
async def get_providers() -> Response:
    """The providers of a market and what they can do."""
    market = Params(request.query_string, allowed=("market",)).required("market")
    async with in_time():
        listings = await services().markets.providers(market)
    return json_answer({"market": market, "providers": [_provider_out(listing) for listing in listings]})


@blueprint.get("/symbols")
async def get_symbols() -> Response:
    """The symbols of a provider, best matches first."""
    params = Params(request.query_string, allowed=("market", "provider", "query", "limit"))
    market, provider = params.required("market"), params.required("provider")
    query = (params.text("query") or "").strip()
    limit = params.whole("limit", default=DEFAULT_SYMBOLS, low=1, high=MAX_SYMBOLS)
    async with in_time():
        symbols = await services().markets.symbols(market, provider)
        feed = await services().markets.feed(market, provider)
    found = search(symbols.values(), query)
    simulated = feed.capabilities.simulated
    answer: dict[str, object] = {"market": market, "provider": provider, "total": len(found)}
    answer["symbols"] = [_symbol_out(info) for info in found[:limit]]
    if simulated:
        answer["simulated"] = True
    return json_answer(answer, simulated=simulated)


def search(symbols: Iterable[AnySymbol], query: str) -> list[AnySymbol]:
    """The symbols whose symbol or name holds the query, in any case: exact ones, then those that begin with it."""
    wanted = query.casefold()
    ranked = [(rank, info.symbol, info) for info in symbols if (rank := _rank(info, wanted)) is not None]
    return [info for *_, info in sorted(ranked, key=itemgetter(0, 1))]


def _rank(info: Symbol, wanted: str) -> int | None:
    symbol, name = info.symbol.casefold(), info.name.casefold()
    if symbol == wanted:
        return 0
    if symbol.startswith(wanted):
        return 1
    if name.startswith(wanted):
        return 2
    return 3 if wanted in symbol or wanted in name else None


def _provider_out(listing: ProviderListing) -> ProviderOut:
    info, able = listing
    return ProviderOut(
        id=info.id,
        name=info.name,
        available=able is not None,
        timeframes=[tf.value for tf in Timeframe if able is not None and able.can_serve(tf)],
        native_timeframes=[tf.value for tf in Timeframe if able is not None and tf in able.timeframes],
        live=able.live if able else None,
        bars_per_call=able.bars_per_call if able else None,
        needs_credentials=info.needs_credentials,
        simulated=True if able is not None and able.simulated else UNSET,
    )


def _symbol_out(info: Symbol) -> SymbolOut:
    return SymbolOut(info.symbol, info.name, info.type, info.active, info.calendar, info.listed_ms)
