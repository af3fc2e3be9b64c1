"""Live bars of the whole product, from the real CCXT Pro client on a loopback Binance to clients' sockets."""

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from domain.bar import Bar, fold
from domain.series import Series, Verdict
from domain.time_range import TimeRange
from domain.timeframe import MINUTE_MS, Timeframe
from tests.loopback.binance import BinanceLoopback
from tests.loopback.binance_script import BinanceScript
from tests.loopback.binance_stream import read_frames
from tests.loopback.exchange import listed
from tests.support.clock import ManualClock
from tests.support.live_product import LiveProduct, Watcher, be_hasty, live_product, until, watching
from tests.support.market import START_MS, random_minutes
from tests.support.servers import each_server  # noqa: F401

pytestmark = pytest.mark.usefixtures("each_server")

RECORDINGS = Path(os.environ.get("CANDLERY_RECORDINGS") or Path(__file__).resolve().parents[2] / "shared")
BTC = Series("crypto", "binance", "BTC/USDT")
#: So many minutes before the first live one; the last live one ends a third hour.
HISTORY, COUNT = 50, 130


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    be_hasty(monkeypatch)


@asynccontextmanager
async def exchange_product(
    database_url: str, venue: BinanceLoopback, clock: ManualClock, **settings: str
) -> AsyncIterator[LiveProduct]:
    # A connection that leads nowhere is noticed within a third of a second.
    options = {**venue.ccxt_options, "streaming": {"keepAlive": 100}}
    ccxt = {"crypto_exchanges": "binance", "ccxt_options": json.dumps({"binance": options})}
    async with live_product(database_url, clock, **ccxt, **settings) as product:
        yield product


class Crowd:
    """Clients who come, leave, and come back with what they had last."""

    def __init__(self, product: LiveProduct, script: BinanceScript, seed: int, *, restless: bool) -> None:
        self._product, self._script, self._rng = product, script, random.Random(seed)
        self._leaving = 0.2 if restless else 0.08
        #: All that ever listened; with those who do now, how to end them.
        self.sessions: list[Watcher] = []
        self._here: dict[Watcher, AsyncExitStack] = {}
        self._away: list[Watcher] = []
        self._joining: set[asyncio.Task[None]] = set()

    async def move(self) -> None:
        """Somebody may come or go."""
        rng = self._rng
        if rng.random() < 0.15 and len(self._here) + len(self._joining) < 8:
            self._start(self._join(Timeframe(rng.choice(["1m", "1m", "5m", "1h"])), self._wish()))
        if rng.random() < self._leaving and self._here:
            watcher = rng.choice(list(self._here))
            self._away.append(watcher)
            self._start(self._here.pop(watcher).aclose())
        if rng.random() < 0.1 and self._away:
            left = self._away.pop(rng.randrange(len(self._away)))
            since_ms = left.closed[-1].ts if left.closed else left.since_ms
            self._start(self._join(left.timeframe, {} if since_ms is None else {"since_ms": since_ms}))

    def _wish(self) -> dict[str, int]:
        now_ms = self._script._clock.now_ms()
        wishes = [{}, {"last": self._rng.randrange(1, 60)}]
        return self._rng.choice([*wishes, {"since_ms": self._rng.randrange(START_MS, now_ms)}])

    def _start(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.create_task(work, name="come or go")
        self._joining.add(task)

    async def join(self, timeframe: Timeframe, **wish: int) -> Watcher:
        """Somebody comes to stay."""
        stack = AsyncExitStack()
        watcher = await stack.enter_async_context(watching(self._product, BTC, timeframe, **wish))
        self.sessions.append(watcher)
        self._here[watcher] = stack
        return watcher

    async def _join(self, timeframe: Timeframe, wish: dict[str, int]) -> None:
        await self.join(timeframe, **wish)

    async def gather(self) -> None:
        """Everybody on the way has arrived, or left."""
        await asyncio.gather(*self._joining)
        self._joining.clear()

    @property
    def here(self) -> list[Watcher]:
        return list(self._here)

    async def leave(self) -> None:
        await self.gather()
        await asyncio.gather(*(stack.aclose() for stack in self._here.values()))
        self._here.clear()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START_MS + HISTORY * MINUTE_MS)


