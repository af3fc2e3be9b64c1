"""A simulated market: every bar is a pure function of (seed, symbol, minute). Needs no network, no keys and no store.

Prices follow Levy's construction of Brownian motion: the logarithm of the price is hashed at coarse instants, and each
finer instant lies half-way between its neighbours, moved by a hashed amount. So any range costs as much as the bars
asked for, a bar's close is the next one's open, and years look like years.
"""

import asyncio
import hashlib
import math
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from typing import NamedTuple
from zoneinfo import ZoneInfo

from domain.bar import Bar, within
from domain.clock import SystemClock
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, MINUTE_MS, Timeframe
from plugins.base import (
    Capabilities,
    LiveBars,
    MarketPlugin,
    NetworkPluginError,
    Page,
    PluginConfig,
    PluginError,
    PluginFeatureNotSupportedError,
    ProviderInfo,
    SymbolInfo,
    SymbolNotFoundPluginError,
)

#: Weekdays from 09:30 to 16:00 in New York, holidays included: a calendar that the services have built in.
NY_WEEKDAYS = "NY_WEEKDAYS"
#: The simulated market opened on 2015-01-01.
BEGAN_MS = 1_420_070_400_000

_NEW_YORK = ZoneInfo("America/New_York")
_OPENS, _CLOSES = time(9, 30), time(16)
_SATURDAY, _SUNDAY = 5, 6
_BARS_PER_CALL = 10_000
#: Minutes made at a stretch, so that nobody waits for more than a few milliseconds.
_CHUNK = 1_000
#: The coarsest instants lie 2**21 minutes apart, four years.
_TOP_LEVEL = 21
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


class _Spec(NamedTuple):
    """One simulated symbol.

    Attributes:
        price: around which it moves over the years.
        decimals: of its prices.
        sigma: standard deviation of the logarithm of the price over a minute.
        silent: share of the minutes without a trade.
        volume: of a usual minute.
        calendar: None: around the clock.
        listed: the date of its first minute.
        vouched: whether the simulator vouches for its silent minutes; if not, they are provisional at first.
        down_on: a weekday (0 is Monday, in UTC) on which its feed never answers.
        mute: minutes of each hour in which its stream tells nothing.
    """

    symbol: str
    name: str
    price: float
    decimals: int
    sigma: float
    silent: float
    volume: float
    calendar: str | None = None
    listed: str = "2015-01-01"
    vouched: bool = True
    down_on: int | None = None
    mute: range = range(0)

    @property
    def listed_ms(self) -> int:
        """The instant of its first minute."""
        return int(datetime.fromisoformat(self.listed).replace(tzinfo=UTC).timestamp()) * 1000

    @property
    def lot_decimals(self) -> int:
        """Decimals of its volumes: whole lots of what trades in thousands."""
        return max(0, 4 - int(math.log10(self.volume)))

    def info(self) -> SymbolInfo:
        """As it is listed."""
        kind = "spot" if self.calendar is None else "stock"
        name = f"{self.name} (simulated)"
        return SymbolInfo(self.symbol, name, kind, calendar=self.calendar, listed_ms=self.listed_ms)


_SYMBOLS = {
    spec.symbol: spec
    for spec in (
        _Spec("DEMO/USD", "Demo, every minute", 20_000, 2, 0.0006, 0.0, 12),
        _Spec("AMBER/USD", "Amber", 1_500, 2, 0.0007, 0.05, 90),
        _Spec("BASALT/USD", "Basalt", 140, 3, 0.0009, 0.10, 800),
        _Spec("CEDAR/USD", "Cedar", 32, 4, 0.0008, 0.15, 2_400),
        _Spec("DRIFT/USD", "Drift", 8.5, 4, 0.0009, 0.20, 7_000),
        _Spec("EMBER/USD", "Ember", 2.2, 5, 0.0010, 0.30, 20_000),
        _Spec("FJORD/USD", "Fjord, stream mute at times", 0.75, 6, 0.0009, 0.40, 60_000, mute=range(20, 30)),
        _Spec("GARNET/USD", "Garnet", 410, 2, 0.0008, 0.50, 45),
        _Spec("HEATH/USD", "Heath, feed down on Sundays", 60, 3, 0.0008, 0.60, 300, down_on=_SUNDAY),
        _Spec("IRIS/USD", "Iris", 5.1, 4, 0.0010, 0.70, 1_500),
        _Spec("JUNIPER/USD", "Juniper", 0.09, 7, 0.0010, 0.80, 90_000),
        _Spec("KELP/USD", "Kelp, silence not vouched for", 18, 4, 0.0008, 0.90, 200, vouched=False),
        _Spec("LICHEN/USD", "Lichen, hardly ever", 250, 2, 0.0007, 0.95, 3),
        _Spec("AMBER/DEMO", "Amber in Demo", 0.075, 7, 0.0005, 0.25, 40),
        _Spec("MARBLE/USD", "Marble, since 2018", 90, 3, 0.0009, 0.10, 500, listed="2018-06-01"),
        _Spec("NECTAR/USD", "Nectar, since 2021", 3.3, 5, 0.0010, 0.20, 9_000, listed="2021-11-10"),
        _Spec("OPAL/USD", "Opal, since 2024", 12, 4, 0.0010, 0.35, 1_200, listed="2024-03-15"),
        _Spec("HARBOR", "Harbor Works", 180, 2, 0.0005, 0.0, 9_000, NY_WEEKDAYS),
        _Spec("LANTERN", "Lantern Light", 64, 2, 0.0006, 0.0, 22_000, NY_WEEKDAYS),
        _Spec("MEADOW", "Meadow Foods", 27, 2, 0.0005, 0.05, 15_000, NY_WEEKDAYS),
        _Spec("QUARRY", "Quarry Stone, since 2019", 95, 2, 0.0007, 0.0, 6_000, NY_WEEKDAYS, "2019-09-03"),
        _Spec("TINDER", "Tinder Box, hardly traded", 11, 2, 0.0008, 0.85, 400, NY_WEEKDAYS),
    )
}


