"""What is known of CCXT's exchanges before any of them is imported, and how each of them pages.

Importing an exchange takes time and memory, so names are read from CCXT's source instead.
"""

import ast
import re
from collections.abc import Mapping
from enum import Enum
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from domain.timeframe import DAY_MS, Timeframe
from plugins.base import PluginError, PluginFeatureNotSupportedError

DEFAULT_EXCHANGES = (
    "binance",
    "bybit",
    "coinbase",
    "coinbaseexchange",
    "kraken",
    "okx",
    "bitstamp",
    "kucoin",
    "gate",
    "bitfinex",
)


class Reach(Enum):
    """What an answer holds when it is asked for bars from an instant on."""

    #: The first bars at or after the instant, however far away they are: an empty answer means that none follow.
    SINCE = "since"
    #: The bars of a stretch of so many buckets from the instant on.
    WINDOW = "window"
    #: The newest bars, whatever the instant.
    NEWEST = "newest"


class VenueRules(NamedTuple):
    """How an exchange answers for bars.

    Attributes:
        cap: most bars in one answer.
        reach: which bars an answer holds.
        history_bars: only so many newest bars of a timeframe can be had.
        until: the end of the stretch must be told, since it does not follow from start and limit.
        weeks: weekly bars start on Monday, as far as is known for sure.
        shifted: timeframes whose buckets are not aligned to UTC.
    """

    cap: int
    reach: Reach = Reach.WINDOW
    history_bars: int | None = None
    until: bool = False
    weeks: bool = False
    shifted: tuple[Timeframe, ...] = ()


#: An exchange that nothing is known of is asked for a page that most give, and believed in nothing but what it shows.
_UNKNOWN = VenueRules(500)
#: From CCXT 4.5.90: `features` and `fetch_ohlcv` of each exchange; Gate's limit from an error text quoted there.
_RULES: Mapping[str, VenueRules] = {
    "binance": VenueRules(1000, Reach.SINCE, weeks=True),
    "binanceus": VenueRules(1000, Reach.SINCE, weeks=True),
    "binanceusdm": VenueRules(1000, Reach.SINCE, weeks=True),
    "bitfinex": VenueRules(10_000, Reach.SINCE),
    "bitstamp": VenueRules(1000),
    "bybit": VenueRules(1000, until=True),
    "coinbase": VenueRules(300),
    "coinbaseexchange": VenueRules(300),
    "gate": VenueRules(1000, history_bars=10_000),
    # Its days begin at 16:00 UTC.
    "htx": VenueRules(1000, shifted=(Timeframe.D1,)),
    "huobi": VenueRules(1000, shifted=(Timeframe.D1,)),
    "kraken": VenueRules(720, Reach.NEWEST, history_bars=720),
    "kucoin": VenueRules(1500),
    "okx": VenueRules(300),
}


def rules_of(exchange_id: str) -> VenueRules:
    """How the exchange answers for bars."""
    return _RULES.get(exchange_id, _UNKNOWN)


def usable_timeframes(offered: Mapping[str, object], rules: VenueRules) -> tuple[Timeframe, ...]:
    """Those of the exchange's timeframes whose buckets are Candlery's.

    Nothing above a day is taken on trust: exchanges begin their weeks and three-day bars on different days, and they
    can be folded from days.
    """
    return tuple(timeframe for timeframe in Timeframe if timeframe.value in offered and _is_aligned(timeframe, rules))


def _is_aligned(timeframe: Timeframe, rules: VenueRules) -> bool:
    if timeframe is Timeframe.W1:
        return rules.weeks
    return timeframe.nominal_ms <= DAY_MS and timeframe not in rules.shifted


@cache
def exchange_ids() -> frozenset[str]:
    """The ids in `ccxt.exchanges`, without importing CCXT.

    Raises:
        PluginError: CCXT is not installed, or not as source.
    """
    for node in ast.parse((_ccxt_folder() / "__init__.py").read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["exchanges"]:
            return frozenset(ast.literal_eval(node.value))
    raise PluginError("The installed CCXT does not say which exchanges it has.")


def check_exchange(exchange_id: str) -> str:
    """The id itself.

    Raises:
        PluginFeatureNotSupportedError: CCXT has no such exchange.
    """
    if exchange_id not in exchange_ids():
        raise PluginFeatureNotSupportedError(f"CCXT has no exchange {exchange_id!r}; its ids are in ccxt.exchanges")
    return exchange_id


@cache
def display_name(exchange_id: str) -> str:
    """What the exchange calls itself; its id where that cannot be found."""
    with (_ccxt_folder() / "async_support" / f"{check_exchange(exchange_id)}.py").open(encoding="utf-8") as source:
        for line in source:
            if found := re.match(r" {12}'name': '([^']+)'", line):
                return found[1]
    return exchange_id


def _ccxt_folder() -> Path:
    spec = find_spec("ccxt")
    if spec is None or spec.origin is None:
        raise PluginError("CCXT is not installed.")
    return Path(spec.origin).parent
