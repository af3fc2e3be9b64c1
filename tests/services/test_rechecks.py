"""Second looks at emptiness, on both databases: late bars are found, the rest is confirmed, and nobody is pestered."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from domain.bar import Bar
from domain.errors import DatabaseUnavailableError, UnknownMarketError, UnknownProviderError
from domain.series import Series
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from plugins.base import Capabilities, MarketPlugin, NetworkPluginError, Page, PluginConfig
from services import rechecks
from services.bar_store import BarStore
from services.coverage import tile
from services.feed import FeedLimits
from services.fetch import ErrandLimits, Fetch, StoreKeeper
from services.listing_search import ListingSearch
from services.market_service import MarketService, ProviderSettings
from services.rechecks import Rechecker
from services.sessions import NY_WEEKDAYS, InMemorySessionRepository, SessionService
from services.turns import Turns
from tests.support.clock import ManualClock
from tests.support.market import START_MS, random_minutes
from tests.support.scripted import ScriptedPlugin

M1 = Timeframe.M1
FULL = random_minutes(3, 240, holes=0)
DAY = TimeRange(START_MS, START_MS + DAY_MS)
HOURS = TimeRange(START_MS, START_MS + 4 * HOUR_MS)


class Closable(ScriptedPlugin):
    """Can be out of reach as a whole."""

    opening: Exception | None = None

    async def open(self) -> None:
        if self.opening is not None:
            raise self.opening


class Plugins:
    """A loader of providers that are made already."""

    def __init__(self, plugins: Mapping[str, ScriptedPlugin]) -> None:
        self.plugins = plugins

    def markets(self) -> Sequence[str]:
        return ("test",)

    def find(self, market: str, provider: str) -> Any:
        if market != "test":
            raise UnknownMarketError(f"There is no market {market!r}.")
        if provider not in self.plugins:
            raise UnknownProviderError(f"There is no provider {provider!r}.")
        return Maker(self.plugins[provider])


class Maker:
    def __init__(self, plugin: ScriptedPlugin) -> None:
        self._plugin = plugin

    def __call__(self, config: PluginConfig) -> MarketPlugin:
        return self._plugin

    def __hash__(self) -> int:
        return hash(id(self._plugin))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Maker) and other._plugin is self._plugin

    def get_plugin_key(self) -> str:
        return "scripted"


class World:
    """Providers, a store, and whoever takes second looks."""

    def __init__(self, store: BarStore, clock: ManualClock, **plugins: ScriptedPlugin) -> None:
        self.store, self.clock, self.plugins = store, clock, plugins
        settings = ProviderSettings(options=lambda *_: {}, limits=FeedLimits(attempts=1, total_s=5, patience_s=1))
        self.markets = MarketService(Plugins(plugins), store, settings, clock)  # type: ignore[arg-type]
        self.sessions = SessionService(InMemorySessionRepository(), clock=clock)
        self.listings = ListingSearch(store, self.sessions, clock)

    def rechecker(self, **options: Any) -> Rechecker:
        return Rechecker(self.store, self.markets, self.listings, self.clock, turns=Turns(), **options)

    async def fetch(
        self, wanted: TimeRange, *, provider: str = "one", symbol: str = "A/B", timeframe: Timeframe = M1
    ) -> None:
        listing = await self.markets.find(Series("test", provider, symbol))
        assert listing.feed is not None
        errand = Fetch(
            StoreKeeper(self.store, listing.stored.id, timeframe),
            listing.feed,
            self.clock,
            symbol=symbol,
            timeframe=timeframe,
            limits=ErrandLimits(1000, 60),
        )
        assert await errand.run(RangeSet((wanted,))) is None
        self.calls.clear()

    @property
    def calls(self) -> list[tuple[str, Timeframe, TimeRange]]:
        return self.plugins["one"].calls

    async def verdicts(
        self, wanted: TimeRange, *, provider: str = "one", symbol: str = "A/B", timeframe: Timeframe = M1
    ) -> dict[str, int]:
        """Buckets by verdict."""
        stored = await self.store.find_series(Series("test", provider, symbol))
        assert stored is not None
        knowledge = await self.store.knowledge(stored.id, timeframe, wanted)
        data = await self.store.runs(stored.id, timeframe, wanted, folded=False)
        closed = await self.listings.closed(stored, timeframe, wanted)
        found: Counter[str] = Counter()
        for part in tile(RangeSet((wanted,)), data=data, closed=closed, knowledge=knowledge):
            found[part.verdict.value] += timeframe.buckets_between(*part.range)
        return dict(found)

    async def open_looks(self) -> list[tuple[int, int]]:
        """What waits for a second look."""
        async with self.store.database.connection() as db:
            rows = await db.fetch(
                "SELECT starts, ends FROM coverage_checks WHERE recheck_at IS NOT NULL ORDER BY series_id, starts"
            )
        return [(row["starts"], row["ends"]) for row in rows]


def without(bars: Sequence[Bar], *minutes: int) -> list[Bar]:
    return [bar for bar in bars if (bar.ts - START_MS) // MINUTE_MS not in minutes]


async def test_minutes_that_come_late_end_as_data_and_those_that_never_come_as_no_trades(
    any_store: BarStore, clock: ManualClock
):
    plugin = ScriptedPlugin({"A/B": without(FULL, 7, 8, 100, 200)})
    world = World(any_store, clock, one=plugin)
    looks = world.rechecker()
    await world.fetch(HOURS)
    clock.advance(minutes=59)
    assert await looks.run() == 0
    assert await world.verdicts(HOURS) == {"data": 236, "unconfirmed_empty": 4}
    plugin.market["A/B"] = without(FULL, 8, 200)
    clock.advance(minutes=1)
    assert await looks.run() == 1
    assert [call[2] for call in world.calls] == [TimeRange(START_MS + 7 * MINUTE_MS, START_MS + 201 * MINUTE_MS)]
    assert await world.verdicts(HOURS) == {"data": 238, "no_trades": 2}
    assert await world.open_looks() == []
    clock.advance(days=2)
    assert await looks.run() == 0


async def test_what_has_nothing_left_to_confirm_is_settled_without_a_call_and_never_looked_at_again(
    store: BarStore, clock: ManualClock
):
    world = World(store, clock, one=ScriptedPlugin({"A/B": FULL}))
    await world.fetch(HOURS)
    assert len(await world.open_looks()) <= 1
    clock.advance(hours=1)
    assert await world.rechecker().run() == 0
    assert await world.open_looks() == []


async def test_what_is_vouched_for_needs_no_second_look(store: BarStore, clock: ManualClock):
    vouching = Capabilities(timeframes=(M1,), bars_per_call=500, calls_per_second=10_000, vouches_empty=True)
    world = World(store, clock, one=ScriptedPlugin({"A/B": without(FULL, 7)}, capabilities=vouching))
    await world.fetch(HOURS)
    assert await world.open_looks() == []
    assert await world.verdicts(HOURS) == {"data": 239, "no_trades": 1}


async def test_scattered_minutes_are_asked_for_in_pages_and_leave_no_single_minutes_in_the_ledger(
    any_store: BarStore, clock: ManualClock
):
    bars = random_minutes(5, 1440, holes=0.3)
    world = World(any_store, clock, one=ScriptedPlugin({"A/B": bars}))
    await world.fetch(DAY)
    clock.advance(hours=1)
    assert await world.rechecker().run() == 3
    assert await world.verdicts(DAY) == {"data": len(bars), "no_trades": 1440 - len(bars)}
    async with any_store.database.connection() as db:
        assert await db.fetchval("SELECT count(*) FROM coverage_checks") <= 7


async def test_a_run_keeps_to_its_budget_and_the_next_goes_on(store: BarStore, clock: ManualClock):
    bars = random_minutes(5, 1440, holes=0.3)
    capabilities = Capabilities(timeframes=(M1,), bars_per_call=100, calls_per_second=10_000)
    world = World(store, clock, one=ScriptedPlugin({"A/B": bars}, capabilities=capabilities))
    await world.fetch(DAY)
    clock.advance(hours=1)
    assert await world.rechecker(calls_per_run=0).run() == 0
    looks = world.rechecker(calls_per_run=4)
    calls = [await looks.run() for _ in range(5)]
    assert calls[:3] == [4, 4, 4]
    assert 14 <= sum(calls) <= 16
    asked = [part for _, _, part in world.calls]
    assert asked == sorted(asked), "the oldest first"
    assert len(asked) == sum(calls)
    assert await world.verdicts(DAY) == {"data": len(bars), "no_trades": 1440 - len(bars)}


async def test_a_failed_look_is_put_off_and_loses_nothing(any_store: BarStore, clock: ManualClock):
    plugin = ScriptedPlugin({"A/B": without(FULL, 7)})
    world = World(any_store, clock, one=plugin)
    looks = world.rechecker()
    await world.fetch(HOURS)

    def down(call: int, wanted: TimeRange) -> Page | None:
        raise NetworkPluginError("the venue is down")

    plugin.fault = down
    pauses = []
    for _ in range(7):
        waited = 0
        while await looks.run() == 0:
            clock.advance(hours=1)
            waited += 1
        pauses.append(waited)
    assert pauses == [1, 1, 2, 4, 8, 16, 24]
    assert await world.verdicts(HOURS) == {"data": 239, "unconfirmed_empty": 1}
    plugin.fault = None
    clock.advance(hours=24)
    assert await looks.run() == 1
    assert await world.verdicts(HOURS) == {"data": 239, "no_trades": 1}


async def test_one_bad_series_and_one_bad_provider_do_not_stop_the_others(any_store: BarStore, clock: ManualClock):
    market = {"A/B": without(FULL, 7), "BAD": without(FULL, 7), "C/D": without(FULL, 9)}
    one, two, gone = (Closable(market) for _ in range(3))
    world = World(any_store, clock, one=one, two=two, gone=gone)
    for provider, symbol in [("gone", "A/B"), ("one", "BAD"), ("one", "A/B"), ("one", "C/D"), ("two", "A/B")]:
        await world.fetch(HOURS, provider=provider, symbol=symbol)
    await world.markets.close()
    gone.opening = NetworkPluginError("it does not open")
    del one.market["BAD"]
    clock.advance(hours=1)
    looks = world.rechecker()
    assert await looks.run() == 4
    done = {"data": 239, "no_trades": 1}
    for provider, symbol in [("one", "A/B"), ("one", "C/D"), ("two", "A/B")]:
        assert await world.verdicts(HOURS, provider=provider, symbol=symbol) == done
    for provider, symbol in [("one", "BAD"), ("gone", "A/B")]:
        assert (await world.verdicts(HOURS, provider=provider, symbol=symbol))["unconfirmed_empty"] == 1
    gone.opening = None
    assert await looks.run() == 0, "a provider that did not open is left alone for a while"
    clock.advance(minutes=11)
    assert await looks.run() == 1
    assert await world.verdicts(HOURS, provider="gone") == done


async def test_a_provider_that_fails_for_every_series_is_left_alone_for_the_rest_of_the_run(
    store: BarStore, clock: ManualClock
):
    names = [f"S{n}" for n in range(10)]
    plugin = ScriptedPlugin(dict.fromkeys(names, without(FULL, 7)))
    world = World(store, clock, one=plugin, two=ScriptedPlugin({"A/B": without(FULL, 7)}))
    for name in names:
        await world.fetch(HOURS, symbol=name)
    await world.fetch(HOURS, provider="two")

    def down(call: int, wanted: TimeRange) -> Page | None:
        raise NetworkPluginError("the venue is down")

    plugin.fault = down
    clock.advance(hours=1)
    assert await world.rechecker().run() == 4
    assert await world.verdicts(HOURS, provider="two") == {"data": 239, "no_trades": 1}


async def test_a_provider_that_is_no_more_does_not_stop_the_others(store: BarStore, clock: ManualClock):
    world = World(store, clock, one=ScriptedPlugin({"A/B": without(FULL, 7)}), two=ScriptedPlugin({"A/B": FULL[:9]}))
    await world.fetch(HOURS, provider="two")
    await world.fetch(HOURS)
    del world.plugins["two"]
    clock.advance(hours=1)
    assert await world.rechecker().run() == 1
    assert await world.verdicts(HOURS) == {"data": 239, "no_trades": 1}


async def test_a_stretch_of_years_is_worked_in_bounded_windows(
    store: BarStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
):
    years = TimeRange(START_MS - 700 * DAY_MS, START_MS)
    capabilities = Capabilities(timeframes=(M1,), bars_per_call=525_600, calls_per_second=10_000)
    world = World(store, clock, one=ScriptedPlugin({"A/B": []}, capabilities=capabilities))
    await world.fetch(years)
    assert len(await world.open_looks()) == 1
    read: list[int] = []
    runs = store.runs

    async def counted(series_id: int, timeframe: Timeframe, wanted: TimeRange, *, folded: bool) -> RangeSet:
        read.append(wanted.length_ms)
        return await runs(series_id, timeframe, wanted, folded=folded)

    monkeypatch.setattr(store, "runs", counted)
    clock.advance(hours=1)
    assert await world.rechecker().run() == 23
    assert max(read) == 31 * DAY_MS
    assert await world.open_looks() == []
    assert await world.verdicts(years) == {"no_trades": 700 * 1440}


async def test_a_run_looks_at_so_many_windows_at_most(
    store: BarStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
):
    world = World(store, clock, one=ScriptedPlugin({f"S{n}": without(FULL, 7) for n in range(5)}))
    for n in range(5):
        await world.fetch(HOURS, symbol=f"S{n}")
    monkeypatch.setattr(rechecks, "WINDOWS_PER_RUN", 2)
    clock.advance(hours=1)
    assert [await world.rechecker().run() for _ in range(4)] == [2, 2, 1, 0]


async def test_forming_minutes_are_never_confirmed(any_store: BarStore, clock: ManualClock):
    now = TimeRange(clock.now_ms() - 10 * MINUTE_MS, clock.now_ms() + 10 * MINUTE_MS)
    world = World(any_store, clock, one=ScriptedPlugin({"A/B": FULL}))
    looks = world.rechecker()
    await world.fetch(now)
    assert await world.verdicts(now) == {"unconfirmed_empty": 9, "never_fetched": 11}
    clock.advance(hours=1)
    await looks.run()
    assert await world.verdicts(now) == {"no_trades": 9, "never_fetched": 11}


async def test_a_provider_whose_clock_is_behind_confirms_nothing_and_is_not_asked_again_and_again(
    store: BarStore, clock: ManualClock
):
    plugin = ScriptedPlugin({"A/B": without(FULL, 7)})
    world = World(store, clock, one=plugin)
    await world.fetch(HOURS)

    def behind(call: int, wanted: TimeRange) -> Page:
        return Page([], RangeSet((wanted,)), venue_ms=START_MS)

    plugin.fault = behind
    clock.advance(hours=1)
    looks = world.rechecker()
    assert [await looks.run() for _ in range(3)] == [1, 0, 0]
    assert await world.verdicts(HOURS) == {"data": 239, "unconfirmed_empty": 1}


async def test_closed_hours_are_not_asked_about(store: BarStore, clock: ManualClock):
    # 2022-12-13: open from 14:30 to 21:00 UTC.
    opens = START_MS + 14 * HOUR_MS + 30 * MINUTE_MS
    bars = [bar for bar in random_minutes(5, 1440, holes=0) if opens <= bar.ts < START_MS + 21 * HOUR_MS]
    world = World(store, clock, one=ScriptedPlugin({"A/B": without(bars, 900)}, calendar=NY_WEEKDAYS))
    await world.fetch(DAY)
    clock.advance(hours=1)
    assert await world.rechecker().run() == 1
    assert world.calls[0][2] == TimeRange(START_MS + 900 * MINUTE_MS, START_MS + 901 * MINUTE_MS)
    assert await world.verdicts(DAY) == {"data": 389, "no_trades": 1, "closed_session": 1050}


async def test_what_the_provider_has_forgotten_is_neither_asked_for_nor_confirmed(store: BarStore, clock: ManualClock):
    short = Capabilities(timeframes=(M1,), bars_per_call=500, calls_per_second=10_000, history_bars=720)
    recent = TimeRange(clock.now_ms() - 4 * HOUR_MS, clock.now_ms() - HOUR_MS)
    world = World(store, clock, one=ScriptedPlugin({"A/B": []}, capabilities=short))
    await world.fetch(recent)
    clock.advance(hours=10)
    assert await world.rechecker().run() == 1
    found = await world.verdicts(recent)
    assert set(found) == {"no_trades", "unconfirmed_empty"}
    assert found["no_trades"] == 719 - 11 * 60
    assert await world.open_looks() == []


async def test_other_timeframes_are_looked_at_as_well(any_store: BarStore, clock: ManualClock):
    bars = [bar for bar in FULL if not START_MS + HOUR_MS <= bar.ts < START_MS + 2 * HOUR_MS]
    world = World(any_store, clock, one=ScriptedPlugin({"A/B": bars}))
    await world.fetch(HOURS, timeframe=Timeframe.H1)
    assert await world.verdicts(HOURS, timeframe=Timeframe.H1) == {"data": 3, "unconfirmed_empty": 1}
    clock.advance(hours=1)
    assert await world.rechecker().run() == 1
    assert await world.verdicts(HOURS, timeframe=Timeframe.H1) == {"data": 3, "no_trades": 1}


async def test_a_timeframe_that_the_provider_has_no_more_is_put_off(store: BarStore, clock: ManualClock):
    plugin = ScriptedPlugin({"A/B": []})
    world = World(store, clock, one=plugin)
    await world.fetch(HOURS, timeframe=Timeframe.H1)
    plugin._capabilities = Capabilities(timeframes=(M1,), bars_per_call=500, calls_per_second=10_000)
    clock.advance(hours=1)
    assert await world.rechecker().run() == 0
    assert await world.verdicts(HOURS, timeframe=Timeframe.H1) == {"unconfirmed_empty": 4}
    assert len(await world.open_looks()) == 1


async def test_one_process_of_a_fleet_looks_at_a_time(any_store: BarStore, clock: ManualClock):
    plugin = ScriptedPlugin({"A/B": without(FULL, 7), "C/D": without(FULL, 7)})
    world = World(any_store, clock, one=plugin)
    await world.fetch(HOURS)
    await world.fetch(HOURS, symbol="C/D")
    clock.advance(hours=1)
    first, second = world.rechecker(), world.rechecker()
    found: list[int] = []
    asked = asyncio.Event()
    go_on = asyncio.Event()
    honest = plugin.fetch_page

    async def slow(symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Page:
        asked.set()
        await go_on.wait()
        return await honest(symbol, timeframe, wanted)

    plugin.fetch_page = slow  # type: ignore[method-assign]
    task = asyncio.create_task(first.run())
    async with asyncio.timeout(30):
        await asked.wait()
        found.append(await second.run())
        go_on.set()
        found.append(await task)
    assert found == [0, 2]
    assert await second.run() == 0


async def test_a_run_that_is_broken_off_hands_the_work_on_and_loses_nothing(store: BarStore, clock: ManualClock):
    plugin = ScriptedPlugin({"A/B": without(FULL, 7)})
    world = World(store, clock, one=plugin)
    await world.fetch(HOURS)
    clock.advance(hours=1)
    asked = asyncio.Event()

    async def hangs(symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Page:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    honest = plugin.fetch_page
    plugin.fetch_page = hangs  # type: ignore[method-assign]
    task = asyncio.create_task(world.rechecker().run())
    async with asyncio.timeout(30):
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    plugin.fetch_page = honest  # type: ignore[method-assign]
    assert await world.verdicts(HOURS) == {"data": 239, "unconfirmed_empty": 1}
    assert await world.rechecker().run() == 1
    assert await world.verdicts(HOURS) == {"data": 239, "no_trades": 1}


async def test_a_dead_process_holds_the_lease_no_longer_than_it_lasts(
    store: BarStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
):
    world = World(store, clock, one=ScriptedPlugin({"A/B": without(FULL, 7)}))
    await world.fetch(HOURS)
    clock.advance(hours=1)
    async with store.database.connection() as db:
        await db.execute(
            "INSERT INTO recheck_lease (holder, held_until) VALUES ('dead', clock_timestamp() + interval '1 minute')"
        )
    assert await world.rechecker().run() == 0
    async with store.database.connection() as db:
        await db.execute("UPDATE recheck_lease SET held_until = clock_timestamp() - interval '1 second'")
    assert await world.rechecker().run() == 1


async def test_a_database_that_is_away_ends_the_run(store: BarStore, clock: ManualClock):
    world = World(store, clock, one=ScriptedPlugin({"A/B": without(FULL, 7)}))
    await world.fetch(HOURS)
    await store.database.close()  # type: ignore[attr-defined]
    with pytest.raises(DatabaseUnavailableError):
        await world.rechecker().run()
