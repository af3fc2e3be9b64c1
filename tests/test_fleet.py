"""A fleet: real servers on one database and one Redis share an upstream, and survive whatever befalls one of them.

The minutes of the venue pass faster than real ones, by a clock that the test holds; leases go by real time.
"""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from redis.asyncio import Redis

from app_extensions.db_pool import DatabasePool
from app_extensions.migrations import Flavour
from domain.bar import Bar
from domain.series import Series
from domain.time_range import TimeRange
from domain.timeframe import DAY_MS, MINUTE_MS, Timeframe
from services.bar_store import BarStore
from tests.app_extensions.postgres_support import running
from tests.conftest import store_on
from tests.loopback.alpaca import KEY, SECRET, AlpacaLoopback
from tests.loopback.alpaca_stream import AlpacaStreamLoopback
from tests.loopback.binance import BinanceLoopback
from tests.loopback.binance_stream import stream_of
from tests.services.redis_server import RedisServer, start_redis, why_unavailable
from tests.support.clock import ManualClock
from tests.support.fleet import AlpacaScript, BinanceScript, Fleet, Member, Script, Viewer, a_fleet, until
from tests.support.fleet_child import FileClock
from tests.support.market import START_MS, random_minutes
from tests.support.servers import each_server  # noqa: F401

HISTORY = 300
LIVE_MS = START_MS + HISTORY * MINUTE_MS
BTC, ETH = Series("crypto", "binance", "BTC/USDT"), Series("crypto", "binance", "ETH/USDT")
EVER = TimeRange(0, START_MS + 400 * DAY_MS)
#: What the project promises for a killed and for a stopped server.
TAKEN_OVER_S, HANDED_OVER_S = 10.0, 2.0
#: How soon a closed bar comes that Redis does not carry.
HEALED_S = 6.0
#: And that one that waits for a database which starts again.
RESTARTED_S = 20.0


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """One for each test: the databases of the tests are copies of one, so Redis cannot tell them apart."""
    missing = why_unavailable()
    if missing:
        pytest.skip(missing)
    server = start_redis(tmp_path)
    yield server
    server.stop()


class Scene:
    """Two servers, and the minutes of a venue that both know."""

    def __init__(self, fleet: Fleet, script: Script) -> None:
        self.fleet, self.script = fleet, script
        self.one, self.other = fleet.members
        self.viewers: list[Viewer] = []

    async def view(self, member: Member, series: Series = BTC, timeframe: Timeframe = Timeframe.M1) -> Viewer:
        viewer = Viewer(self.fleet, series, timeframe, last=10)
        self.viewers.append(viewer)
        return await viewer.watch(member)

    async def views(self) -> tuple[list[Viewer], list[Viewer]]:
        """Clients of both, the first one of which makes `one` the owner."""
        return (
            [await self.view(self.one), await self.view(self.one, timeframe=Timeframe.M5)],
            [await self.view(self.other), await self.view(self.other, timeframe=Timeframe.M5)],
        )

    def same_newest(self, *, after: int) -> bool:
        """Whether all clients of minutes are as far, and have so many bars."""
        newest = {viewer.newest_ms for viewer in self.viewers if viewer.timeframe is Timeframe.M1}
        return len(newest) == 1 and all(len(viewer.closed) >= after for viewer in self.viewers)

    async def play(self, minutes: int) -> None:
        """Let minutes pass as fast as the clients are told of them."""
        for _ in range(minutes):
            await self.script.minute(pause_s=0.08)
            await self.caught_up()

    async def leave(self, viewers: list[Viewer]) -> None:
        """Let clients go."""
        for viewer in viewers:
            await viewer.leave()
            self.viewers.remove(viewer)

    async def wanted_by(self, servers: int, store: BarStore) -> None:
        """Wait until so many servers want anything: those whose clients have left want it a while longer."""
        async with asyncio.timeout(HEALED_S):
            while True:
                async with store.database.connection() as db:
                    if await db.fetchval("SELECT count(DISTINCT process) FROM live_wants") == servers:
                        return
                await asyncio.sleep(0.05)

    async def goes_on(self, *, within_s: float = HEALED_S) -> None:
        """Wait until every client of minutes has one that closes from now on."""
        now_ms = self.script.at_ms
        viewers = [viewer for viewer in self.viewers if viewer.timeframe is Timeframe.M1]
        await until(lambda: all(viewer.newest_ms >= now_ms for viewer in viewers), within_s=within_s)

    async def caught_up(self) -> None:
        """Wait until every client has every closed bar."""
        for viewer in self.viewers:
            minutes, end_ms = self.script.minutes(viewer.series.symbol), self.script.told_ms(viewer.series.symbol)
            await until(partial(_has, viewer, minutes, end_ms), or_say=partial(self._lacks, viewer, minutes, end_ms))

    async def check(self, store: BarStore) -> None:
        """Every client has every closed bar once and in order, and it is what is stored."""
        await self.caught_up()
        for viewer in self.viewers:
            found = await store.find_series(viewer.series)
            assert found is not None
            stored = await store.read(found.id, Timeframe.M1, EVER)
            assert viewer.faults == []
            assert len(viewer.closed) > 3
            assert viewer.closed == viewer.expected(stored, self.script.told_ms(viewer.series.symbol))

    def _lacks(self, viewer: Viewer, minutes: list[Bar], end_ms: int) -> str:
        expected = viewer.expected(minutes, end_ms)
        missing = [bar for bar in expected if bar not in viewer.closed]
        wrong = [bar for bar in viewer.closed if bar not in expected]
        logs = "\n".join(f"--- {member.name}\n{member.log[-3000:]}" for member in self.fleet.members)
        return f"{viewer.timeframe}: missing {missing}, wrong {wrong}, {viewer.faults}\n{logs}"


