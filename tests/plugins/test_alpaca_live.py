"""The stream of Alpaca, against a stream of our own."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from domain.bar import Bar
from domain.timeframe import MINUTE_MS
from plugins import alpaca_line, alpaca_live
from plugins.alpaca import AlpacaPlugin
from plugins.base import (
    AuthenticationPluginError,
    Credentials,
    LiveBars,
    NetworkPluginError,
    PluginConfig,
    PluginError,
    PluginFeatureNotSupportedError,
    RateLimitPluginError,
    SymbolNotFoundPluginError,
)
from tests.loopback.alpaca import KEY, SECRET, AlpacaLoopback
from tests.loopback.alpaca_stream import AlpacaStreamLoopback, error, item

#: Monday, 2024-01-08, 14:30 UTC.
START_MS = 1_704_724_200_000
PATIENCE_S = 10.0


def bar(n: int, *, volume: float = 10.0) -> Bar:
    return Bar(START_MS + n * MINUTE_MS, 101.0, 103.0, 100.0, 102.0 + n % 2, volume)


def make_plugin(
    venue: AlpacaStreamLoopback,
    market: str = "stocks",
    *,
    secret: str = SECRET,
    timeout_s: float = 10,
    **options: object,
) -> AlpacaPlugin:
    config = PluginConfig(
        provider="alpaca",
        credentials=Credentials(key=KEY, secret=secret),
        options={**venue.options, "market": market, **options},
        timeout_s=timeout_s,
    )
    return AlpacaPlugin(config)


@pytest.fixture
async def venue() -> AsyncIterator[AlpacaStreamLoopback]:
    async with AlpacaStreamLoopback() as loopback:
        yield loopback


@pytest.fixture
async def plugin(venue: AlpacaStreamLoopback, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AlpacaPlugin]:
    monkeypatch.setattr(alpaca_live, "PACE_S", 0.01)
    made = make_plugin(venue)
    await made.open()
    yield made
    await made.close()


class Ear:
    """Listens to a symbol until the stream fails or nobody wants to listen any more."""

    def __init__(self, plugin: AlpacaPlugin, symbol: str) -> None:
        self.symbol = symbol
        self.told: list[LiveBars] = []
        self.errors: list[BaseException] = []
        self._news = asyncio.Condition()
        self._task = asyncio.create_task(self._listen(plugin.live_minutes(symbol)), name=f"listen to {symbol}")

    async def _listen(self, live: AsyncGenerator[LiveBars, None]) -> None:
        try:
            async with aclosing(live):
                async for told in live:
                    self.told.append(told)
                    await self._change()
        except PluginError as exc:
            self.errors.append(exc)
        finally:
            await self._change()

    async def _change(self) -> None:
        async with self._news:
            self._news.notify_all()

    @property
    def bars(self) -> list[Bar]:
        return [bar for told in self.told for bar in told.bars]

    async def heard(self, *bars: Bar) -> None:
        """Wait until it has heard exactly these."""
        async with asyncio.timeout(PATIENCE_S), self._news:
            await self._news.wait_for(lambda: len(self.bars) >= len(bars))
        assert self.bars == list(bars)

    async def error(self) -> PluginError:
        """Wait until the stream has failed."""
        await asyncio.wait_for(self._task, PATIENCE_S)
        assert len(self.errors) == 1
        assert isinstance(self.errors[0], PluginError)
        return self.errors[0]

    @property
    def is_listening(self) -> bool:
        return not self._task.done()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


Listen = Callable[..., Awaitable[list[Ear]]]


@pytest.fixture
async def listen(venue: AlpacaStreamLoopback, plugin: AlpacaPlugin) -> AsyncIterator[Listen]:
    """Listen to symbols, and wait until they are subscribed to beside those before."""
    async with AsyncExitStack() as stack:

        async def start(*symbols: str, wait: bool = True) -> list[Ear]:
            wanted = venue.subscriptions | set(symbols)
            ears = [Ear(plugin, symbol) for symbol in symbols]
            for ear in ears:
                stack.push_async_callback(ear.stop)
            if wait:
                await venue.subscribed(*wanted)
            return ears

        yield start


# ---- what is told


async def test_a_minute_that_is_over_is_told_as_closed(venue: AlpacaStreamLoopback, listen: Listen):
    (spy,) = await listen("SPY")
    await venue.say("SPY", bar(0))
    await spy.heard(bar(0))
    assert spy.told == [LiveBars("SPY", (bar(0),), closed=True)]


async def test_a_minute_that_late_trades_changed_is_told_again(venue: AlpacaStreamLoopback, listen: Listen):
    (spy,) = await listen("SPY")
    await venue.say("SPY", bar(0))
    await spy.heard(bar(0))
    await venue.say("SPY", bar(0, volume=12), kind="u")
    await spy.heard(bar(0), bar(0, volume=12))
    assert spy.told[-1] == LiveBars("SPY", (bar(0, volume=12),), closed=True)


async def test_frames_hold_many_items_of_many_symbols_and_kinds(venue: AlpacaStreamLoopback, listen: Listen):
    spy, bac = await listen("SPY", "BAC")
    await venue.shout_items(
        item("SPY", bar(1)),
        {"T": "t", "S": "SPY", "p": 5},
        item("BAC", bar(0)),
        item("ELSE", bar(0)),
        item("SPY", bar(0), "u"),
        item("SPY", bar(9), "d"),
        {"T": "q", "S": "BAC"},
        item("BAC", bar(1)),
        item("BAC", bar(1, volume=7), "u"),
    )
    await spy.heard(bar(0), bar(1))
    await bac.heard(bar(0), bar(1, volume=7))


@pytest.mark.parametrize(
    "stamp", ["2024-01-08T14:30:00Z", "2024-01-08T14:30:00.000000000Z", "2024-01-08T09:30:00-05:00"]
)
async def test_times_are_read_in_every_way_of_writing_them(venue: AlpacaStreamLoopback, listen: Listen, stamp: str):
    (spy,) = await listen("SPY")
    await venue.shout_items({**item("SPY", bar(0)), "t": stamp})
    await spy.heard(bar(0))


async def test_frames_may_be_binary(venue: AlpacaStreamLoopback, listen: Listen):
    (spy,) = await listen("SPY")
    await venue.connections[0].socket.send_bytes(
        b'[{"T":"b","S":"SPY","t":"2024-01-08T14:30:00Z","o":101,"h":103,"l":100,"c":102,"v":10}]'
    )
    await spy.heard(bar(0))


@pytest.mark.parametrize(
    "spoilt",
    [
        {"h": 99},
        {"c": None},
        {"v": -1},
        {"o": "NaN"},
        {"t": "2024-01-08T14:30:20Z"},
        {"t": "2024-01-08T14:30:00.00000001"},
        {"t": None},
        {"l": 10**400},
    ],
    ids=str,
)
async def test_a_bad_minute_leaves_a_hole_so_its_symbol_fails_and_no_other(
    venue: AlpacaStreamLoopback, listen: Listen, spoilt: dict[str, object]
):
    spy, bac = await listen("SPY", "BAC")
    await venue.shout_items(item("SPY", bar(0)), {**item("SPY", bar(1)), **spoilt}, item("SPY", bar(2)))
    assert isinstance(await spy.error(), NetworkPluginError)
    assert spy.bars == [bar(0)]
    await venue.say("BAC", bar(2))
    await bac.heard(bar(2))


async def test_crypto_has_a_stream_of_its_own(venue: AlpacaStreamLoopback):
    plugin = make_plugin(venue, "crypto")
    await plugin.open()
    ear = Ear(plugin, "BTC/USD")
    await venue.subscribed("BTC/USD")
    assert [connection.path for connection in venue.connections] == ["/v1beta3/crypto/us"]
    await venue.say("BTC/USD", bar(0))
    await ear.heard(bar(0))
    await plugin.close()


@pytest.mark.parametrize(
    ("feed", "path"),
    [("iex", "/v2/iex"), ("sip", "/v2/sip"), ("delayed_sip", "/v2/delayed_sip"), ("overnight", "/v1beta1/overnight")],
)
async def test_the_feed_decides_on_the_address(venue: AlpacaStreamLoopback, feed: str, path: str):
    plugin = make_plugin(venue, feed=feed)
    await plugin.open()
    ear = Ear(plugin, "SPY")
    await venue.subscribed("SPY")
    assert [connection.path for connection in venue.connections] == [path]
    await plugin.close()
    assert isinstance(await ear.error(), NetworkPluginError)


@pytest.mark.parametrize("market", ["stocks", "crypto"])
def test_both_markets_say_that_they_stream(market: str):
    options = {"market": market}
    assert AlpacaPlugin(PluginConfig(provider="alpaca", options=options)).capabilities.live == "stream"


# ---- symbols that come and go


async def test_symbols_come_and_go_over_one_connection(venue: AlpacaStreamLoopback, listen: Listen):
    (spy,) = await listen("SPY")
    (bac,) = await listen("BAC")
    await spy.stop()
    await venue.subscribed("BAC")
    await venue.say("BAC", bar(0))
    await bac.heard(bar(0))
    (again,) = await listen("SPY")
    await venue.say("SPY", bar(1))
    await again.heard(bar(1))
    assert venue.opened == 1
    assert venue.told == [
        {"action": "subscribe", "bars": ["SPY"], "updatedBars": ["SPY"]},
        {"action": "subscribe", "bars": ["BAC"], "updatedBars": ["BAC"]},
        {"action": "unsubscribe", "bars": ["SPY"], "updatedBars": ["SPY"]},
        {"action": "subscribe", "bars": ["SPY"], "updatedBars": ["SPY"]},
    ]


async def test_the_connection_ends_with_its_last_symbol_and_begins_with_the_next(
    venue: AlpacaStreamLoopback, listen: Listen
):
    spy, bac = await listen("SPY", "BAC")
    await spy.stop()
    await bac.stop()
    await venue.deserted()
    (again,) = await listen("SPY")
    await venue.say("SPY", bar(0))
    await again.heard(bar(0))
    assert venue.opened == 2


async def test_a_connection_waits_until_the_one_before_is_gone(venue: AlpacaStreamLoopback, listen: Listen):
    venue.rude = True
    for n in range(2):
        (spy,) = await listen("SPY", wait=False)
        await venue.until(lambda: venue.opened == n + 1)  # noqa: B023 - done with before n moves on
        await venue.subscribed("SPY")
        await venue.say("SPY", bar(n))
        await spy.heard(bar(n))
        await spy.stop()
        assert venue.subscriptions == {"SPY"}, "the venue has not noticed yet, and would refuse another connection"


async def test_a_symbol_that_comes_back_at_once_misses_nothing(venue: AlpacaStreamLoopback, listen: Listen):
    spy, _ = await listen("SPY", "BAC")
    await spy.stop()
    (again,) = await listen("SPY", wait=False)
    await asyncio.sleep(0)
    await venue.until(lambda: venue.subscriptions == {"SPY", "BAC"})
    await venue.say("SPY", bar(0))
    await again.heard(bar(0))


async def test_a_symbol_is_streamed_once_at_a_time(venue: AlpacaStreamLoopback, listen: Listen):
    (first,) = await listen("SPY")
    (second,) = await listen("SPY", wait=False)
    assert "already" in str(await second.error())
    await venue.say("SPY", bar(0))
    await first.heard(bar(0))
    assert venue.subscriptions == {"SPY"}


async def test_two_hundred_symbols_share_a_connection_and_few_requests(venue: AlpacaStreamLoopback, listen: Listen):
    symbols = [f"S{n}" for n in range(200)]
    ears = await listen(*symbols)
    await venue.shout_items(*(item(symbol, bar(n)) for n in range(5) for symbol in symbols))
    for ear in ears:
        await ear.heard(*(bar(n) for n in range(5)))
    assert venue.opened == 1
    assert len(venue.told) <= 2
    for ear in ears[::2]:
        await ear.stop()
    await venue.subscribed(*symbols[1::2])


async def test_more_symbols_than_a_message_may_hold_are_asked_for_in_parts(
    venue: AlpacaStreamLoopback, listen: Listen, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(alpaca_line, "_BATCH", 3)
    symbols = [f"S{n}" for n in range(8)]
    ears = await listen(*symbols)
    assert max(len(asked["bars"]) for asked in venue.told) == 3  # type: ignore[arg-type]
    for ear in ears[1:]:
        await ear.stop()
    await venue.subscribed("S0")


# ---- refused symbols


async def test_over_the_limit_only_those_that_were_asked_for_last_fail(venue: AlpacaStreamLoopback, listen: Listen):
    venue.limit = 30
    ears = await listen(*(f"S{n}" for n in range(40)), wait=False)
    errors = [await ear.error() for ear in ears[30:]]
    assert all(isinstance(exc, PluginFeatureNotSupportedError) for exc in errors)
    assert "405" in str(errors[0])
    assert "symbol limit exceeded" in str(errors[0])
    assert venue.subscriptions == {f"S{n}" for n in range(30)}
    await venue.say("S29", bar(0))
    await ears[29].heard(bar(0))
    assert all(ear.is_listening for ear in ears[:30])
    assert venue.opened == 1


async def test_where_somebody_leaves_there_is_room_again(venue: AlpacaStreamLoopback, listen: Listen):
    venue.limit = 1
    (spy,) = await listen("SPY")
    (bac,) = await listen("BAC", wait=False)
    assert isinstance(await bac.error(), PluginFeatureNotSupportedError)
    await spy.stop()
    await venue.deserted()
    (again,) = await listen("BAC")
    await venue.say("BAC", bar(0))
    await again.heard(bar(0))


async def test_a_symbol_that_is_no_symbol_does_not_keep_others_out(venue: AlpacaStreamLoopback, listen: Listen):
    good = [f"S{n}" for n in range(9)]
    venue.symbols = good
    ears = await listen(*good[:4], "NO/SUCH", *good[4:], wait=False)
    bad = ears.pop(4)
    assert isinstance(await bad.error(), SymbolNotFoundPluginError)
    await venue.subscribed(*good)
    assert all(ear.is_listening for ear in ears)


async def test_symbols_that_an_answer_leaves_out_fail_and_the_others_go_on(venue: AlpacaStreamLoopback, listen: Listen):
    venue.left_out = {"BAC"}
    spy, bac = await listen("SPY", "BAC", wait=False)
    assert isinstance(await bac.error(), PluginFeatureNotSupportedError)
    await venue.say("SPY", bar(0))
    await spy.heard(bar(0))


async def test_a_symbol_that_alpaca_drops_by_itself_fails(venue: AlpacaStreamLoopback, listen: Listen):
    spy, bac = await listen("SPY", "BAC")
    await venue.shout_items({"T": "subscription", "bars": ["BAC"], "updatedBars": ["BAC"]})
    assert isinstance(await spy.error(), NetworkPluginError)
    await venue.say("BAC", bar(0))
    await bac.heard(bar(0))


@pytest.mark.parametrize(("code", "kind"), [(410, PluginFeatureNotSupportedError), (400, SymbolNotFoundPluginError)])
async def test_a_refused_request_fails_its_symbol_alone(
    venue: AlpacaStreamLoopback, listen: Listen, code: int, kind: type[PluginError]
):
    (spy,) = await listen("SPY")
    venue.errors.append(code)
    (bac,) = await listen("BAC", wait=False)
    assert type(await bac.error()) is kind
    await venue.say("SPY", bar(0))
    await spy.heard(bar(0))


async def test_an_unsubscription_that_is_refused_is_let_be(venue: AlpacaStreamLoopback, listen: Listen):
    spy, bac = await listen("SPY", "BAC")
    venue.errors.append(400)
    await bac.stop()
    await venue.until(lambda: not venue.errors)
    (qqq,) = await listen("QQQ", wait=False)
    await venue.until(lambda: "QQQ" in venue.subscriptions)
    await venue.shout_items(item("BAC", bar(0)), item("SPY", bar(0)), item("QQQ", bar(0)))
    await spy.heard(bar(0))
    await qqq.heard(bar(0))
    assert [asked["action"] for asked in venue.told] == ["subscribe", "unsubscribe", "subscribe"]


# ---- errors


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (401, AuthenticationPluginError),
        (402, AuthenticationPluginError),
        (403, AuthenticationPluginError),
        (404, AuthenticationPluginError),
        (406, RateLimitPluginError),
        (407, NetworkPluginError),
        (408, AuthenticationPluginError),
        (409, AuthenticationPluginError),
        (411, AuthenticationPluginError),
        (500, NetworkPluginError),
    ],
)
@pytest.mark.parametrize("when", ["at once", "within the stream", "for an answer"])
async def test_every_error_is_told_to_everybody_once(
    venue: AlpacaStreamLoopback, listen: Listen, code: int, kind: type[PluginError], when: str
):
    if when == "at once":
        venue.auth_errors.append(code)
        ears = await listen("SPY", "BAC", wait=False)
    elif when == "within the stream":
        ears = await listen("SPY", "BAC")
        await venue.shout_items(error(code))
    else:
        ears = await listen("SPY")
        venue.errors.append(code)
        ears += await listen("BAC", wait=False)
    for ear in ears:
        exc = await ear.error()
        assert type(exc) is kind
        assert str(code) in str(exc)
        assert (exc.retry_after_s is not None) == (code == 406)
    await venue.deserted()
    assert venue.opened == 1


async def test_an_error_that_nobody_knows_is_worth_another_try(venue: AlpacaStreamLoopback, listen: Listen):
    (spy,) = await listen("SPY")
    await venue.shout_items({"T": "error", "code": "strange", "msg": ["really"]})
    assert type(await spy.error()) is NetworkPluginError


async def test_wrong_keys_are_said_to_be_wrong(venue: AlpacaStreamLoopback):
    plugin = make_plugin(venue, secret="wrong-secret")
    await plugin.open()
    exc = await Ear(plugin, "SPY").error()
    assert isinstance(exc, AuthenticationPluginError)
    assert "402" in str(exc)
    assert "wrong-secret" not in f"{exc!r} {exc}"
    await plugin.close()


async def test_missing_keys_are_not_tried(venue: AlpacaStreamLoopback):
    plugin = make_plugin(venue, secret="")
    await plugin.open()
    exc = await Ear(plugin, "SPY").error()
    assert isinstance(exc, AuthenticationPluginError)
    assert "CANDLERY_ALPACA_SECRET_KEY" in str(exc)
    assert venue.opened == 0
    await plugin.close()


async def test_an_error_that_repeats_the_secret_does_not_show_it(venue: AlpacaStreamLoopback, listen: Listen):
    (spy,) = await listen("SPY")
    await venue.shout_items({"T": "error", "code": 500, "msg": f"who is {KEY}/{SECRET}?"})
    exc = await spy.error()
    assert "who is ***/***?" in str(exc)


async def test_while_somebody_else_holds_the_connection_nobody_tries_before_its_time(
    venue: AlpacaStreamLoopback, plugin: AlpacaPlugin, listen: Listen, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(alpaca_line, "TAKEN_S", 1.0)
    other = make_plugin(venue)
    await other.open()
    held = Ear(other, "SPY")
    await venue.subscribed("SPY")
    ears = [Ear(plugin, f"S{n}") for n in range(5)]
    for ear in ears:
        exc = await ear.error()
        assert isinstance(exc, RateLimitPluginError)
        assert exc.retry_after_s is not None
        assert 0 < exc.retry_after_s <= 1
    early = Ear(plugin, "S9")
    assert isinstance(await early.error(), RateLimitPluginError)
    assert venue.opened == 2
    await held.stop()
    await other.close()
    await venue.deserted()
    exc = early.errors[0]
    assert isinstance(exc, RateLimitPluginError)
    await asyncio.sleep((exc.retry_after_s or 0) + 0.05)
    await listen("S9")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, AuthenticationPluginError),
        (403, AuthenticationPluginError),
        (404, PluginError),
        (429, RateLimitPluginError),
        (500, NetworkPluginError),
        (503, NetworkPluginError),
        (200, NetworkPluginError),
    ],
)
async def test_a_refused_handshake_is_told_by_its_status(
    venue: AlpacaStreamLoopback, listen: Listen, status: int, kind: type[PluginError]
):
    venue.refusals.append((status, {}))
    (spy,) = await listen("SPY", wait=False)
    exc = await spy.error()
    assert type(exc) is kind
    assert str(status) in str(exc)


async def test_a_redirect_is_not_followed(venue: AlpacaStreamLoopback, listen: Listen):
    async with AlpacaStreamLoopback() as elsewhere:
        venue.refusals.append((302, {"Location": f"{elsewhere.url.replace('ws', 'http', 1)}/v2/iex"}))
        (spy,) = await listen("SPY", wait=False)
        assert "redirect" in str(await spy.error())
        assert elsewhere.opened == 0


@pytest.mark.parametrize("url", ["nonsense", "ws://", "ws://127.0.0.1:1", "ftp://127.0.0.1"])
async def test_an_address_that_leads_nowhere_is_a_plugin_error(venue: AlpacaStreamLoopback, url: str):
    plugin = make_plugin(venue, stream_url=url)
    await plugin.open()
    assert await Ear(plugin, "SPY").error()
    await plugin.close()


async def test_attempts_that_fail_keep_their_distance_and_are_shared(
    venue: AlpacaStreamLoopback, plugin: AlpacaPlugin, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(alpaca_live, "PACE_S", 0.2)
    venue.refusals.extend([(500, {})] * 2)
    assert await Ear(plugin, "SPY").error()
    began_s = time.monotonic()
    ears = [Ear(plugin, f"S{n}") for n in range(20)]
    for ear in ears:
        await ear.error()
    assert time.monotonic() - began_s > 0.15
    assert venue.opened == 2


# ---- connections that fail


async def test_a_connection_that_drops_is_told_to_everybody_once(venue: AlpacaStreamLoopback, listen: Listen):
    spy, bac = await listen("SPY", "BAC")
    await venue.say("SPY", bar(0))
    await spy.heard(bar(0))
    venue.cut()
    for ear in (spy, bac):
        exc = await ear.error()
        assert type(exc) is NetworkPluginError
        assert "lost" in str(exc)
    await venue.deserted()
    again = await listen("SPY", "BAC")
    await venue.say("BAC", bar(1))
    await again[1].heard(bar(1))
    assert venue.opened == 2


async def test_what_came_before_the_drop_is_told_before_it(venue: AlpacaStreamLoopback, plugin: AlpacaPlugin):
    live = plugin.live_minutes("SPY")
    first = asyncio.create_task(anext(live))
    await venue.subscribed("SPY")
    await venue.say("SPY", bar(0))
    assert (await asyncio.wait_for(first, PATIENCE_S)).bars == (bar(0),)
    await venue.say("SPY", bar(1), bar(2))
    venue.connections[0].socket.force_close()
    await venue.close_all()
    assert (await asyncio.wait_for(anext(live), PATIENCE_S)).bars == (bar(1), bar(2))
    with pytest.raises(NetworkPluginError):
        await asyncio.wait_for(anext(live), PATIENCE_S)
    with pytest.raises(StopAsyncIteration):
        await anext(live)


async def test_a_polite_end_is_an_end_as_well(venue: AlpacaStreamLoopback, listen: Listen):
    (spy,) = await listen("SPY")
    await venue.close_all(1001)
    exc = await spy.error()
    assert type(exc) is NetworkPluginError
    assert "1001" in str(exc)


async def test_a_connection_that_leads_nowhere_is_noticed(
    venue: AlpacaStreamLoopback, listen: Listen, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(alpaca_line, "HEARTBEAT_S", 0.1)
    spy, bac = await listen("SPY", "BAC")
    venue.fall_silent()
    for ear in (spy, bac):
        assert type(await ear.error()) is NetworkPluginError


async def test_a_quiet_connection_that_answers_pings_is_left_alone(
    venue: AlpacaStreamLoopback, listen: Listen, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(alpaca_line, "HEARTBEAT_S", 0.8)
    (spy,) = await listen("SPY")
    await venue.until(lambda: venue.pings >= 2)
    await venue.say("SPY", bar(0))
    await spy.heard(bar(0))


@pytest.mark.parametrize("action", ["connect", "auth", "subscribe"])
async def test_an_answer_that_does_not_come_is_waited_for_no_longer_than_allowed(
    venue: AlpacaStreamLoopback, action: str
):
    venue.unanswered = {action}
    plugin = make_plugin(venue, timeout_s=0.2)
    await plugin.open()
    began_s = time.monotonic()
    assert type(await Ear(plugin, "SPY").error()) is NetworkPluginError
    assert time.monotonic() - began_s < 5
    await venue.deserted()
    await plugin.close()


async def test_a_venue_that_does_not_even_shake_hands_is_given_up(venue: AlpacaStreamLoopback):
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    plugin = make_plugin(venue, timeout_s=0.2, stream_url=f"ws://127.0.0.1:{port}")
    await plugin.open()
    assert type(await Ear(plugin, "SPY").error()) is NetworkPluginError
    await plugin.close()
    server.close()
    await server.wait_closed()


# ---- rubbish

RUBBISH = [
    "no json",
    "{}",
    "null",
    '{"T":"b"}',
    "[1]",
    "[null]",
    "[[]]",
    '[{"S":"SPY"}]',
    '[{"T":5}]',
    '[{"T":"b","S":[1]}]',
    '[{"T":"subscription","bars":"SPY"}]',
    "[" * 50_000,
    "[NaN]",
]


@pytest.mark.parametrize("frame", RUBBISH, ids=lambda frame: frame[:20])
async def test_rubbish_is_counted_and_ends_the_connection_when_it_persists(
    venue: AlpacaStreamLoopback, listen: Listen, frame: str, caplog: pytest.LogCaptureFixture
):
    spy, bac = await listen("SPY", "BAC")
    with caplog.at_level(logging.WARNING, logger="plugins"):
        for _ in range(alpaca_line.MOST_GARBAGE):
            await venue.shout(frame)
        await venue.say("SPY", bar(0))
        await spy.heard(bar(0))
        assert len(caplog.records) == alpaca_line.MOST_GARBAGE
        await venue.shout(frame)
        for ear in (spy, bac):
            assert type(await ear.error()) is NetworkPluginError


async def test_kinds_of_messages_that_are_new_are_passed_over(venue: AlpacaStreamLoopback, listen: Listen):
    (spy,) = await listen("SPY")
    for kind in ("t", "q", "d", "x", "c", "success", "tomorrow"):
        await venue.shout_items({"T": kind, "S": "SPY"}, {"T": kind, "S": 7})
    await venue.shout("[]")
    await venue.say("SPY", bar(0))
    await spy.heard(bar(0))


@pytest.mark.parametrize("text", ["x" * 5_000_000], ids=["five megabytes"])
async def test_a_frame_beyond_all_bounds_ends_the_connection(venue: AlpacaStreamLoopback, listen: Listen, text: str):
    (spy,) = await listen("SPY")
    await venue.shout(text)
    assert type(await spy.error()) is NetworkPluginError


async def test_a_fault_of_our_own_is_logged_and_told(
    venue: AlpacaStreamLoopback, listen: Listen, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def fails(row: object) -> Bar:
        raise LookupError("a bug")

    (spy,) = await listen("SPY")
    monkeypatch.setattr(alpaca_line, "minute_of", fails)
    await venue.say("SPY", bar(0))
    assert "LookupError" in str(await spy.error())
    assert "a bug" in caplog.text


# ---- messages as Alpaca's own clients are tested with, where they are beside the repository


@pytest.fixture
def recorded(recordings: Path) -> dict[str, list[Any]]:
    path = recordings / "wire" / "alpaca" / "ws_messages.json"
    if not path.is_file():
        pytest.skip("Alpaca's recordings are not here")
    messages: dict[str, list[Any]] = msgspec.json.decode(path.read_bytes())
    return messages


async def test_recorded_data_is_read_and_what_is_no_minute_of_ours_passed_over(
    venue: AlpacaStreamLoopback, listen: Listen, recorded: dict[str, list[Any]]
):
    spy, amd, aapl = await listen("SPY", "AMD", "AAPL")
    await venue.shout_items(*recorded["data"], *recorded["multi_item_frame"])
    await spy.heard(Bar(1_614_021_300_000, 388.985, 389.13, 388.975, 389.12, 49_378))
    # Its recorded bar begins at second 10.
    assert isinstance(await aapl.error(), NetworkPluginError)
    assert amd.is_listening
    assert amd.bars == []


async def test_every_recorded_error_is_a_plugin_error_that_says_it(
    venue: AlpacaStreamLoopback,
    plugin: AlpacaPlugin,
    recorded: dict[str, list[Any]],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(alpaca_line, "TAKEN_S", 0.0)
    assert recorded["errors"]
    for code, message in recorded["errors"]:
        live = plugin.live_minutes(f"S{code}")
        waiting = asyncio.create_task(anext(live))
        await venue.subscribed(f"S{code}")
        await venue.shout_items({"T": "error", "code": code, "msg": message})
        with pytest.raises(PluginError, match=message):
            await asyncio.wait_for(waiting, PATIENCE_S)
        await venue.deserted()


# ---- readers that are slow


async def test_a_reader_who_does_not_come_keeps_the_newest_of_each_minute_up_to_a_bound(
    venue: AlpacaStreamLoopback, plugin: AlpacaPlugin, monkeypatch: pytest.MonkeyPatch, listen: Listen
):
    monkeypatch.setattr(alpaca_line, "MOST_WAITING", 50)
    slow = plugin.live_minutes("SLOW")
    first = asyncio.create_task(anext(slow))
    await venue.subscribed("SLOW")
    await venue.say("SLOW", bar(0))
    await asyncio.wait_for(first, PATIENCE_S)
    (spy,) = await listen("SPY")
    for n in range(20):
        await venue.say("SLOW", bar(1, volume=n), kind="u")
    for n in range(1, 80):
        await venue.say("SLOW", bar(n))
    await venue.say("SPY", bar(0))
    await spy.heard(bar(0))
    assert (await anext(slow)).bars == tuple(bar(n) for n in range(1, 51))
    with pytest.raises(NetworkPluginError, match="wait to be read"):
        await anext(slow)
    await venue.subscribed("SPY")


# ---- its life


async def test_a_plugin_that_is_not_open_has_no_stream(venue: AlpacaStreamLoopback):
    plugin = make_plugin(venue)
    with pytest.raises(PluginError, match="not open"):
        await anext(plugin.live_minutes("SPY"))
    await plugin.open()
    await plugin.close()
    with pytest.raises(PluginError, match="not open"):
        await anext(plugin.live_minutes("SPY"))
    assert venue.opened == 0


async def test_a_generator_that_nobody_begins_connects_to_nothing(venue: AlpacaStreamLoopback, plugin: AlpacaPlugin):
    await plugin.live_minutes("SPY").aclose()
    assert venue.opened == 0


@pytest.mark.parametrize("rude", [False, True])
async def test_closing_the_plugin_ends_every_stream_in_about_a_second_at_most(
    venue: AlpacaStreamLoopback, plugin: AlpacaPlugin, listen: Listen, *, rude: bool
):
    venue.rude = rude
    ears = await listen(*(f"S{n}" for n in range(50)))
    began_s = time.monotonic()
    await plugin.close()
    assert time.monotonic() - began_s < alpaca_line.GOODBYE_S + 1.5
    for ear in ears:
        assert isinstance(await ear.error(), NetworkPluginError)
    await venue.deserted()
    assert not [task for task in asyncio.all_tasks() if "Alpaca" in task.get_name()]


async def test_closing_the_plugin_while_it_connects_ends_that_too(venue: AlpacaStreamLoopback, plugin: AlpacaPlugin):
    venue.unanswered = {"connect"}
    ear = Ear(plugin, "SPY")
    await venue.until(lambda: bool(venue.connections))
    await plugin.close()
    assert isinstance(await ear.error(), NetworkPluginError)
    await venue.deserted()


async def test_a_plugin_can_be_opened_again(venue: AlpacaStreamLoopback, plugin: AlpacaPlugin, listen: Listen):
    await listen("SPY")
    await plugin.close()
    await venue.deserted()
    await plugin.open()
    (spy,) = await listen("SPY")
    await venue.say("SPY", bar(0))
    await spy.heard(bar(0))


async def test_a_listener_that_is_cancelled_leaves_nothing_behind(venue: AlpacaStreamLoopback, plugin: AlpacaPlugin):
    for _ in range(5):
        task = asyncio.create_task(anext(plugin.live_minutes("SPY")))
        await venue.subscribed("SPY")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await venue.deserted()
    assert venue.opened == 5


async def test_listeners_cancelled_at_any_moment_leave_nothing_behind(
    venue: AlpacaStreamLoopback, plugin: AlpacaPlugin
):
    for n in range(40):
        task = asyncio.create_task(anext(plugin.live_minutes("SPY")))
        for _ in range(n):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    # The venue may still be busy with those that have gone, so it listens to a symbol that none of them wanted.
    ear = Ear(plugin, "BAC")
    await venue.until(lambda: "BAC" in venue.subscriptions)
    await venue.say("BAC", bar(0))
    await ear.heard(bar(0))
    await ear.stop()
    await venue.deserted()


async def test_the_stream_and_the_calls_use_one_plugin_at_once(venue: AlpacaStreamLoopback):
    async with AlpacaLoopback(stocks={"SPY": [bar(0)]}) as rest:
        plugin = make_plugin(venue, **rest.options)
        await plugin.open()
        ear = Ear(plugin, "SPY")
        await venue.subscribed("SPY")
        assert set(await plugin.fetch_symbols()) == {"SPY"}
        await venue.say("SPY", bar(1))
        await ear.heard(bar(1))
        await plugin.close()