@pytest.mark.parametrize("seed", range(12))
async def test_everybody_has_every_closed_bar_once_and_in_order_whatever_befalls_the_exchange(
    seed: int, database_url: str, clock: ManualClock
):
    first_ms = START_MS + HISTORY * MINUTE_MS
    # Now and then nobody is there for a while, and nothing is followed.
    restless = seed % 3 == 2
    grace_s = "0" if restless else "30"
    async with (
        BinanceLoopback({}, clock=clock) as venue,
        exchange_product(database_url, venue, clock, stream_grace_s=grace_s) as product,
    ):
        script = BinanceScript(venue, clock, seed=seed, first_ms=first_ms, history=HISTORY, count=COUNT)
        crowd = Crowd(product, script, seed, restless=restless)
        try:
            for timeframe in (Timeframe.M1, Timeframe.M5, Timeframe.H1)[: 1 if restless else 3]:
                await crowd.join(timeframe, since_ms=START_MS)
            await venue.stream.subscribed("BTCUSDT")
            await script.play(each_minute=crowd.move)
            await crowd.gather()
            await crowd.join(Timeframe.M1, since_ms=START_MS)
            await _come_to_rest(product, venue, clock, script)
            truth, live = script.bars, TimeRange(first_ms, script.end_ms)
            await _until_stored(product, live, truth)
            await until(
                lambda: all(one.has(truth, script.end_ms) for one in crowd.here),
                why=lambda: "\n".join(one.difference(truth, script.end_ms) for one in crowd.here),
            )
        finally:
            await crowd.leave()
        assert venue.stream.opened > 1 or script.troubles == ["REST in trouble"], script.troubles
        for one in crowd.sessions:
            _assert_seamless(one, truth, script.touched)
        await _assert_verdicts(product, clock, live, truth)


async def _come_to_rest(
    product: LiveProduct, venue: BinanceLoopback, clock: ManualClock, script: BinanceScript
) -> None:
    """The clock goes on until everything is closed, and nothing is left that anybody has missed."""

    async def pass_on() -> None:
        clock.advance(minutes=0.05)

    await until(
        lambda: product.settled_ms(BTC) >= script.end_ms,
        step=pass_on,
        why=lambda: f"closed up to {product.settled_ms(BTC)}",
    )
    await until(lambda: bool(venue.stream.streams), step=pass_on, why=lambda: "the stream did not come back")
    await script.repeat_corrections()


async def _until_stored(product: LiveProduct, live: TimeRange, truth: list[Bar]) -> None:
    stored: list[Bar] = []

    async def look() -> None:
        stored[:] = await product.stored(BTC, live)

    await until(lambda: stored == [bar for bar in truth if bar.ts >= live.start_ms], step=look)


def _assert_seamless(watcher: Watcher, truth: list[Bar], touched: set[int]) -> None:
    """No bar doubled, out of order, missing or invented; `touched` minutes may have been otherwise when it left."""
    assert watcher.faults == []
    assert watcher.gaps == []
    if not watcher.view:
        return
    unsure = {watcher.timeframe.floor(ts) for ts in touched}
    last_ms = watcher.closed[-1].ts if watcher.closed else 0
    expected = watcher.expected(truth, watcher.timeframe.next(last_ms))
    assert [bar for bar in watcher.view if bar.ts not in unsure and bar.ts <= last_ms] == [
        bar for bar in expected if bar.ts not in unsure
    ]
    assert {bar.ts for bar in watcher.view} <= {bar.ts for bar in fold(truth, watcher.timeframe)}


async def _assert_verdicts(product: LiveProduct, clock: ManualClock, live: TimeRange, truth: list[Bar]) -> None:
    """Minutes with a bar are `data`; the others are empty, and after second looks nobody doubts it."""
    data = {bar.ts for bar in truth if live.start_ms <= bar.ts < live.end_ms}
    empty = set(range(live.start_ms, live.end_ms, MINUTE_MS)) - data
    found = await product.minutes_by_verdict(BTC, live)
    assert found.pop(Verdict.DATA, set()) == data
    assert found.keys() <= {Verdict.NO_TRADES, Verdict.UNCONFIRMED_EMPTY}
    for _ in range(2):
        clock.advance(hours=2)
        await product.services.rechecker.run()
    found = await product.minutes_by_verdict(BTC, live)
    assert (found.get(Verdict.DATA, set()), found.get(Verdict.NO_TRADES, set())) == (data, empty)


