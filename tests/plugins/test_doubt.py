"""Symbols that share a connection: when it is mute for more than one of them, it is ended for all."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import NamedTuple

import pytest

from domain.bar import Bar
from plugins import alpaca_live
from plugins.alpaca import AlpacaPlugin
from plugins.base import Credentials, LiveBars, MarketPlugin, NetworkPluginError, PluginConfig
from plugins.crypto import CryptoPlugin
from tests.loopback.alpaca import KEY, SECRET
from tests.loopback.alpaca_stream import AlpacaStreamLoopback
from tests.loopback.binance import BinanceLoopback
from tests.support.market import START_MS

PATIENCE_S = 15.0
BAR = Bar(START_MS, 1, 1, 1, 1, 1)


class Setting(NamedTuple):
    """A plugin, two of its symbols, how its venue tells of one, and how often it was connected."""

    plugin: MarketPlugin
    first: str
    second: str
    say: Callable[[str], Awaitable[None]]
    subscribed: Callable[[], Awaitable[None]]
    opened: Callable[[], int]


async def _alpaca() -> AsyncIterator[Setting]:
    async with AlpacaStreamLoopback() as venue:
        config = PluginConfig(
            provider="alpaca",
            credentials=Credentials(key=KEY, secret=SECRET),
            options={**venue.options, "market": "stocks"},
            timeout_s=5,
        )
        yield Setting(
            AlpacaPlugin(config),
            "SPY",
            "QQQ",
            lambda symbol: venue.say(symbol, BAR),
            lambda: venue.until(lambda: len(venue.connections) == 1 and venue.subscriptions == {"SPY", "QQQ"}),
            lambda: venue.opened,
        )


async def _binance() -> AsyncIterator[Setting]:
    async with BinanceLoopback({}) as venue:
        yield Setting(
            CryptoPlugin(PluginConfig(provider="binance", options=venue.ccxt_options, timeout_s=5)),
            "BTC/USDT",
            "ETH/USDT",
            lambda symbol: venue.stream.say(symbol.replace("/", ""), BAR, closed=True),
            lambda: venue.stream.until(lambda: len(venue.stream.connections) == 1 and len(venue.stream.streams) == 2),
            lambda: venue.stream.opened,
        )


@pytest.fixture(params=[_alpaca, _binance], ids=["alpaca", "binance"])
async def setting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Setting]:
    monkeypatch.setattr(alpaca_live, "PACE_S", 0.01)
    made = request.param()
    one = await anext(made)
    await one.plugin.open()
    yield one
    await one.plugin.close()
    await made.aclose()


def begin(live: AsyncGenerator[LiveBars, None]) -> asyncio.Task[LiveBars]:
    async def hear() -> LiveBars:
        async with asyncio.timeout(PATIENCE_S):
            return await anext(live)

    return asyncio.create_task(hear())


async def listen(setting: Setting, *, connection: int = 1) -> list[AsyncGenerator[LiveBars, None]]:
    """Both symbols on the connection of this number, each having told of a minute."""
    lives = [setting.plugin.live_minutes(symbol) for symbol in (setting.first, setting.second)]
    waiting = [begin(live) for live in lives]
    async with asyncio.timeout(PATIENCE_S):
        while setting.opened() < connection:  # noqa: ASYNC110 - an old connection may still hold them
            await asyncio.sleep(0.005)
    await setting.subscribed()
    for symbol, task in zip((setting.first, setting.second), waiting, strict=True):
        await setting.say(symbol)
        assert (await task).bars == (BAR,)
    return lives


async def test_a_connection_that_two_symbols_are_missed_on_ends_for_both_and_is_made_anew(setting: Setting) -> None:
    waiting = [begin(live) for live in await listen(setting)]
    setting.plugin.doubt(setting.first)
    setting.plugin.doubt(setting.second)
    for task in waiting:
        with pytest.raises(NetworkPluginError, match="nothing any more"):
            await task
    lives = await listen(setting, connection=2)
    assert setting.opened() == 2
    for live in lives:
        await live.aclose()


async def test_a_connection_on_which_others_are_heard_stays(setting: Setting) -> None:
    lives = await listen(setting)
    for _ in range(5):
        setting.plugin.doubt(setting.first)
        told = begin(lives[1])
        await setting.say(setting.second)
        assert (await told).bars == (BAR,)
    assert setting.opened() == 1
    for live in lives:
        await live.aclose()


async def test_a_doubt_about_what_nobody_listens_to_changes_nothing(setting: Setting) -> None:
    for _ in range(3):
        setting.plugin.doubt(setting.first)
    lives = await listen(setting)
    for _ in range(3):
        setting.plugin.doubt("NOBODY/USDT")
    told = begin(lives[0])
    await setting.say(setting.first)
    assert (await told).bars == (BAR,)
    assert setting.opened() == 1
    for live in lives:
        await live.aclose()
