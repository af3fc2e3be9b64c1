"""How the open providers are doing."""

from collections.abc import Iterator
from typing import NamedTuple

from services.market_service import MarketService


class ProviderUse(NamedTuple):
    """An open provider: calls made, seconds it asked to be left alone, and its last failure to list symbols."""

    market: str
    provider: str
    calls: int
    paused_s: float
    failure: str | None


def open_providers(markets: MarketService) -> Iterator[ProviderUse]:
    """Every open provider. Reads what is there; opens nothing."""
    for one in markets.open_providers():
        failure = one.failure.detail if one.failure is not None else None
        yield ProviderUse(one.market, one.provider, one.feed.calls, one.feed.budget.paused_s, failure)
