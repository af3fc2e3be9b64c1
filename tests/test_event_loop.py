"""No question holds up the event loop, however much it asks for.

As asyncio's own detection of slow callbacks does, every turn of the loop is timed; by the processor's time of its
thread, so that a machine that is busy with something else is not taken for a slow turn. Python's collections of garbage
are left out: how long they take depends on all that the tests' process holds.
"""

import asyncio
import gc
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from time import thread_time
from typing import Any

import pytest
from quart.typing import TestClientProtocol as Client

from app import create_app
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, MINUTE_MS, Timeframe
from plugins.base import Capabilities, Page
from services.bar_store import BarStore
from services.cache_manager import NoCache
from tests.fakes import FakeServices
from tests.support.clock import ManualClock
from tests.support.house import House, make_house
from tests.support.market import START_MS, random_minutes
from tests.support.scripted import ScriptedPlugin

MOST_S = 0.010
#: A turn is slow that is slow each time.
TRIES = 3
MINUTES = 36_000
OHLCV = "/api/v1/ohlcv"

DENSE, HOLED, SPARSE = "A/DENSE", "B/HOLED", "C/SPARSE"
MANY = [f"M{number}/X" for number in range(50)]


class QuickPlugin(ScriptedPlugin):
    """Finds a page without a look at all bars: what is to be timed is not the test's own provider."""

    async def fetch_page(self, symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Page:
        bars = self.market[symbol]
        first = bisect_left(bars, wanted.start_ms, key=lambda bar: bar.ts)
        end_ms = min(wanted.end_ms, wanted.start_ms + self.capabilities.bars_per_call * MINUTE_MS)
        last = bisect_left(bars, end_ms, key=lambda bar: bar.ts)
        return Page(tuple(bars[first:last]), RangeSet.of(wanted.start_ms, end_ms))


def quick_plugin(markets: dict[str, Any]) -> QuickPlugin:
    return QuickPlugin(
        markets, capabilities=Capabilities(timeframes=(Timeframe.M1,), bars_per_call=1000, calls_per_second=10_000)
    )


@pytest.fixture(scope="module")
def markets() -> dict[str, Any]:
    dense = random_minutes(1, MINUTES, holes=0)
    holed, sparse = random_minutes(2, MINUTES, holes=0.5), random_minutes(3, MINUTES, holes=0.97)
    return {DENSE: dense, HOLED: holed, SPARSE: sparse, **dict.fromkeys(MANY, dense[:2000])}


@pytest.fixture
def house(store: BarStore, clock: ManualClock, markets: dict[str, Any]) -> House:
    return make_house(store, clock, quick_plugin(markets))


@pytest.fixture
def client(house: House) -> Client:
    services: Any = FakeServices()
    services.clock, services.markets, services.ohlcv = house.clock, house.markets, house.ohlcv
    return create_app(services.config, services).test_client()


@contextmanager
def timed_turns() -> Iterator[list[tuple[float, str]]]:
    """The turns of the loop that take long: seconds of its thread, and what was run."""
    slow: list[tuple[float, str]] = []
    run = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        began = thread_time()
        run(handle)
        took = thread_time() - began
        if took >= MOST_S:
            slow.append((took, repr(handle)[:300]))

    gc.collect()
    gc.disable()
    asyncio.Handle._run = timed  # type: ignore[method-assign]
    try:
        yield slow
    finally:
        asyncio.Handle._run = run  # type: ignore[method-assign]
        gc.enable()


async def assert_no_slow_turn(question: Callable[[int], Awaitable[object]]) -> None:
    tries = []
    for number in range(TRIES):
        with timed_turns() as slow:
            await question(number)
            await asyncio.sleep(0)  # So that its last turn has an end, too.
        await asyncio.sleep(0)  # And that the next one begins afresh.
        tries.append(slow)
        if not slow:
            return
    pytest.fail(f"the event loop was held up each time: {tries}")


async def ask(client: Client, path: str = OHLCV, **query: Any) -> bytes:
    asked = {"market": "test", "provider": "scripted", "start": START_MS, **query}
    response = await client.get(path, query_string=asked)
    body: bytes = await response.get_data()
    assert response.status_code == 200, body
    return body


def part(number: int) -> dict[str, int]:
    """A third of the market."""
    third = MINUTES // TRIES
    return {"start": START_MS + number * third * MINUTE_MS, "end": START_MS + (number + 1) * third * MINUTE_MS}


async def test_a_turn_that_is_slow_is_found():
    async def spin(_: int) -> None:
        await asyncio.sleep(0)
        until = thread_time() + 2 * MOST_S
        while thread_time() < until:
            pass

    with pytest.raises(pytest.fail.Exception, match="held up"):
        await assert_no_slow_turn(spin)


@pytest.mark.parametrize("symbol", [DENSE, HOLED, SPARSE])
async def test_what_must_be_fetched_stored_and_answered(client: Client, symbol: str):
    await assert_no_slow_turn(lambda number: ask(client, symbol=symbol, limit=10_000, **part(number)))


@pytest.mark.parametrize("symbol", [DENSE, HOLED, SPARSE])
@pytest.mark.parametrize("more", [{}, {"fill": "previous"}, {"timeframe": "3m"}, {"timeframe": "1h"}])
async def test_what_is_known_from_the_store_and_from_the_cache(
    client: Client, house: House, symbol: str, more: dict[str, Any]
):
    for number in range(TRIES):
        await ask(client, symbol=symbol, limit=10_000, **part(number))
    for hours in (0, 2):  # Then it is asked again for what was empty, and that is confirmed.
        house.clock.advance(hours=hours)
        await assert_no_slow_turn(lambda _: ask(client, symbol=symbol, limit=10_000, **more))


async def test_many_symbols_at_once(client: Client):
    asked = {"symbol": MANY, "limit": 2000, "end": START_MS + 2000 * MINUTE_MS}
    await ask(client, **asked)
    await assert_no_slow_turn(lambda _: ask(client, **asked))


@pytest.mark.parametrize("timeframe", ["1m", "5m", "1h"])
async def test_coverage_in_thousands_of_pieces(client: Client, timeframe: str):
    for number in range(TRIES):
        await ask(client, symbol=HOLED, limit=10_000, **part(number))
    asked = {"symbol": HOLED, "timeframe": timeframe, "end": START_MS + 30 * DAY_MS}
    await assert_no_slow_turn(lambda _: ask(client, "/api/v1/coverage", **asked))


@pytest.mark.parametrize("symbol", [DENSE, HOLED])
async def test_what_comes_straight_from_the_database(
    store: BarStore, clock: ManualClock, markets: dict[str, Any], symbol: str
):
    house = make_house(store, clock, quick_plugin(markets), cache=NoCache())
    services: Any = FakeServices(cache_bytes=0)
    services.clock, services.markets, services.ohlcv = house.clock, house.markets, house.ohlcv
    client = create_app(services.config, services).test_client()
    for number in range(TRIES):
        await ask(client, symbol=symbol, limit=10_000, **part(number))
    await assert_no_slow_turn(lambda number: ask(client, symbol=symbol, limit=10_000, **part(number)))
