import logging
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from random import Random

import pytest

from domain.bar import Bar, fold, within
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from plugins.alpaca import AlpacaPlugin
from plugins.base import (
    AuthenticationPluginError,
    Capabilities,
    Credentials,
    NetworkPluginError,
    Page,
    PluginConfig,
    PluginError,
    PluginFeatureNotSupportedError,
    RateLimitPluginError,
    SymbolNotFoundPluginError,
)
from tests.loopback import alpaca
from tests.loopback.alpaca import KEY, SECRET, AlpacaLoopback, Fault, asset, midnight_in_new_york, row, says

#: Monday, 2024-01-08, 14:30 UTC: New York opens.
START_MS = 1_704_724_200_000
#: Sunday, 2024-03-10: the clocks went forward in New York.
SPRING_MS = 1_710_028_800_000
HOUR = TimeRange(START_MS, START_MS + HOUR_MS)


def bar_at(ts_ms: int) -> Bar:
    low = 100 + ts_ms // MINUTE_MS % 97
    return Bar(ts_ms, low + 1.0, low + 3.0, float(low), low + 2.0, 10.0 + ts_ms // MINUTE_MS % 7)


def minutes(start_ms: int, count: int, *, silent: float = 0) -> list[Bar]:
    chance = Random(7)
    times = range(start_ms, start_ms + count * MINUTE_MS, MINUTE_MS)
    return [bar_at(ts_ms) for ts_ms in times if chance.random() >= silent]


@pytest.fixture
async def venue() -> AsyncIterator[AlpacaLoopback]:
    loopback = AlpacaLoopback(
        stocks={"SPY": minutes(START_MS, 390, silent=0.1), "QUIET": []},
        crypto={"BTC/USD": minutes(START_MS, 600, silent=0.1)},
        daily={"SPY": [bar_at(SPRING_MS + n * DAY_MS) for n in (-3, -2, 1, 2)]},
    )
    async with loopback:
        yield loopback


def make_plugin(
    venue: AlpacaLoopback,
    market: str = "stocks",
    *,
    key: str = KEY,
    secret: str = SECRET,
    timeout_s: float = 10,
    **options: object,
) -> AlpacaPlugin:
    config = PluginConfig(
        provider="alpaca",
        credentials=Credentials(key=key, secret=secret),
        options={**venue.options, "market": market, **options},
        timeout_s=timeout_s,
    )
    return AlpacaPlugin(config)


@pytest.fixture
async def stocks(venue: AlpacaLoopback) -> AsyncIterator[AlpacaPlugin]:
    plugin = make_plugin(venue)
    await plugin.open()
    yield plugin
    await plugin.close()


@pytest.fixture
async def crypto(venue: AlpacaLoopback) -> AsyncIterator[AlpacaPlugin]:
    plugin = make_plugin(venue, "crypto")
    await plugin.open()
    yield plugin
    await plugin.close()


async def all_pages(plugin: AlpacaPlugin, symbol: str, timeframe: Timeframe, wanted: TimeRange) -> list[Page]:
    """As the services page: on from where the last answer came."""
    pages, start_ms = [], wanted.start_ms
    while start_ms < wanted.end_ms:
        pages.append(await plugin.fetch_page(symbol, timeframe, TimeRange(start_ms, wanted.end_ms)))
        span = pages[-1].covered.span
        assert span is not None
        assert span.end_ms > start_ms
        start_ms = span.end_ms
    return pages


# ---- symbols


async def test_active_assets_of_the_class_are_the_symbols(stocks: AlpacaPlugin, crypto: AlpacaPlugin):
    shares, pairs = await stocks.fetch_symbols(), await crypto.fetch_symbols()
    assert set(shares) == {"SPY", "QUIET"}
    assert (shares["SPY"].type, shares["SPY"].calendar, shares["SPY"].name) == ("stock", "XNYS", "SPY of the loopback")
    assert set(pairs) == {"BTC/USD"}
    assert (pairs["BTC/USD"].type, pairs["BTC/USD"].calendar) == ("crypto", None)


async def test_crypto_pairs_without_a_slash_get_one(venue: AlpacaLoopback, crypto: AlpacaPlugin):
    venue.assets = [asset(symbol, "crypto") for symbol in ("BTCUSD", "ETHUSDT", "ETH/BTC", "SOLUSDC", "ODD")]
    assert set(await crypto.fetch_symbols()) == {"BTC/USD", "ETH/USDT", "ETH/BTC", "SOL/USDC", "ODD"}


async def test_assets_that_cannot_be_read_are_left_out(
    venue: AlpacaLoopback, stocks: AlpacaPlugin, caplog: pytest.LogCaptureFixture
):
    venue.assets = [asset("SPY"), {"class": "us_equity"}, "SPY", None, {"symbol": 5}, asset("BTC/USD", "crypto")]
    with caplog.at_level(logging.WARNING, logger="plugins"):
        assert set(await stocks.fetch_symbols()) == {"SPY"}
    assert "5 assets could not be read" in caplog.text


@pytest.mark.parametrize("assets", [[], {}, {"message": "later"}, [None], "assets", [{"symbol": ""}]])
async def test_a_list_of_assets_that_holds_none_is_a_fault(venue: AlpacaLoopback, stocks: AlpacaPlugin, assets: object):
    venue.assets = assets
    with pytest.raises(NetworkPluginError):
        await stocks.fetch_symbols()


# ---- bars


async def test_one_call_gives_the_minutes_of_a_range_and_vouches_for_all_of_it(
    venue: AlpacaLoopback, stocks: AlpacaPlugin
):
    page = await stocks.fetch_page("SPY", Timeframe.M1, HOUR)
    assert page.bars == within(venue.stocks["SPY"], [HOUR])
    assert page.covered == RangeSet((HOUR,))
    assert page.rejected == []
    assert venue.calls == [
        (
            "/v2/stocks/bars",
            {
                "symbols": "SPY",
                "timeframe": "1Min",
                "start": "2024-01-08T14:30:00.000Z",
                "end": "2024-01-08T15:29:59.999Z",
                "limit": "10000",
                "sort": "asc",
                "adjustment": "raw",
                "feed": "iex",
            },
        )
    ]


async def test_the_minute_at_the_end_of_a_range_belongs_to_the_next(venue: AlpacaLoopback, crypto: AlpacaPlugin):
    venue.crypto["BTC/USD"] = minutes(START_MS, 120)
    page = await crypto.fetch_page("BTC/USD", Timeframe.M1, HOUR)
    assert [bar.ts for bar in page.bars] == list(range(*HOUR, MINUTE_MS))


@pytest.mark.parametrize("timeframe", [Timeframe.M1, Timeframe.M5, Timeframe.M15, Timeframe.M30, Timeframe.H1])
@pytest.mark.parametrize("rows", [1, 7, 100, 10_000])
async def test_pages_of_any_size_make_up_the_range_without_a_seam(
    venue: AlpacaLoopback, crypto: AlpacaPlugin, timeframe: Timeframe, rows: int
):
    venue.page_rows = rows
    start_ms = timeframe.ceil(START_MS)
    wanted = TimeRange(start_ms, start_ms + 4 * HOUR_MS)
    venue.crypto["BTC/USD"] = minutes(start_ms, 60 if rows == 1 else 300, silent=0.3)
    pages = await all_pages(crypto, "BTC/USD", timeframe, wanted)
    expected = within(fold(venue.crypto["BTC/USD"], timeframe), [wanted])
    assert [bar for page in pages for bar in page.bars] == expected
    assert len(pages) == max(1, -(-len(expected) // rows))
    assert all(left.covered.span.end_ms == left.bars[-1].ts + timeframe.width_ms for left, _ in pairwise(pages))


async def test_the_feed_can_be_chosen(venue: AlpacaLoopback):
    plugin = make_plugin(venue, feed="sip")
    await plugin.open()
    await plugin.fetch_page("SPY", Timeframe.M1, HOUR)
    await plugin.close()
    assert venue.calls[-1][1]["feed"] == "sip"


async def test_a_quiet_symbol_has_an_empty_page_that_covers_the_range(stocks: AlpacaPlugin):
    for symbol in ("QUIET", "UNHEARD"):
        page = await stocks.fetch_page(symbol, Timeframe.M1, HOUR)
        assert (list(page.bars), page.covered) == ([], RangeSet((HOUR,)))


async def test_daily_bars_are_dated_by_the_session_across_a_change_of_the_clocks(
    venue: AlpacaLoopback, stocks: AlpacaPlugin
):
    wanted = TimeRange(SPRING_MS - 3 * DAY_MS, SPRING_MS + 2 * DAY_MS)
    page = await stocks.fetch_page("SPY", Timeframe.D1, wanted)
    assert [bar.ts for bar in page.bars] == [SPRING_MS + n * DAY_MS for n in (-3, -2, 1)]
    assert page.covered == RangeSet((wanted,))
    assert venue.calls[-1][1]["timeframe"] == "1Day"
    # Five hours behind UTC before, four after; the end is inclusive.
    assert venue.calls[-1][1]["start"] == "2024-03-07T05:00:00.000Z"
    assert venue.calls[-1][1]["end"] == "2024-03-12T03:59:59.999Z"


async def test_daily_bars_page_by_session_dates(venue: AlpacaLoopback, stocks: AlpacaPlugin):
    venue.page_rows = 1
    pages = await all_pages(stocks, "SPY", Timeframe.D1, TimeRange(SPRING_MS - 5 * DAY_MS, SPRING_MS + 5 * DAY_MS))
    assert [bar for page in pages for bar in page.bars] == venue.daily["SPY"]


async def test_a_session_date_is_not_over_before_new_yorks_day(venue: AlpacaLoopback, stocks: AlpacaPlugin):
    venue.now_ms = SPRING_MS + 2 * DAY_MS + HOUR_MS
    page = await stocks.fetch_page("SPY", Timeframe.D1, TimeRange(SPRING_MS, SPRING_MS + 2 * DAY_MS))
    # 01:00 UTC is 21:00 in New York.
    assert page.venue_ms == SPRING_MS + DAY_MS + 21 * HOUR_MS
    page = await stocks.fetch_page("SPY", Timeframe.M1, HOUR)
    assert page.venue_ms == venue.now_ms


async def test_an_empty_page_before_others_is_followed(venue: AlpacaLoopback, stocks: AlpacaPlugin):
    token = alpaca.base64.b64encode(b"0").decode()
    venue.faults += [says(200, {"bars": {}, "next_page_token": token})] * 2
    page = await stocks.fetch_page("SPY", Timeframe.M1, HOUR)
    assert page.bars == within(venue.stocks["SPY"], [HOUR])
    assert page.covered == RangeSet((HOUR,))
    assert [call[1].get("page_token") for call in venue.calls] == [None, token, token]


async def test_empty_pages_without_end_account_for_nothing(venue: AlpacaLoopback, stocks: AlpacaPlugin):
    venue.faults += [says(200, {"bars": {"QQQ": [row(bar_at(START_MS))]}, "next_page_token": "MA=="})] * 50
    page = await stocks.fetch_page("SPY", Timeframe.M1, HOUR)
    assert (list(page.bars), page.covered) == ([], RangeSet())
    assert len(venue.calls) < 10


def test_timeframes_that_alpaca_aligns_otherwise_are_not_its_own_here():
    def capabilities_of(market: str) -> Capabilities:
        return AlpacaPlugin(PluginConfig(provider="alpaca", options={"market": market})).capabilities

    assert capabilities_of("stocks").folds_below is Timeframe.D1
    assert capabilities_of("stocks").native_for(Timeframe.H4) is Timeframe.H1
    assert capabilities_of("stocks").native_for(Timeframe.W1) is Timeframe.D1
    assert capabilities_of("crypto").native_for(Timeframe.D1) is Timeframe.H1
    assert capabilities_of("crypto").native_for(Timeframe.MN1) is Timeframe.H1


async def test_a_timeframe_that_is_not_native_is_refused(crypto: AlpacaPlugin):
    with pytest.raises(PluginFeatureNotSupportedError):
        await crypto.fetch_page("BTC/USD", Timeframe.D1, TimeRange(0, DAY_MS))


# ---- rows


def page_of(rows: Sequence[object], token: str | None = None) -> Fault:
    return says(200, {"bars": {"SPY": list(rows)}, "next_page_token": token})


GOOD = [row(bar_at(START_MS + n * MINUTE_MS)) for n in range(60)]


def spoilt(n: int, **fields: object) -> list[dict[str, object]]:
    """An hour of good rows, but for one."""
    return [*GOOD[:n], {**GOOD[n], **fields}, *GOOD[n + 1 :]]


def without(*spans: tuple[int, int]) -> RangeSet:
    """The hour without spans of minutes."""
    return RangeSet((HOUR,)) - RangeSet((START_MS + a * MINUTE_MS, START_MS + b * MINUTE_MS) for a, b in spans)


@pytest.mark.parametrize(
    "fields",
    [
        {"h": 1.0},
        {"l": 1e9},
        {"o": None},
        {"c": "high"},
        {"v": -1},
        {"v": True},
        {"o": [1]},
        {"c": 10**400},
        {"t": "2024-01-08T14:35:30Z"},
    ],
    ids=str,
)
async def test_a_bad_row_is_thrown_away_and_its_minute_is_not_accounted_for(
    venue: AlpacaLoopback, stocks: AlpacaPlugin, fields: dict[str, object]
):
    venue.faults.append(says(200, alpaca_json(spoilt(5, **fields))))
    page = await stocks.fetch_page("SPY", Timeframe.M1, HOUR)
    assert [bar.ts for bar in page.bars] == [START_MS + n * MINUTE_MS for n in range(60) if n != 5]
    assert page.covered == without((5, 6))
    assert len(page.rejected) == 1


def alpaca_json(rows: list[dict[str, object]]) -> bytes:
    """A page with numbers of any length."""
    return alpaca.web.json_response({"bars": {"SPY": rows}, "next_page_token": None}).body


@pytest.mark.parametrize("n", [0, 30, 59])
@pytest.mark.parametrize(
    "stamp", [None, 5, "", "soon", "2024-01-08T14:31:00", "9999-99-99T00:00:00Z", "0001-01-01T00:00Z"]
)
async def test_a_row_without_a_time_leaves_open_what_lies_between_its_neighbours(
    venue: AlpacaLoopback, stocks: AlpacaPlugin, n: int, stamp: object
):
    venue.faults.append(page_of(spoilt(n, t=stamp)))
    page = await stocks.fetch_page("SPY", Timeframe.M1, HOUR)
    assert len(page.bars) == 59
    assert page.covered == without((n, n + 1))
    assert len(page.rejected) == 1


@pytest.mark.parametrize("thing", [None, 7, "row", [1, 2, 3, 4, 5, 6], {}])
async def test_what_is_no_row_leaves_open_what_lies_between_its_neighbours(
    venue: AlpacaLoopback, stocks: AlpacaPlugin, thing: object
):
    venue.faults.append(page_of([*GOOD[:10], thing, *GOOD[20:30], thing]))
    page = await stocks.fetch_page("SPY", Timeframe.M1, HOUR)
    assert len(page.bars) == 20
    assert page.covered == without((10, 20), (30, 60))


async def test_rows_out_of_order_are_put_in_order(venue: AlpacaLoopback, stocks: AlpacaPlugin):
    venue.faults.append(page_of([*GOOD[30:], *reversed(GOOD[:30])]))
    page = await stocks.fetch_page("SPY", Timeframe.M1, HOUR)
    assert [bar.ts for bar in page.bars] == list(range(*HOUR, MINUTE_MS))
    assert page.covered == RangeSet((HOUR,))


async def test_rows_out_of_order_before_another_page_account_for_themselves_only(
    venue: AlpacaLoopback, stocks: AlpacaPlugin
):
    venue.faults.append(page_of([GOOD[50], GOOD[20], GOOD[10]], "more"))
    page = await stocks.fetch_page("SPY", Timeframe.M1, HOUR)
    assert [bar.ts for bar in page.bars] == [START_MS + n * MINUTE_MS for n in (10, 20, 50)]
    assert page.covered == without((0, 10), (11, 20), (21, 50), (51, 60))


async def test_a_doubled_row_is_one_bar(venue: AlpacaLoopback, stocks: AlpacaPlugin):
    venue.faults.append(page_of([*GOOD[:9], GOOD[8], *GOOD[9:]]))
    page = await stocks.fetch_page("SPY", Timeframe.M1, HOUR)
    assert [bar.ts for bar in page.bars] == list(range(*HOUR, MINUTE_MS))
    assert (page.covered, page.rejected) == (RangeSet((HOUR,)), [])


async def test_rows_that_contradict_each_other_are_all_thrown_away(venue: AlpacaLoopback, stocks: AlpacaPlugin):
    venue.faults.append(page_of([*GOOD[:9], {**GOOD[8], "v": 1}, GOOD[8], *GOOD[9:]]))
    page = await stocks.fetch_page("SPY", Timeframe.M1, HOUR)
    assert START_MS + 8 * MINUTE_MS not in {bar.ts for bar in page.bars}
    assert page.covered == without((8, 9))
    assert "two different bars at 2024-01-08T14:38:00.000Z" in page.rejected[0]


async def test_rows_outside_the_range_are_left_out(venue: AlpacaLoopback, stocks: AlpacaPlugin):
    venue.faults.append(page_of([row(bar_at(START_MS - MINUTE_MS)), *GOOD, row(bar_at(HOUR.end_ms))]))
    page = await stocks.fetch_page("SPY", Timeframe.M1, HOUR)
    assert [bar.ts for bar in page.bars] == list(range(*HOUR, MINUTE_MS))
    assert (page.covered, page.rejected) == (RangeSet((HOUR,)), [])


async def test_a_daily_bar_that_is_not_of_new_yorks_midnight_is_thrown_away(
    venue: AlpacaLoopback, stocks: AlpacaPlugin
):
    days = [midnight_in_new_york(SPRING_MS + n * DAY_MS) for n in range(3)]
    venue.faults.append(page_of([row(bar_at(days[0])), row(bar_at(days[1] + HOUR_MS)), row(bar_at(days[2]))]))
    wanted = TimeRange(SPRING_MS, SPRING_MS + 3 * DAY_MS)
    page = await stocks.fetch_page("SPY", Timeframe.D1, wanted)
    assert [bar.ts for bar in page.bars] == [SPRING_MS, SPRING_MS + 2 * DAY_MS]
    assert page.covered == RangeSet((wanted,)) - RangeSet.of(SPRING_MS + DAY_MS, SPRING_MS + 2 * DAY_MS)


@pytest.mark.parametrize("body", [{"bars": None, "next_page_token": None}, {"bars": {"SPY": None}}, {}])
async def test_bars_that_are_null_are_an_empty_page(venue: AlpacaLoopback, stocks: AlpacaPlugin, body: object):
    venue.faults.append(says(200, body))
    page = await stocks.fetch_page("SPY", Timeframe.M1, HOUR)
    assert (list(page.bars), page.covered) == ([], RangeSet((HOUR,)))


# ---- faults

SIP = {"message": "subscription does not permit querying recent SIP data"}
OLD_SIP = {"code": 42210000, "message": "end is too late for subscription"}


@pytest.mark.parametrize(
    ("fault", "error", "told"),
    [
        (says(401, {"message": "unauthorized"}), AuthenticationPluginError, "401: unauthorized"),
        (says(403, {"message": "forbidden."}), AuthenticationPluginError, "CANDLERY_ALPACA_KEY_ID"),
        (says(403), AuthenticationPluginError, "403"),
        (says(403, "<html>go away</html>"), AuthenticationPluginError, "403"),
        (says(403, SIP), PluginFeatureNotSupportedError, "CANDLERY_ALPACA_FEED=iex"),
        (says(422, OLD_SIP), PluginFeatureNotSupportedError, "CANDLERY_ALPACA_FEED=iex"),
        (says(429, "too many requests"), RateLimitPluginError, "429: too many requests"),
        (says(500, {"message": "internal server error"}), NetworkPluginError, "500: internal server error"),
        (says(502, "<html>Bad Gateway</html>"), NetworkPluginError, "answered 502$"),
        (says(503), NetworkPluginError, "503"),
        (says(504, b"\xff\xfe"), NetworkPluginError, "504"),
        (says(408), NetworkPluginError, "408"),
        (says(400, {"message": "invalid symbol: S.P.Y"}), SymbolNotFoundPluginError, "invalid symbol: S.P.Y"),
        (says(422, {"message": "Invalid symbol"}), SymbolNotFoundPluginError, "422"),
        (says(400, {"message": "invalid timeframe"}), PluginError, "400: invalid timeframe"),
        (says(404, {"message": "endpoint not found."}), PluginError, "404"),
        (says(422, {"code": 40010001, "message": "limit is required"}), PluginError, "limit is required"),
        (says(418, {"message": ["odd"]}), PluginError, "418"),
        (says(302, headers={"Location": "https://elsewhere.example/"}), PluginError, "302"),
        (says(204), PluginError, "204"),
        (says(200, "<!DOCTYPE html><html></html>"), NetworkPluginError, "not JSON"),
        (says(200), NetworkPluginError, "not JSON"),
        (says(200, b'{"bars": {"SPY": [{"t": "2024-01-08T14:30:00Z", "o": 1'), NetworkPluginError, "not JSON"),
        (says(200, b'{"bars": {"SPY": "\xff"}}'), NetworkPluginError, "not JSON"),
        (says(200, b"[" * 100_000), NetworkPluginError, "not JSON"),
        (says(200, {"message": "try again"}), NetworkPluginError, "no bars"),
        (says(200, []), NetworkPluginError, "no bars"),
        (says(200, "null"), NetworkPluginError, "no bars"),
        (says(200, {"bars": []}), NetworkPluginError, "page of bars"),
        (says(200, {"bars": "many"}), NetworkPluginError, "no list"),
        (says(200, {"bars": {"SPY": {"t": 1}}}), NetworkPluginError, "no list"),
        (says(200, {"bars": {"SPY": "many"}}), NetworkPluginError, "no list"),
        (says(200, {"bars": {}, "next_page_token": 5}), NetworkPluginError, "page of bars"),
        (alpaca.drops_within_the_body, NetworkPluginError, "cannot be reached"),
    ],
)
async def test_each_fault_is_told_by_its_class_and_passes(
    venue: AlpacaLoopback, stocks: AlpacaPlugin, fault: Fault, error: type[PluginError], told: str
):
    venue.faults.append(fault)
    with pytest.raises(error, match=told) as caught:
        await stocks.fetch_page("SPY", Timeframe.M1, HOUR)
    assert type(caught.value) is error
    assert len(venue.calls) == 1
    assert (await stocks.fetch_page("SPY", Timeframe.M1, HOUR)).covered == RangeSet((HOUR,))


async def test_a_connection_that_is_dropped_again_and_again_is_told(venue: AlpacaLoopback, stocks: AlpacaPlugin):
    # The HTTP client itself tries once more, since the venue may close an idle connection at any time.
    venue.faults += [alpaca.drops, alpaca.drops]
    with pytest.raises(NetworkPluginError, match="cannot be reached"):
        await stocks.fetch_page("SPY", Timeframe.M1, HOUR)
    assert (await stocks.fetch_page("SPY", Timeframe.M1, HOUR)).covered == RangeSet((HOUR,))


async def test_a_venue_that_hangs_is_left_after_the_time_out(venue: AlpacaLoopback):
    plugin = make_plugin(venue, timeout_s=0.3)
    await plugin.open()
    venue.faults.append(alpaca.hangs)
    with pytest.raises(NetworkPluginError, match=r"did not answer within 0\.3 s"):
        await plugin.fetch_page("SPY", Timeframe.M1, HOUR)
    await plugin.close()


async def test_a_venue_that_is_gone_cannot_be_reached(venue: AlpacaLoopback):
    plugin = make_plugin(venue, data_url="http://127.0.0.1:1")
    await plugin.open()
    with pytest.raises(NetworkPluginError, match="cannot be reached"):
        await plugin.fetch_page("SPY", Timeframe.M1, HOUR)
    await plugin.close()


@pytest.mark.parametrize("address", ["data", "http://", "ftp://data.example", "http://[::1"])
async def test_an_address_that_is_none_is_told(venue: AlpacaLoopback, address: str):
    plugin = make_plugin(venue, data_url=address)
    await plugin.open()
    with pytest.raises(PluginError):
        await plugin.fetch_page("SPY", Timeframe.M1, HOUR)
    await plugin.close()


NOW_MS = START_MS + 10 * HOUR_MS


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"Retry-After": "7"}, 7),
        ({"X-RateLimit-Reset": str(NOW_MS // 1000 + 42)}, 42),
        ({"X-RateLimit-Reset": str(NOW_MS // 1000 - 5)}, 0),
        ({"Retry-After": "3", "X-RateLimit-Reset": str(NOW_MS // 1000 + 42)}, 3),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "1e99"}, 3600),
        ({"X-RateLimit-Reset": "Infinity"}, None),
        ({}, None),
    ],
)
async def test_too_many_calls_wait_as_long_as_alpaca_says(
    venue: AlpacaLoopback, stocks: AlpacaPlugin, headers: dict[str, str], wait_s: float | None
):
    venue.now_ms = NOW_MS
    venue.faults.append(says(429, {"message": "too many requests."}, headers=headers))
    with pytest.raises(RateLimitPluginError) as caught:
        await stocks.fetch_page("SPY", Timeframe.M1, HOUR)
    assert caught.value.retry_after_s == wait_s


async def test_a_date_that_is_none_is_no_clock(venue: AlpacaLoopback, stocks: AlpacaPlugin):
    venue.faults.append(says(200, {"bars": {}}, headers={"Date": "yesterday"}))
    assert (await stocks.fetch_page("SPY", Timeframe.M1, HOUR)).venue_ms is None


async def test_a_symbol_that_alpaca_calls_invalid_is_not_found(stocks: AlpacaPlugin):
    with pytest.raises(SymbolNotFoundPluginError, match="SPY:NYSE"):
        await stocks.fetch_page("SPY:NYSE", Timeframe.M1, HOUR)


async def test_a_market_that_alpaca_has_not_is_refused(venue: AlpacaLoopback):
    with pytest.raises(PluginError, match="stocks and crypto"):
        make_plugin(venue, "forex")


# ---- secrets


@pytest.mark.parametrize(("key", "secret"), [("", ""), (KEY, ""), ("", SECRET)])
async def test_without_keys_nothing_is_asked_and_the_settings_are_named(venue: AlpacaLoopback, key: str, secret: str):
    plugin = make_plugin(venue, key=key, secret=secret)
    await plugin.open()
    for asking in (plugin.fetch_symbols(), plugin.fetch_page("SPY", Timeframe.M1, HOUR)):
        with pytest.raises(AuthenticationPluginError, match="CANDLERY_ALPACA_KEY_ID and CANDLERY_ALPACA_SECRET_KEY"):
            await asking
    await plugin.close()
    assert venue.calls == []


async def test_wrong_keys_are_refused(venue: AlpacaLoopback):
    plugin = make_plugin(venue, secret="wrong")
    await plugin.open()
    with pytest.raises(AuthenticationPluginError, match="403: forbidden"):
        await plugin.fetch_symbols()
    await plugin.close()


@pytest.mark.parametrize("character", ["\n", "\r", "\0"])
async def test_keys_that_cannot_be_sent_are_told_without_showing_them(venue: AlpacaLoopback, character: str):
    plugin = make_plugin(venue, secret=f"sesame{character}open")
    await plugin.open()
    with pytest.raises(PluginError) as caught:
        await plugin.fetch_symbols()
    assert "sesame" not in str(caught.value)
    await plugin.close()
    assert venue.calls == []


async def test_no_error_shows_a_secret(venue: AlpacaLoopback, stocks: AlpacaPlugin):
    venue.faults += [says(status, f"{KEY} and {SECRET} are no good") for status in (400, 401, 429, 500)]
    for _ in range(4):
        with pytest.raises(PluginError, match=r"\*\*\* and \*\*\* are no good") as caught:
            await stocks.fetch_page("SPY", Timeframe.M1, HOUR)
        assert SECRET not in repr(caught.value)


async def test_a_redirection_takes_no_secret_elsewhere(venue: AlpacaLoopback, stocks: AlpacaPlugin):
    async with AlpacaLoopback() as other:
        venue.faults.append(says(307, headers={"Location": f"{other.url}/v2/stocks/bars"}))
        with pytest.raises(PluginError, match="307"):
            await stocks.fetch_page("SPY", Timeframe.M1, HOUR)
        assert other.calls == []


# ---- lifecycle


async def test_a_plugin_that_is_not_open_says_so(venue: AlpacaLoopback):
    plugin = make_plugin(venue)
    with pytest.raises(PluginError, match="not open"):
        await plugin.fetch_symbols()
    await plugin.open()
    assert await plugin.fetch_symbols()
    await plugin.close()
    with pytest.raises(PluginError, match="not open"):
        await plugin.fetch_symbols()


async def test_opening_twice_makes_one_session(venue: AlpacaLoopback):
    plugin = make_plugin(venue)
    await plugin.open()
    session = plugin._session
    await plugin.open()
    assert plugin._session is session
    await plugin.close()
    assert session is not None
    assert session.closed