class DemoPlugin(MarketPlugin):
    """The simulated market.

    Options: `seed` (1), `now_ms`, a clock that tests may set, and `tick_s` (1), how often the stream looks at it.
    """

    def __init__(self, config: PluginConfig) -> None:
        """Store the seed, the clock and the rhythm."""
        super().__init__(config)
        self._seed = config.options.get("seed", 1)
        self._now_ms = _clock(config.options.get("now_ms"))
        self._tick_s = _rhythm(config.options.get("tick_s", 1.0))

    @classmethod
    def get_plugin_key(cls) -> str:
        """`demo`."""
        return "demo"

    @classmethod
    def get_supported_markets(cls) -> Sequence[str]:
        """`demo`."""
        return ("demo",)

    @classmethod
    def list_configurable_providers(cls, options: Mapping[str, object]) -> Sequence[ProviderInfo]:  # noqa: ARG003
        """The one simulator."""
        return (ProviderInfo("sim", "Simulated market"),)

    @property
    def capabilities(self) -> Capabilities:
        """Minutes only, final as soon as they are over."""
        return Capabilities(
            timeframes=(Timeframe.M1,),
            bars_per_call=_BARS_PER_CALL,
            settle_ms=0,
            vouches_empty=True,
            calls_per_second=1_000.0,
            live="stream",
            simulated=True,
        )

    async def fetch_symbols(self) -> Mapping[str, SymbolInfo]:
        """The simulated symbols, whatever the seed."""
        return {symbol: spec.info() for symbol, spec in _SYMBOLS.items()}

    async def fetch_page(self, symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Page:
        """Make the minutes of the range, up to `bars_per_call`; the minute of the present as far as it has come."""
        if symbol not in _SYMBOLS:
            raise SymbolNotFoundPluginError(f"the simulated market has no symbol {symbol!r}")
        if timeframe is not Timeframe.M1:
            raise PluginFeatureNotSupportedError(f"the simulated market has 1m bars only, not {timeframe.value}")
        now_ms = self._now_ms()
        start_ms = timeframe.ceil(wanted.start_ms)
        end_ms = min(wanted.end_ms, start_ms + _BARS_PER_CALL * MINUTE_MS)
        spec = _SYMBOLS[symbol]
        stream = _Stream(spec, self._seed)
        bars: list[Bar] = []
        for first, last in stream.chunks(start_ms, min(end_ms, now_ms)):
            bars += stream.bars(first, last)
            await asyncio.sleep(0)
        if bars and bars[-1].ts + MINUTE_MS > now_ms:
            bars[-1:] = stream.forming(bars[-1], now_ms)
        covered = RangeSet.of(wanted.start_ms, end_ms)
        down = _days(spec.down_on, wanted.start_ms, end_ms) & covered
        return Page(
            within(bars, covered - down),
            covered - down,
            rejected=[f"the simulated feed of {symbol} is down on this day of the week"] if down else (),
            venue_ms=now_ms,
            vouched=spec.vouched,
        )

    async def live_minutes(self, symbol: str) -> AsyncGenerator[LiveBars, None]:
        """The minute of the present about once a second as far as it has come, and each minute as soon as it is over.

        Raises:
            PluginError: the feed of the symbol is down, or there is no such symbol.
        """
        if symbol not in _SYMBOLS:
            raise SymbolNotFoundPluginError(f"the simulated market has no symbol {symbol!r}")
        spec, now_ms = _SYMBOLS[symbol], self._now_ms()
        stream, told_ms, last = _Stream(spec, self._seed), Timeframe.M1.floor(now_ms), None
        while True:
            now_ms = max(now_ms, self._now_ms())
            minute_ms = Timeframe.M1.floor(now_ms)
            is_mute = minute_ms // MINUTE_MS % 60 in spec.mute
            for bars in () if is_mute else stream.over(told_ms, minute_ms):
                yield LiveBars(symbol, tuple(bars), closed=True, venue_ms=now_ms)
                await asyncio.sleep(0)
            told_ms = minute_ms
            if _days(spec.down_on, now_ms, now_ms + 1):
                raise NetworkPluginError(f"the simulated feed of {symbol} is down on this day of the week")
            for bar in () if is_mute else stream.present(now_ms):
                if bar != last:
                    yield LiveBars(symbol, (last := bar,), closed=False, venue_ms=now_ms)
            await asyncio.sleep(max(0.01, min(self._tick_s, (minute_ms + MINUTE_MS - now_ms) / 1000)))


def _clock(option: object) -> Callable[[], int]:
    if option is None:
        return SystemClock().now_ms
    if not callable(option):
        raise PluginError(f"the option now_ms is {option!r}, not a function")
    return option


def _rhythm(option: object) -> float:
    if not isinstance(option, int | float) or not option > 0:
        raise PluginError(f"the option tick_s is {option!r}, not a number of seconds")
    return float(option)


class _Stream:
    """The minutes of one symbol under one seed. Minutes are counted from the epoch."""

    def __init__(self, spec: _Spec, seed: object) -> None:
        self._spec = spec
        digest = hashlib.blake2b(f"{seed}/{spec.symbol}".encode(), digest_size=16).digest()
        self._path_key = int.from_bytes(digest[:8], "little")
        self._bar_key = int.from_bytes(digest[8:], "little")
        self._rhythm = _RHYTHMS[spec.calendar]

    def chunks(self, start_ms: int, end_ms: int) -> Iterator[tuple[int, int]]:
        """Stretches of minutes that begin in the range while the market is open; half-open and bounded."""
        for open_ms, close_ms in self._open(max(start_ms, self._spec.listed_ms), end_ms):
            first, last = open_ms // MINUTE_MS, -(-close_ms // MINUTE_MS)
            for chunk in range(first, last, _CHUNK):
                yield chunk, min(chunk + _CHUNK, last)

    def bars(self, first: int, last: int) -> list[Bar]:
        """The final bars of `[first, last)`; a minute without a trade has none."""
        spec, key, rhythm = self._spec, self._bar_key, self._rhythm
        base, decimals, tick = spec.price, spec.decimals, 10.0**-spec.decimals
        exp = math.exp
        prices = [max(round(base * exp(x), decimals), tick) for x in self._path(first, last)]
        silent, wick, usual = int(spec.silent * 0x10000), spec.sigma / 0x1000_000, spec.volume / 0x1_0000_0000
        lots = spec.lot_decimals
        out: list[Bar] = []
        for minute in range(first, last):
            h = _hash(key, minute)
            if h & 0xFFFF < silent:
                continue
            open_, close = prices[minute - first], prices[minute - first + 1]
            top, bottom = (open_, close) if open_ > close else (close, open_)
            up, down, bustle = h >> 16 & 0xFFF, h >> 28 & 0xFFF, h >> 40 & 0xFFFF
            high = round(top * (1 + wick * up * up), decimals)
            low = max(round(bottom * (1 - wick * down * down), decimals), tick)
            volume = round(usual * rhythm[minute % 1440] * (0x2000_0000 + 2 * bustle * bustle), lots)
            out.append(Bar(minute * MINUTE_MS, open_, high, low, close, volume))
        return out

    def over(self, start_ms: int, end_ms: int) -> Iterator[list[Bar]]:
        """The final bars of the range, a stretch at a time; without the days on which the feed is down."""
        up = RangeSet.of(start_ms, end_ms) - _days(self._spec.down_on, start_ms, end_ms)
        for first, last in self.chunks(start_ms, end_ms):
            if bars := within(self.bars(first, last), up):
                yield bars

    def present(self, now_ms: int) -> list[Bar]:
        """The bar of the minute that is not over, as far as it has come."""
        final = [bar for first, last in self.chunks(now_ms, now_ms + 1) for bar in self.bars(first, last)]
        return self.forming(final[0], now_ms) if final else []

    def forming(self, final: Bar, now_ms: int) -> list[Bar]:
        """The first part of a bar whose minute is not over; nothing in its first second.

        Inside its minute the price goes from the open by way of both extremes to the close, so that what is given
        grows into the final bar.
        """
        seconds = (now_ms - final.ts) / 1000
        if seconds < 1:
            return []
        h = _hash(self._bar_key, final.ts // MINUTE_MS)
        early, late = 5 + (h >> 56 & 0xF), 30 + (h >> 60 & 0xF)
        way = (final.high, final.low) if h >> 55 & 1 else (final.low, final.high)
        steps = ((0, final.open), (early, way[0]), (late, way[1]), (60, final.close))
        decimals = self._spec.decimals
        seen = [price for at, price in steps if at <= seconds]
        (t0, p0), (t1, p1) = next(pair for pair in pairwise(steps) if seconds <= pair[1][0])
        close = round(p0 + (p1 - p0) * (seconds - t0) / (t1 - t0), decimals)
        volume = round(final.volume * seconds / 60, self._spec.lot_decimals)
        return [Bar(final.ts, final.open, max(*seen, close), min(*seen, close), close, volume)]

    def _open(self, start_ms: int, end_ms: int) -> Iterator[tuple[int, int]]:
        """Opening hours within the range."""
        if self._spec.calendar is None:
            hours: Iterator[tuple[int, int]] = iter(((start_ms, end_ms),))
        else:
            hours = _new_york_hours(start_ms, end_ms)
        for open_ms, close_ms in hours:
            if max(open_ms, start_ms) < min(close_ms, end_ms):
                yield max(open_ms, start_ms), min(close_ms, end_ms)

    def _path(self, first: int, last: int) -> list[float]:
        """Logarithms of the price, relative to the symbol's, at the starts of the minutes `first` to `last`."""
        sigma, low = self._spec.sigma, first >> _TOP_LEVEL
        key, reach = self._level(_TOP_LEVEL), sigma * 2 ** (_TOP_LEVEL / 2) / 2
        nodes = [reach * _unit(_hash(key, i)) for i in range(low, (last >> _TOP_LEVEL) + 2)]
        for level in range(_TOP_LEVEL - 1, -1, -1):
            # A uniform number in [-1, 1) has the standard deviation 1/sqrt(3); the bridge wants sigma*sqrt(width)/2.
            key, reach = self._level(level), sigma * math.sqrt(3 * 2 ** (level + 1)) / 2
            finer, index = [nodes[0]], 2 * low + 1
            for left, right in pairwise(nodes):
                finer += ((left + right) / 2 + reach * _unit(_hash(key, index)), right)
                index += 2
            skip = (first >> level) - 2 * low
            low = first >> level
            nodes = finer[skip : skip + (last >> level) - low + 2]
        return nodes[: last - first + 1]

    def _level(self, level: int) -> int:
        return _hash(self._path_key, level)


def _hash(key: int, index: int) -> int:
    """64 well-mixed bits: the number `index` of the splitmix64 sequence of `key` (Steele, Lea and Flood, 2014)."""
    x = (key + index * _GOLDEN) & _MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
    return x ^ x >> 31


def _unit(bits: int) -> float:
    """A number in [-1, 1)."""
    return bits / 0x8000_0000_0000_0000 - 1.0


def _new_york_hours(start_ms: int, end_ms: int) -> Iterator[tuple[int, int]]:
    """Opening hours of the weekdays that touch the range, as epoch milliseconds."""
    day = _date(start_ms - DAY_MS)
    while day <= _date(end_ms):
        if day.weekday() < _SATURDAY:
            yield _new_york_ms(day, _OPENS), _new_york_ms(day, _CLOSES)
        day += timedelta(days=1)


def _days(weekday: int | None, start_ms: int, end_ms: int) -> RangeSet:
    """The days of a weekday, in UTC, that touch the range."""
    if weekday is None:
        return RangeSet()
    days = Timeframe.D1.starts(Timeframe.D1.floor(start_ms), end_ms)
    return RangeSet((day, day + DAY_MS) for day in days if _date(day).weekday() == weekday)


def _date(ts_ms: int) -> date:
    return datetime.fromtimestamp(ts_ms / 1000, UTC).date()


def _new_york_ms(day: date, at: time) -> int:
    return int(datetime.combine(day, at, _NEW_YORK).timestamp()) * 1000


def _around_the_clock(minute: int) -> float:
    """Busiest at 15:00 UTC, quietest at 03:00."""
    return 1.0 + 0.6 * math.cos((minute - 900) / 1440 * 2 * math.pi)


def _in_new_york(minute: int) -> float:
    """Busy after the opening and before the close, which are between 13:30 and 21:00 UTC."""
    return 0.5 + ((minute - 1035) / 150) ** 2 if 810 <= minute < 1260 else 1.0  # noqa: PLR2004


_RHYTHMS = {
    None: [_around_the_clock(minute) for minute in range(1440)],
    NY_WEEKDAYS: [_in_new_york(minute) for minute in range(1440)],
}