async def test_a_bar_with_an_empty_minute_is_folded_and_corrected_whatever_the_exchange_says_of_it(
    database_url: str, clock: ManualClock
):
    """Its own bars of five minutes may be from before the correction; clients are told what the minutes make."""
    minutes = [bar for bar in random_minutes(3, 70, start_ms=START_MS, holes=0.0) if bar.ts // MINUTE_MS % 5 != 2]
    wrong = [Bar(START_MS + n * 5 * MINUTE_MS, 1, 1, 1, 1, 1) for n in range(14)]
    first_ms = START_MS + HISTORY * MINUTE_MS
    live = [bar for bar in minutes if bar.ts >= first_ms]
    corrected = msgspec.structs.replace(live[1], volume=live[1].volume + 1)
    async with BinanceLoopback({"BTCUSDT": minutes}, clock=clock) as venue:
        venue.set_bars("BTCUSDT", wrong, Timeframe.M5)
        async with exchange_product(database_url, venue, clock) as product, watching(product, BTC, Timeframe.M5) as one:
            await venue.stream.subscribed("BTCUSDT")
            for bar in live:
                clock.advance(minutes=(bar.ts + MINUTE_MS - clock.now_ms()) / MINUTE_MS)
                await venue.stream.say("BTCUSDT", bar, closed=True)
            last_ms = START_MS + 65 * MINUTE_MS
            await until(lambda: bool(one.closed) and one.closed[-1].ts == last_ms)
            assert [bar for bar in one.closed if bar.ts >= first_ms] == fold(live, Timeframe.M5)
            assert [bar for bar in one.closed if bar.volume == 1] == []
            # A reader of the store has the exchange asked for its own.
            await product.get("ohlcv", **BTC._asdict(), timeframe="5m", start=first_ms, end=START_MS + 70 * MINUTE_MS)
            assert [call for call in venue.calls_to("klines") if call.query["interval"] == "5m"] != []
            await venue.stream.say("BTCUSDT", corrected, closed=True)
            await until(lambda: bool(one.corrected))
            live[1] = corrected
            assert one.corrected == fold(live, Timeframe.M5)[:1]
            async with watching(product, BTC, Timeframe.M5, since_ms=first_ms) as another:
                assert another.snapshot == fold(live, Timeframe.M5)


async def test_a_connection_that_is_mute_for_all_its_symbols_is_replaced_within_minutes(
    database_url: str, clock: ManualClock
) -> None:
    """Though no two of its symbols are let go at the same time."""
    ids = [f"C{n}USDT" for n in range(12)]
    pairs = listed(*(f"C{n}/USDT" for n in range(12)))
    bars: list[Bar] = []
    async with BinanceLoopback({}, symbols=pairs, clock=clock) as venue, AsyncExitStack() as stack:
        product = await stack.enter_async_context(exchange_product(database_url, venue, clock))
        watchers = [
            await stack.enter_async_context(watching(product, Series("crypto", "binance", one.unified)))
            for one in pairs
        ]

        async def pass_minute() -> None:
            bars.append(Bar(clock.now_ms() // MINUTE_MS * MINUTE_MS, 1, 1, 1, 1, 1))
            clock.advance(minutes=1)
            for id_ in ids:
                venue.set_bars(id_, bars)
                await venue.stream.say(id_, bars[-1], closed=True)
            await asyncio.sleep(0.05)

        await venue.stream.subscribed(*ids)
        for _ in range(3):
            await pass_minute()
        assert venue.stream.opened == 1
        # The exchange forgets what it was asked for, and still answers to pings.
        venue.stream.connections[0].streams.clear()
        await until(lambda: venue.stream.opened > 1, step=pass_minute)
        assert len(bars) < 20
        await venue.stream.subscribed(*ids)
        await pass_minute()
        await until(lambda: all(one.closed[-1:] == bars[-1:] for one in watchers), step=pass_minute)
        for one in watchers:
            assert one.closed == bars[: len(one.closed)]
            assert (one.faults, one.gaps) == ([], [])


@pytest.mark.skipif(not (RECORDINGS / "wire").is_dir(), reason="there are no recordings here")
async def test_recorded_frames_reach_clients_as_they_were_and_the_minute_ends_in_the_store(database_url: str) -> None:
    frames = read_frames(RECORDINGS / "wire" / "BINANCE.ws.1.0")
    told = [json.loads(frame.text) for frame in frames]
    klines = {one["data"]["s"]: one["data"]["k"] for one in told if one.get("stream", "").endswith("@kline_1m")}
    pairs = {"NKNUSDT": "NKN/USDT", "LRCBTC": "LRC/BTC"}
    assert klines.keys() == pairs.keys()
    clock = ManualClock(round(frames[0].at_s * 1000))
    async with BinanceLoopback({}, symbols=listed(*pairs.values()), clock=clock) as venue, AsyncExitStack() as stack:
        product = await stack.enter_async_context(exchange_product(database_url, venue, clock))
        series = {id_: Series("crypto", "binance", pair) for id_, pair in pairs.items()}
        watchers = {id_: await stack.enter_async_context(watching(product, one)) for id_, one in series.items()}
        await venue.stream.subscribed(*pairs)
        for frame in frames:
            clock.advance(minutes=(frame.at_s * 1000 - clock.now_ms()) / MINUTE_MS)
            await venue.stream.shout(frame.text)
        for id_, watcher in watchers.items():
            k = klines[id_]
            bar = Bar(k["t"], *(float(k[name]) for name in "ohlcv"))
            await until(lambda w=watcher, b=bar: b in w.forming)  # type: ignore[misc]
            # The exchange's last word on the minute, which the recording does not hold.
            venue.set_bars(id_, [msgspec.structs.replace(bar, volume=bar.volume + 1)])
        clock.advance(minutes=1)
        for id_, watcher in watchers.items():
            await until(lambda w=watcher: bool(w.closed))  # type: ignore[misc]
            minute = TimeRange(klines[id_]["t"], klines[id_]["T"] + 1)
            assert [bar.volume for bar in watcher.closed] == [float(klines[id_]["v"]) + 1]
            assert watcher.closed == await product.stored(series[id_], minute)
            assert (watcher.faults, watcher.gaps) == ([], [])