class BinanceScene(Scene):
    """With a Binance."""

    def __init__(self, fleet: Fleet, script: Script, venue: BinanceLoopback) -> None:
        super().__init__(fleet, script)
        self.venue = venue


def _has(viewer: Viewer, minutes: list[Bar], end_ms: int) -> bool:
    return viewer.closed == viewer.expected(minutes, end_ms)


@asynccontextmanager
async def a_scene(folder: Path, database_url: str, redis: RedisServer, **settings: str) -> AsyncIterator[BinanceScene]:
    clock = FileClock(folder / "clock", LIVE_MS + 5_000)
    markets = {symbol: random_minutes(seed, HISTORY + 600) for seed, symbol in enumerate(("BTC/USDT", "ETH/USDT"))}
    bars = {symbol.replace("/", ""): bars for symbol, bars in markets.items()}
    async with BinanceLoopback(bars, clock=clock) as venue:
        options = json.dumps({"binance": venue.ccxt_options})
        shared = {"database_url": database_url, "redis_url": redis.url, "crypto_exchanges": "binance"}
        async with a_fleet(folder, clock, ccxt_options=options, **shared, **settings) as fleet:
            await fleet.start("one", "other")
            yield BinanceScene(fleet, BinanceScript(venue, clock, markets), venue)


@asynccontextmanager
async def an_alpaca_scene(
    folder: Path, database_url: str, redis: RedisServer
) -> AsyncIterator[tuple[Scene, AlpacaStreamLoopback]]:
    """The same with an Alpaca."""
    clock = FileClock(folder / "clock", LIVE_MS + 5_000)
    symbols = ("BTC/USD", "ETH/USD", "LTC/USD")
    markets = {symbol: random_minutes(seed, HISTORY + 600) for seed, symbol in enumerate(symbols)}
    async with AlpacaLoopback() as venue, AlpacaStreamLoopback() as stream:
        script = AlpacaScript(venue, stream, clock, markets)
        account = {"alpaca_key_id": KEY, "alpaca_secret_key": SECRET}
        urls = {"alpaca_data_url": venue.url, "alpaca_trading_url": venue.url, "alpaca_stream_url": stream.url}
        shared = {"database_url": database_url, "redis_url": redis.url, "stream_lease_s": "2"}
        async with a_fleet(folder, clock, **shared, **account, **urls) as fleet:
            await fleet.start("one", "other")
            yield Scene(fleet, script), stream


