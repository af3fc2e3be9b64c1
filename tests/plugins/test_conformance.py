"""What every MarketPlugin promises, asked of each of ours against a venue of our own.

A new plugin joins by adding a case. The numbers are those of docs/plugins.md.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from itertools import count, pairwise

import pytest

from domain.bar import Bar, fault_of, fold
from domain.clock import SystemClock
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from plugins.alpaca import AlpacaPlugin
from plugins.base import (
    Credentials,
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
from plugins.crypto import CryptoPlugin
from plugins.demo import DemoPlugin
from tests.loopback import alpaca
from tests.loopback import faults as exchange_faults
from tests.loopback.alpaca import AlpacaLoopback
from tests.loopback.alpaca_stream import AlpacaStreamLoopback
from tests.loopback.binance import BinanceLoopback

#: Monday, 2024-01-08, 15:00 UTC.
START_MS = 1_704_726_000_000
DAY = START_MS - 15 * HOUR_MS
BOGUS = "NO/SUCH"
KEY, SECRET = alpaca.KEY, alpaca.SECRET


@dataclass
class Case:
    """A plugin and its venue.

    Attributes:
        market: one that it serves.
        symbol: one with trades in the minutes from START_MS on, and with some minutes without.
        calls: how many calls the venue has got; None: there is no venue.
        fail: makes the venue fail the next call for bars in a way of its choice, by number; None: it cannot fail.
        fail_listing: likewise for the next call for symbols.
        failures: how many ways there are.
        hang: makes the venue hang at the next call for bars.
        stir: makes the venue's stream speak about the symbol's minutes, for as long as it is entered; None: there is
            no stream.
    """

    plugin: type[MarketPlugin]
    config: PluginConfig
    market: str
    symbol: str
    calls: Callable[[], int] | None = None
    fail: Callable[[int], None] | None = None
    fail_listing: Callable[[int], None] | None = None
    failures: int = 0
    hang: Callable[[], None] | None = None
    stir: Callable[[], AbstractAsyncContextManager[None]] | None = None

    def make(self) -> MarketPlugin:
        return self.plugin(self.config)


def minutes(count: int) -> list[Bar]:
    """Every seventh minute is silent."""
    return [
        Bar(START_MS + n * MINUTE_MS, 10 + n % 5, 16 + n % 3, 9 - n % 2, 11 + n % 4, 1 + n % 9)
        for n in range(count)
        if n % 7 != 3
    ]


@asynccontextmanager
async def demo() -> AsyncIterator[Case]:
    # Five minutes pass for each time that its stream looks at the clock.
    began_ms, ticks = SystemClock().now_ms(), count()
    options = {"now_ms": lambda: began_ms + next(ticks) * 5 * MINUTE_MS, "tick_s": 0.01}
    config = PluginConfig(provider="sim", credentials=Credentials(KEY, SECRET), options=options)
    yield Case(DemoPlugin, config, "demo", "EMBER/USD", stir=nullcontext)


def alpaca_case(market: str, symbol: str) -> Callable[[], AbstractAsyncContextManager[Case]]:
    @asynccontextmanager
    async def case() -> AsyncIterator[Case]:
        daily = [Bar(DAY + n * DAY_MS, 10, 20, 5, 11, 1000) for n in range(4)]
        async with (
            AlpacaLoopback(
                stocks={symbol: minutes(300)}, crypto={symbol: minutes(300)}, daily={symbol: daily}
            ) as venue,
            AlpacaStreamLoopback(symbols={symbol}) as stream,
        ):
            venue.page_rows = 50
            faults = [
                alpaca.says(401, {"message": "unauthorized"}),
                alpaca.says(403, "<html>"),
                alpaca.says(418, b"\xff"),
                alpaca.says(429, "slow down", headers={"Retry-After": "soon"}),
                alpaca.says(500),
                alpaca.says(200, "<html>"),
                alpaca.says(200, b'{"bars": {"'),
                alpaca.says(200, {"bars": [1]}),
                alpaca.says(200, "[[[["),
                alpaca.drops_within_the_body,
            ]
            config = PluginConfig(
                provider="alpaca",
                credentials=Credentials(KEY, SECRET),
                options={**venue.options, **stream.options, "market": market},
            )
            yield Case(
                AlpacaPlugin,
                config,
                market,
                symbol,
                calls=lambda: len(venue.calls),
                fail=lambda n: venue.faults.append(faults[n]),
                fail_listing=lambda n: venue.faults.append(faults[n]),
                failures=len(faults),
                hang=lambda: venue.faults.append(alpaca.hangs),
                stir=lambda: stream.chatting(symbol, minutes(600)),
            )

    return case


@asynccontextmanager
async def binance() -> AsyncIterator[Case]:
    async with BinanceLoopback({"BTCUSDT": minutes(300)}) as venue:
        options = venue.ccxt_options
        # With credentials CCXT asks for what pairs can be lent as well.
        assert isinstance(options["options"], dict)
        options["options"]["fetchMargins"] = False
        config = PluginConfig(provider="binance", credentials=Credentials(KEY, SECRET), options=options, timeout_s=5)
        yield Case(
            CryptoPlugin,
            config,
            "crypto",
            "BTC/USDT",
            calls=lambda: len(venue.calls),
            fail=lambda n: venue.faults.next(exchange_faults.LOUD[n]),
            fail_listing=lambda n: venue.listing_faults.next(exchange_faults.LOUD[n]),
            failures=len(exchange_faults.LOUD),
            hang=lambda: venue.faults.next(exchange_faults.HANG),
            stir=lambda: venue.stream.chatting("BTCUSDT", minutes(600)),
        )


CASES: Mapping[str, Callable[[], AbstractAsyncContextManager[Case]]] = {
    "demo": demo,
    "alpaca stocks": alpaca_case("stocks", "SPY"),
    "alpaca crypto": alpaca_case("crypto", "BTC/USD"),
    "crypto binance": binance,
}


@pytest.fixture(params=CASES)
async def case(request: pytest.FixtureRequest) -> AsyncIterator[Case]:
    async with CASES[request.param]() as made:
        yield made


@pytest.fixture
async def plugin(case: Case) -> AsyncIterator[MarketPlugin]:
    made = case.make()
    await made.open()
    yield made
    await made.close()


def some_buckets(timeframe: Timeframe, count: int) -> TimeRange:
    start_ms = timeframe.floor(START_MS)
    end_ms = max(timeframe.back(start_ms, -3), timeframe.floor(START_MS + 300 * DAY_MS))
    return TimeRange(start_ms, min(timeframe.back(start_ms, -count), end_ms))


async def all_pages(plugin: MarketPlugin, symbol: str, timeframe: Timeframe, wanted: TimeRange) -> list[Page]:
    pages, start_ms = [], wanted.start_ms
    while start_ms < wanted.end_ms:
        pages.append(await plugin.fetch_page(symbol, timeframe, TimeRange(start_ms, wanted.end_ms)))
        span = pages[-1].covered.span
        assert span is not None, "a healthy venue's page accounts for something"
        assert span.end_ms > start_ms
        start_ms = span.end_ms
    return pages


async def all_bars(plugin: MarketPlugin, symbol: str, timeframe: Timeframe, wanted: TimeRange) -> list[Bar]:
    pages = await all_pages(plugin, symbol, timeframe, wanted)
    covered = RangeSet(pair for page in pages for pair in page.covered)
    assert covered == RangeSet((wanted,))
    return [bar for page in pages for bar in page.bars]


# 1 to 4: who it is


def test_1_it_has_a_key_and_markets(case: Case):
    assert case.plugin.get_plugin_key().isidentifier()
    markets = case.plugin.get_supported_markets()
    assert case.market in markets
    assert len(set(markets)) == len(markets)


def test_2_it_lists_its_providers_before_any_instance_exists(case: Case):
    infos = case.plugin.list_configurable_providers({})
    assert all(isinstance(info, ProviderInfo) and info.name for info in infos)
    assert case.config.provider in {info.id for info in infos}
    assert len({info.id for info in infos}) == len(infos)


async def test_3_its_capabilities_make_sense_and_stay(plugin: MarketPlugin):
    able = plugin.capabilities
    assert able == plugin.capabilities
    assert Timeframe.M1 in able.timeframes
    assert all(able.can_serve(timeframe) for timeframe in Timeframe)
    assert len(set(able.timeframes)) == len(able.timeframes)
    assert able.live in {"stream", "poll"}
    assert min(able.bars_per_call, able.calls_per_second) > 0
    assert able.settle_ms >= 0


def test_4_it_knows_the_calendar_of_a_market_without_asking(case: Case):
    calendar = case.plugin.default_calendar(case.market)
    assert calendar is None or calendar.isupper()
    assert case.calls is None or case.calls() == 0


# 5 to 9: its life


def test_5_making_an_instance_asks_nothing_and_needs_no_loop(case: Case):
    made = case.make()
    assert made.config is case.config
    assert case.calls is None or case.calls() == 0


async def test_6_closing_twice_or_unopened_is_no_fault(case: Case):
    made = case.make()
    await made.close()
    await made.open()
    await made.close()
    await made.close()


async def test_7_after_closing_it_raises_plugin_errors_at_most(case: Case):
    made = case.make()
    await made.open()
    await made.close()
    await plugin_errors_at_most(made.fetch_symbols())
    await plugin_errors_at_most(made.fetch_page(case.symbol, Timeframe.M1, some_buckets(Timeframe.M1, 5)))


async def plugin_errors_at_most(asking: Awaitable[object]) -> PluginError | None:
    try:
        await asking
    except PluginError as exc:
        return exc
    return None


async def test_8_it_shows_no_secret(case: Case, plugin: MarketPlugin):
    shown = f"{plugin!r} {plugin} {plugin.config!r} {plugin.config.credentials}"
    assert SECRET not in shown
    assert KEY not in shown


async def test_9_a_cancelled_call_ends_and_harms_no_later_one(case: Case, plugin: MarketPlugin):
    wanted = some_buckets(Timeframe.M1, 30)
    await plugin.fetch_page(case.symbol, Timeframe.M1, wanted)
    before = case.calls() if case.calls is not None else 0
    if case.hang is not None:
        case.hang()
    task = asyncio.create_task(plugin.fetch_page(case.symbol, Timeframe.M1, wanted))
    async with asyncio.timeout(5):
        while case.calls is not None and case.calls() == before:  # noqa: ASYNC110 - any venue can count
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (await plugin.fetch_page(case.symbol, Timeframe.M1, wanted)).bars


# 10 and 11: its symbols


async def test_10_it_lists_symbols_by_name(case: Case, plugin: MarketPlugin):
    symbols = await plugin.fetch_symbols()
    assert case.symbol in symbols
    assert all(isinstance(info, SymbolInfo) and name == info.symbol for name, info in symbols.items())
    assert BOGUS not in symbols


async def test_11_a_symbol_that_it_does_not_list_has_no_bars(plugin: MarketPlugin):
    try:
        page = await plugin.fetch_page(BOGUS, Timeframe.M1, some_buckets(Timeframe.M1, 30))
    except SymbolNotFoundPluginError:
        return
    assert list(page.bars) == []


# 12 to 18: its pages


async def native_pages(case: Case, plugin: MarketPlugin) -> list[tuple[Timeframe, TimeRange, Page]]:
    out = []
    for timeframe in plugin.capabilities.timeframes:
        wanted = some_buckets(timeframe, 120 if timeframe is Timeframe.M1 else 3)
        out += [(timeframe, wanted, page) for page in await all_pages(plugin, case.symbol, timeframe, wanted)]
    return out


async def test_12_bars_are_valid_and_ascending(case: Case, plugin: MarketPlugin):
    for timeframe, _, page in await native_pages(case, plugin):
        assert [fault for bar in page.bars if (fault := fault_of(bar, timeframe))] == []
        assert all(left.ts < right.ts for left, right in pairwise(page.bars))
        assert len(page.bars) <= plugin.capabilities.bars_per_call


async def test_13_bars_lie_in_what_was_asked_and_in_what_is_accounted_for(case: Case, plugin: MarketPlugin):
    for timeframe, wanted, page in await native_pages(case, plugin):
        assert RangeSet((wanted,)).covers(page.covered)
        assert page.covered.whole_buckets(timeframe) == page.covered
        assert all(any(part.contains(bar.ts) for part in page.covered) for bar in page.bars)


async def test_14_paging_on_reaches_the_end_of_the_range(case: Case, plugin: MarketPlugin):
    for timeframe in plugin.capabilities.timeframes:
        bars = await all_bars(plugin, case.symbol, timeframe, some_buckets(timeframe, 200))
        assert bars
        assert all(left.ts < right.ts for left, right in pairwise(bars))


async def test_15_the_same_range_gives_the_same_bars_whole_or_in_parts(case: Case, plugin: MarketPlugin):
    whole = await all_bars(plugin, case.symbol, Timeframe.M1, some_buckets(Timeframe.M1, 100))
    assert await all_bars(plugin, case.symbol, Timeframe.M1, some_buckets(Timeframe.M1, 100)) == whole
    parts: list[Bar] = []
    for n in range(0, 100, 9):
        part = TimeRange(START_MS + n * MINUTE_MS, START_MS + min(n + 9, 100) * MINUTE_MS)
        parts += await all_bars(plugin, case.symbol, Timeframe.M1, part)
    assert parts == whole


async def test_16_a_minute_without_a_trade_has_no_bar(case: Case, plugin: MarketPlugin):
    bars = await all_bars(plugin, case.symbol, Timeframe.M1, some_buckets(Timeframe.M1, 120))
    assert 60 < len(bars) < 120


async def test_17_coarser_bars_below_its_bound_are_its_minutes_folded(case: Case, plugin: MarketPlugin):
    able = plugin.capabilities
    below = able.folds_below.nominal_ms if able.folds_below is not None else DAY_MS
    for timeframe in able.timeframes:
        if Timeframe.M1 is timeframe or timeframe.nominal_ms >= below:
            continue
        wanted = some_buckets(timeframe, 2)
        expected = fold(await all_bars(plugin, case.symbol, Timeframe.M1, wanted), timeframe)
        assert await all_bars(plugin, case.symbol, timeframe, wanted) == expected


async def test_18_before_everything_and_after_it_there_are_no_bars(case: Case, plugin: MarketPlugin):
    for start_ms in (0, START_MS + 20_000 * DAY_MS):
        page = await plugin.fetch_page(case.symbol, Timeframe.M1, TimeRange(start_ms, start_ms + HOUR_MS))
        assert list(page.bars) == []


async def test_19_pages_may_be_asked_for_at_once(case: Case, plugin: MarketPlugin):
    wanted = some_buckets(Timeframe.M1, 40)
    pages = await asyncio.gather(*(plugin.fetch_page(case.symbol, Timeframe.M1, wanted) for _ in range(5)))
    assert all(page.bars == pages[0].bars and page.covered == pages[0].covered for page in pages)


# 20 to 22: its faults


async def test_20_a_timeframe_that_is_not_its_own_is_refused(case: Case, plugin: MarketPlugin):
    for timeframe in set(Timeframe) - set(plugin.capabilities.timeframes):
        with pytest.raises(PluginError):
            await plugin.fetch_page(case.symbol, timeframe, some_buckets(timeframe, 2))


async def test_21_whatever_the_venue_does_is_a_plugin_error_and_passes(case: Case, plugin: MarketPlugin):
    wanted = some_buckets(Timeframe.M1, 30)
    healthy = await plugin.fetch_page(case.symbol, Timeframe.M1, wanted)
    for n in range(case.failures):
        assert case.fail is not None
        case.fail(n)
        exc = await plugin_errors_at_most(plugin.fetch_page(case.symbol, Timeframe.M1, wanted))
        assert exc is not None, f"failure {n} went unnoticed"
        assert exc.detail
        assert SECRET not in f"{exc} {exc!r} {exc.__cause__!r}"
        assert exc.retry_after_s is None or exc.retry_after_s >= 0
        again = await plugin.fetch_page(case.symbol, Timeframe.M1, wanted)
        assert (again.bars, again.covered) == (healthy.bars, healthy.covered)


async def test_22_a_list_of_symbols_that_fails_is_a_plugin_error_and_passes(case: Case):
    for n in range(case.failures):
        assert case.fail_listing is not None
        made = case.make()
        await made.open()
        case.fail_listing(n)
        assert await plugin_errors_at_most(made.fetch_symbols()) is not None, f"failure {n} went unnoticed"
        assert case.symbol in await made.fetch_symbols()
        await made.close()


async def test_23_a_venue_that_does_not_answer_is_worth_another_try(case: Case):
    if case.hang is None:
        assert case.calls is None
        return
    made = case.plugin(PluginConfig(**{**as_options(case.config), "timeout_s": 0.3}))
    await made.open()
    await made.fetch_symbols()
    case.hang()
    with pytest.raises(NetworkPluginError) as caught:
        await made.fetch_page(case.symbol, Timeframe.M1, some_buckets(Timeframe.M1, 30))
    assert caught.value.retryable
    await made.close()


def as_options(config: PluginConfig) -> dict[str, object]:
    names: Sequence[str] = config.__struct_fields__
    return {name: getattr(config, name) for name in names}


# 24 to 25: its stream


async def test_24_it_streams_minutes_where_it_says_so_and_else_says_that_it_does_not(case: Case, plugin: MarketPlugin):
    live = plugin.live_minutes(case.symbol)
    if plugin.capabilities.live != "stream":
        with pytest.raises(PluginFeatureNotSupportedError):
            await anext(live)
        return
    assert case.stir is not None, "a plugin that streams has a venue that speaks"
    async with case.stir():
        for _ in range(3):
            told = await asyncio.wait_for(anext(live), 10)
            assert told.symbol == case.symbol
            assert told.bars
            assert all(fault_of(bar, Timeframe.M1) is None for bar in told.bars)
            assert all(before.ts < bar.ts for before, bar in pairwise(told.bars))
            assert told.closed in {True, False, None}
        await live.aclose()


async def test_25_no_stream_of_a_symbol_that_it_does_not_list(plugin: MarketPlugin):
    assert await plugin_errors_at_most(asyncio.wait_for(anext(plugin.live_minutes(BOGUS)), 10)) is not None
