"""The real CCXT client against loopback exchanges that fail in every way: nothing false gets in, nothing is lost."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest

from domain.bar import Bar, fold, within
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import HOUR_MS, MINUTE_MS, Timeframe
from plugins.base import (
    AuthenticationPluginError,
    NetworkPluginError,
    Page,
    PluginConfig,
    PluginError,
    RateLimitPluginError,
    SymbolNotFoundPluginError,
)
from plugins.crypto import CryptoPlugin
from tests.loopback import faults
from tests.loopback.binance import BinanceLoopback
from tests.loopback.coinbase import CoinbaseLoopback
from tests.loopback.exchange import LoopbackExchange
from tests.loopback.faults import Fault
from tests.loopback.kraken import KrakenLoopback
from tests.loopback.market import random_minutes
from tests.loopback.reader import collect
from tests.support.clock import ManualClock
from tests.support.market import START_MS

#: Fewer than Kraken's 720, more than two of Coinbase's pages.
COUNT = 660
END_MS = START_MS + COUNT * MINUTE_MS
WHOLE = TimeRange(START_MS, END_MS)
M1 = Timeframe.M1


@dataclass
class Venue:
    exchange: LoopbackExchange
    plugin: CryptoPlugin
    symbol: str
    bars: list[Bar]

    async def page(self, wanted: TimeRange = WHOLE, timeframe: Timeframe = M1) -> Page:
        return await self.plugin.fetch_page(self.symbol, timeframe, wanted)

    def is_true(self, bars: Sequence[Bar], covered: RangeSet) -> bool:
        """Whether the bars are exactly those that the market has where the answer says that it knows."""
        return within(bars, covered) == within(self.bars, covered)


def loopback(name: str, bars: Sequence[Bar], clock: ManualClock) -> tuple[LoopbackExchange, str]:
    if name == "binance":
        return BinanceLoopback({"BTCUSDT": bars}, clock=clock), "BTC/USDT"
    if name == "coinbase":
        return CoinbaseLoopback({"BTC-USD": bars}, clock=clock), "BTC/USD"
    return KrakenLoopback({"BTCUSD": bars}, clock=clock), "BTC/USD"


@pytest.fixture(params=["binance", "coinbase", "kraken"])
async def venue(request: pytest.FixtureRequest) -> AsyncIterator[Venue]:
    bars = random_minutes(7, START_MS, COUNT, 0.05)
    exchange, symbol = loopback(request.param, bars, ManualClock(END_MS + HOUR_MS))
    async with exchange:
        options = {**exchange.ccxt_options, "timeout": 2_000}
        plugin = CryptoPlugin(PluginConfig(provider=exchange.provider, options=options))
        await plugin.open()
        await plugin.fetch_symbols()
        yield Venue(exchange, plugin, symbol, bars)
        await plugin.close()


async def test_a_healthy_market_is_read_whole(venue: Venue):
    found = await collect(venue.plugin, venue.symbol, M1, WHOLE)
    assert found.bars == venue.bars
    assert found.covered == RangeSet((WHOLE,))
    assert not found.errors
    assert not found.rejected


async def test_coarser_bars_are_the_exchanges_own(venue: Venue):
    wanted = TimeRange(START_MS, START_MS + 10 * HOUR_MS)
    found = await collect(venue.plugin, venue.symbol, Timeframe.H1, wanted)
    assert found.bars == within(fold(venue.bars, Timeframe.H1), [wanted])
    assert found.covered == RangeSet((wanted,))


@pytest.mark.parametrize("fault", faults.LOUD, ids=lambda fault: fault.name)
async def test_an_answer_that_is_none_is_an_error_worth_another_try(venue: Venue, fault: Fault):
    venue.exchange.faults.next(fault)
    with pytest.raises(PluginError) as caught:
        await venue.page()
    assert caught.value.retryable
    assert type(caught.value) in {NetworkPluginError, RateLimitPluginError}
    assert venue.exchange.faults.met == [fault.name]
    assert (await collect(venue.plugin, venue.symbol, M1, WHOLE)).bars == venue.bars


@pytest.mark.parametrize("fault", [*faults.QUIET, faults.ALL_NULL], ids=lambda fault: fault.name)
async def test_a_faulty_page_gives_only_what_is_true(venue: Venue, fault: Fault):
    venue.exchange.faults.next(fault)
    try:
        page = await venue.page()
    except NetworkPluginError:
        assert fault is faults.ALL_NULL
    else:
        assert venue.is_true(page.bars, page.covered)
        assert all(bar in venue.bars for bar in page.bars)
        harmless = {faults.OUT_OF_ORDER, faults.DOUBLED, faults.SHORT}
        assert bool(page.rejected) == (fault not in harmless)
    found = await collect(venue.plugin, venue.symbol, M1, WHOLE)
    assert found.bars == venue.bars


@pytest.mark.parametrize("fault", faults.QUIET, ids=lambda fault: fault.name)
async def test_a_fault_that_stays_never_lets_anything_false_through(venue: Venue, fault: Fault):
    venue.exchange.faults.randomly([fault], probability=1, seed=1)
    found = await collect(venue.plugin, venue.symbol, M1, WHOLE, max_calls=12)
    assert venue.is_true(found.bars, found.covered)


@pytest.mark.parametrize("seed", range(3))
async def test_no_bar_is_lost_among_random_faults(venue: Venue, seed: int):
    venue.exchange.faults.randomly([*faults.LOUD, *faults.QUIET], probability=0.4, seed=seed)
    found = await collect(venue.plugin, venue.symbol, M1, WHOLE, max_calls=400)
    assert found.bars == venue.bars
    assert found.covered == RangeSet((WHOLE,))


async def test_a_call_that_hangs_ends_with_the_time_out(venue: Venue):
    venue.plugin._exchange.timeout = 100
    venue.exchange.faults.next(faults.HANG)
    with pytest.raises(NetworkPluginError):
        await venue.page()
    assert (await venue.page()).bars


async def test_an_exchange_that_is_gone_is_a_network_error(venue: Venue):
    await venue.exchange.stop()
    with pytest.raises(NetworkPluginError):
        await venue.page()


async def test_an_empty_page_means_that_nothing_is_there_as_far_as_it_was_asked(venue: Venue):
    venue.exchange.faults.next(faults.EMPTY)
    page = await venue.page()
    assert not page.bars
    span = page.covered.span
    assert span is not None
    assert span.start_ms == START_MS
    assert span.end_ms - START_MS == (300 if venue.exchange.provider == "coinbaseexchange" else COUNT) * MINUTE_MS


async def test_an_empty_page_is_refused_where_later_bars_were_seen(venue: Venue):
    if venue.exchange.provider == "coinbaseexchange":
        # Its answers are about a stretch of time alone, in which there may be nothing.
        page = await venue.page(TimeRange(END_MS, END_MS + MINUTE_MS))
        assert page == Page((), RangeSet.of(END_MS, END_MS + MINUTE_MS), (), page.venue_ms)
        return
    await venue.page(TimeRange(START_MS + 600 * MINUTE_MS, END_MS))
    venue.exchange.faults.next(faults.EMPTY)
    with pytest.raises(NetworkPluginError, match="later ones"):
        await venue.page()


async def test_after_the_last_bar_nothing_is_there(venue: Venue):
    wanted = TimeRange(END_MS, END_MS + 30 * MINUTE_MS)
    found = await collect(venue.plugin, venue.symbol, M1, wanted)
    assert not found.bars
    assert found.covered == RangeSet((wanted,))


async def test_a_wide_hole_is_known_to_be_one(venue: Venue):
    hole = TimeRange(START_MS + 100 * MINUTE_MS, START_MS + 500 * MINUTE_MS)
    left = [bar for bar in venue.bars if not hole.contains(bar.ts)]
    venue.exchange.set_bars(next(iter(venue.exchange.listed)), left)
    found = await collect(venue.plugin, venue.symbol, M1, WHOLE)
    assert found.bars == left
    assert found.covered == RangeSet((WHOLE,))


async def test_late_bars_come_when_they_are_asked_for_again(venue: Venue):
    id_ = next(iter(venue.exchange.listed))
    late_ms = START_MS + 640 * MINUTE_MS
    venue.exchange.hold_back(id_, late_ms)
    before = await collect(venue.plugin, venue.symbol, M1, WHOLE)
    assert before.bars == [bar for bar in venue.bars if bar.ts < late_ms]
    venue.exchange.release(id_)
    assert (await collect(venue.plugin, venue.symbol, M1, WHOLE)).bars == venue.bars


async def test_the_present_minute_is_in_the_page_as_it_stands(venue: Venue):
    forming = venue.bars[-1]
    venue.exchange.clock = ManualClock(forming.ts + 20_000)
    page = await venue.page(TimeRange(forming.ts - 30 * MINUTE_MS, forming.ts + MINUTE_MS))
    assert page.bars[-1].ts == forming.ts
    assert page.bars[-1] != forming
    assert page.venue_ms == forming.ts + 20_000
    assert list(page.bars[:-1]) == within(venue.bars, [TimeRange(forming.ts - 30 * MINUTE_MS, forming.ts)])


@pytest.mark.parametrize(
    "fault", [faults.too_many(retry_after="7"), faults.banned(retry_after="7")], ids=["429", "418"]
)
async def test_the_wait_that_was_asked_for_is_passed_on(venue: Venue, fault: Fault):
    venue.exchange.faults.next(fault)
    with pytest.raises(RateLimitPluginError) as caught:
        await venue.page()
    assert caught.value.retry_after_s == 7
    assert caught.value.__cause__ is not None


async def test_the_wait_may_be_given_as_a_date(venue: Venue):
    venue.exchange.faults.next(faults.too_many_until(venue.exchange.clock.now_ms(), seconds=90))
    with pytest.raises(RateLimitPluginError) as caught:
        await venue.page()
    assert caught.value.retry_after_s == 90


async def test_without_a_word_on_the_wait_none_is_made_up(venue: Venue):
    venue.exchange.faults.next(faults.too_many(retry_after=None))
    with pytest.raises(RateLimitPluginError) as caught:
        await venue.page()
    assert caught.value.retry_after_s is None


async def test_a_geographical_block_is_a_network_error(venue: Venue):
    venue.exchange.faults.next(faults.GEO_BLOCK)
    with pytest.raises(NetworkPluginError):
        await venue.page()


async def test_refused_credentials_are_named_as_such(venue: Venue):
    venue.exchange.faults.next(faults.UNAUTHORISED)
    with pytest.raises(AuthenticationPluginError):
        await venue.page()


async def test_a_symbol_that_was_taken_off_the_list_is_not_found(venue: Venue):
    venue.exchange.listed.pop(next(iter(venue.exchange.listed)))
    with pytest.raises(SymbolNotFoundPluginError):
        await venue.page()