@asynccontextmanager
async def a_pool(database_url: str) -> AsyncIterator[DatabasePool]:
    pool = DatabasePool(database_url, max_size=1)
    await pool.open()
    yield pool
    await pool.close()


@pytest.fixture
async def scene(tmp_path: Path, database_url: str, redis: RedisServer) -> AsyncIterator[BinanceScene]:
    async with a_scene(tmp_path, database_url, redis) as scene:
        yield scene


@pytest.mark.usefixtures("each_server")
async def test_two_servers_share_one_upstream_for_as_long_as_either_has_a_client(
    tmp_path: Path, database_url: str, redis: RedisServer, store: BarStore
) -> None:
    async with a_scene(tmp_path, database_url, redis, stream_grace_s="1") as scene:
        mine = await asyncio.gather(
            scene.view(scene.one), scene.view(scene.one, timeframe=Timeframe.M5), scene.view(scene.one, ETH)
        )
        theirs = await asyncio.gather(
            scene.view(scene.other), scene.view(scene.other, timeframe=Timeframe.M5), scene.view(scene.other, ETH)
        )
        await scene.play(20)
        await scene.check(store)
        assert [viewer.closed for viewer in mine] == [viewer.closed for viewer in theirs]
        stream = scene.venue.stream
        assert stream.subscriptions == {stream_of("BTCUSDT"): 1, stream_of("ETHUSDT"): 1}
        assert await scene.fleet.followed_by(scene.one) == {"BTC/USDT", "ETH/USDT"}
        assert await scene.fleet.followed_by(scene.other) == set()
        # What forms is in no database: it came by way of Redis.
        assert all(len(viewer.forming) > 5 for viewer in theirs)
        await scene.leave(mine)
        await scene.wanted_by(1, store)
        await scene.play(5)
        assert await scene.fleet.followed_by(scene.one) == {"BTC/USDT", "ETH/USDT"}
        await scene.check(store)
        assert (stream.opened, len(stream.connections)) == (1, 1)
        assert stream.streams == {stream_of("BTCUSDT"), stream_of("ETHUSDT")}
        await scene.leave(theirs)
        await stream.deserted()


async def test_a_killed_owner_is_replaced_within_ten_seconds_and_nobody_misses_a_bar(
    scene: BinanceScene, store: BarStore
) -> None:
    mine, theirs = await scene.views()
    async with scene.script.running():
        await until(lambda: len(theirs[0].closed) > 15)
        scene.one.send(signal.SIGKILL)
        killed_ms = scene.script.at_ms
        for viewer in mine:
            await viewer.parted()
            await viewer.watch(scene.other)
        assert await until(lambda: theirs[0].newest_ms >= killed_ms) < TAKEN_OVER_S
        forming = len(theirs[0].forming)
        await until(lambda: len(theirs[0].forming) > forming + 3)
    await scene.check(store)
    assert await scene.fleet.followed_by(scene.other) == {"BTC/USDT"}
    assert len(scene.venue.stream.connections) == 1


async def test_an_owner_that_was_frozen_is_fenced_and_goes_on_as_the_others_client(
    tmp_path: Path, database_url: str, redis: RedisServer, store: BarStore
) -> None:
    async with a_scene(tmp_path, database_url, redis, stream_lease_s="2") as scene:
        mine, theirs = await scene.views()
        owner, other = scene.one, scene.other
        async with scene.script.running():
            for _ in range(2):
                await until(lambda: scene.same_newest(after=10))
                owner.send(signal.SIGSTOP)
                frozen_ms = scene.script.at_ms
                watching = theirs if owner is scene.one else mine
                await until(lambda v=watching[0], ms=frozen_ms: v.newest_ms > ms)
                owner.send(signal.SIGCONT)
                thawed_ms = scene.script.at_ms
                await until(lambda ms=thawed_ms: all(viewer.newest_ms > ms for viewer in (mine[0], theirs[0])))
                assert await scene.fleet.followed_by(owner) == set()
                assert await scene.fleet.followed_by(other) == {"BTC/USDT"}
                owner, other = other, owner
        await scene.check(store)
        assert len(scene.venue.stream.connections) == 1


@pytest.mark.usefixtures("each_server")
async def test_a_stopped_owner_hands_over_at_once(scene: BinanceScene, store: BarStore) -> None:
    mine, theirs = await scene.views()
    async with scene.script.running():
        await until(lambda: len(theirs[0].closed) > 15)
        scene.one.send(signal.SIGTERM)
        stopped_ms, began_s = scene.script.at_ms, time.monotonic()
        assert [await viewer.parted() for viewer in mine] == [1001, 1001]
        for viewer in mine:
            await viewer.watch(scene.other)
        await until(lambda: theirs[0].newest_ms > stopped_ms)
        assert time.monotonic() - began_s < HANDED_OVER_S
        await scene.one.ended()
        assert scene.one.process.returncode == 0
        await until(lambda ms=scene.script.at_ms: theirs[0].newest_ms > ms)
    await scene.check(store)


async def test_a_redis_in_trouble_costs_no_closed_bar_and_carries_forming_ones_again(
    scene: BinanceScene, redis: RedisServer, store: BarStore
) -> None:
    _, theirs = await scene.views()

    async def forms_and_closes() -> None:
        formed = len(theirs[0].forming)
        await until(lambda: len(theirs[0].forming) > formed + 2)
        await scene.goes_on()

    async with scene.script.running(every_s=0.3):
        await forms_and_closes()
        redis.restart()
        await forms_and_closes()
        async with Redis.from_url(redis.url) as client:
            await client.flushall()
            await forms_and_closes()
            for kind in ("pubsub", "normal"):
                await client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        await forms_and_closes()
        redis.kill()
        await scene.goes_on()
        # By way of the database.
        await scene.goes_on()
        redis.start()
        await forms_and_closes()
        redis.freeze()
        await scene.goes_on()
        await scene.goes_on()
        redis.thaw()
        await forms_and_closes()
    await scene.check(store)
    assert all(viewer.close_code is None for viewer in scene.viewers)
    assert scene.venue.stream.opened == 1


async def test_a_database_that_restarts_costs_no_bar(tmp_path: Path, redis: RedisServer, clock: ManualClock) -> None:
    async with running(tmp_path / "pg") as server, a_scene(tmp_path, server.dsn, redis) as scene:
        await scene.views()
        async with scene.script.running():
            await scene.goes_on()
            for how in (signal.SIGINT, signal.SIGKILL):
                assert server.pid is not None
                os.kill(server.pid, how)
                await scene.goes_on(within_s=RESTARTED_S)
                await scene.goes_on(within_s=RESTARTED_S)
        async with a_pool(server.dsn) as pool:
            await scene.check(store_on(pool, Flavour.POSTGRESQL, clock))
        assert all(viewer.close_code is None for viewer in scene.viewers)
        assert len(scene.venue.stream.connections) == 1


async def test_an_account_with_one_stream_has_one_for_all_servers_and_it_moves_as_a_whole(
    tmp_path: Path, database_url: str, redis: RedisServer, store: BarStore
) -> None:
    btc, eth, ltc = (Series("crypto", "alpaca", f"{name}/USD") for name in ("BTC", "ETH", "LTC"))
    async with an_alpaca_scene(tmp_path, database_url, redis) as (scene, stream):
        mine = await asyncio.gather(scene.view(scene.one, btc), scene.view(scene.one, ltc))
        theirs = await asyncio.gather(scene.view(scene.other, eth), scene.view(scene.other, btc))
        async with scene.script.running():
            await scene.goes_on()
            await stream.subscribed("BTC/USD", "ETH/USD", "LTC/USD")
            assert (stream.opened, len(stream.connections)) == (1, 1)
            scene.one.send(signal.SIGKILL)
            killed_ms, began_s = scene.script.at_ms, time.monotonic()
            for viewer in mine:
                await viewer.parted()
                await viewer.watch(scene.other)
            await until(lambda: all(viewer.newest_ms > killed_ms for viewer in theirs))
            assert time.monotonic() - began_s < TAKEN_OVER_S
            await scene.goes_on()
        assert await scene.fleet.followed_by(scene.other) == {"BTC/USD", "ETH/USD", "LTC/USD"}
        # None was refused, for then there would have been more.
        assert (stream.opened, len(stream.connections)) == (2, 1)
        await scene.check(store)
