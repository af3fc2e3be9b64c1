"""A live series in one process: what it hears, learns and tells."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from domain.bar import Bar, fold
from domain.errors import DatabaseUnavailableError, UnknownSymbolError, UnsupportedTimeframeError
from domain.series import Series, Verdict
from domain.time_range import RangeSet
from domain.timeframe import DAY_MS, MINUTE_MS, Timeframe
from plugins.base import Capabilities
from services import live_timeframe, subscription_service
from services.bar_store import BarStore
from services.broadcast_manager import MemoryBroadcast
from services.live import FeedState, Forming, LiveQuery, LostRange, Settled, Status, StatusEvent
from services.live_store import FeedClaim
from tests.services.test_seam import LIVE_MS, MINUTES_ONLY, PlayedFollower, Stage, a_stage, until
from tests.support.live_client import LiveClient
from tests.support.market import START_MS, random_minutes

MARKET = random_minutes(3, 900, holes=0.0)
BY_TS = {bar.ts: bar for bar in MARKET}
pytestmark = pytest.mark.usefixtures("_in_haste")


@pytest.fixture
def _in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription_service, "LOOK_S", 0.02)
    monkeypatch.setattr(subscription_service, "HASTE_S", 0.01)
    monkeypatch.setattr(live_timeframe, "RETRY_S", 0.01)


@asynccontextmanager
async def staged(store: BarStore, capabilities: Capabilities = MINUTES_ONLY) -> AsyncIterator[Stage]:
    async with a_stage(store, MARKET, MemoryBroadcast(), capabilities=capabilities) as stage:
        yield stage


async def minutes(stage: Stage, count: int) -> None:
    """Close so many minutes."""
    follower = stage.played[-1]
    end = follower.at_ms + count * MINUTE_MS
    stage.house.clock.advance(minutes=count)
    await follower.settle([BY_TS[ts] for ts in range(follower.at_ms, end, MINUTE_MS)], end)


def published(stage: Stage, **fields: object) -> None:
    """A message of the follower about what it did not write."""
    claim = stage.played[-1].claim
    stage.publish(Settled(series_id=claim.series_id, fence=claim.fence, **fields))  # type: ignore[arg-type]


async def test_one_follower_serves_every_client_and_timeframe(store: BarStore) -> None:
    async with staged(store) as stage:
        clients = {tf: LiveClient() for tf in (Timeframe.M1, Timeframe.M5, Timeframe.H1, Timeframe.D1)}
        for timeframe, client in clients.items():
            await stage.join(client, timeframe, last=3)
        await minutes(stage, 130)
        for timeframe, client in clients.items():
            end_ms = timeframe.floor(stage.played[0].at_ms)
            want = [bar for bar in fold(MARKET, timeframe) if bar.ts < end_ms]
            await until(lambda client=client, want=want: client.view == want[-len(client.view) or len(want) :])
            assert client.faults == []
        assert len(stage.played) == 1
        assert [view.clients for view in stage.service.overview()] == [dict.fromkeys(clients, 1)]


async def test_forming_bars_are_folded_for_every_timeframe_and_left_out_where_only_closed_ones_are_wanted(
    store: BarStore,
) -> None:
    async with staged(store) as stage:
        every, closed, hours = LiveClient(), LiveClient(), LiveClient()
        await stage.join(every, Timeframe.M1)
        await stage.join(closed, Timeframe.M1, closed_only=True)
        await stage.join(hours, Timeframe.H1)
        present = BY_TS[LIVE_MS]

        def hours_form() -> bool:
            stage.played[0].form(present)
            return bool(hours.forming)

        await until(hours_form)
        assert every.forming[-1] == present
        assert closed.forming == []
        expected = fold([bar for bar in MARKET if Timeframe.H1.floor(LIVE_MS) <= bar.ts <= LIVE_MS], Timeframe.H1)
        assert hours.forming[-1] == expected[-1]


async def test_what_could_not_be_had_is_told_as_a_gap_in_its_place(store: BarStore) -> None:
    async with staged(store) as stage:
        client = LiveClient()
        await stage.join(client, Timeframe.M1)
        lost = LostRange(LIVE_MS + MINUTE_MS, LIVE_MS + 3 * MINUTE_MS, Verdict.FETCH_FAILED)
        bars = (BY_TS[LIVE_MS], BY_TS[LIVE_MS + 3 * MINUTE_MS])
        published(stage, start_ms=LIVE_MS, end_ms=LIVE_MS + 4 * MINUTE_MS, bars=bars, lost=(lost,))
        told = [type(event).__name__ for event in client.events][-3:]
        assert told == ["BarEvent", "GapEvent", "BarEvent"]
        assert client.gaps[0].range == (lost.start_ms, lost.end_ms)
        assert client.gaps[0].verdict is Verdict.FETCH_FAILED


async def test_a_message_that_was_missed_is_read_from_the_database(store: BarStore) -> None:
    async with staged(store) as stage:
        client = LiveClient()
        await stage.join(client, Timeframe.M1)
        follower, stage.played[0] = (
            stage.played[0],
            PlayedFollower(stage.played[0].claim, stage.store, lambda _message: None),
        )
        await minutes(stage, 3)
        assert follower.at_ms < stage.played[0].at_ms
        await until(lambda: len(client.closed) == 3)
        assert client.closed == [BY_TS[LIVE_MS + n * MINUTE_MS] for n in range(3)]


async def test_what_is_old_or_of_an_older_follower_is_not_told(store: BarStore) -> None:
    async with staged(store) as stage:
        client = LiveClient()
        await stage.join(client, Timeframe.M1)
        await minutes(stage, 2)
        claim = stage.played[0].claim
        stage.publish(Settled(claim.series_id, claim.fence, LIVE_MS, LIVE_MS + MINUTE_MS, (BY_TS[LIVE_MS],)))
        stage.publish(Forming(claim.series_id, claim.fence - 1, BY_TS[LIVE_MS + 2 * MINUTE_MS]))
        stage.publish(Status(claim.series_id, claim.fence - 1, FeedState.DOWN))
        assert len(client.closed) == 2
        assert client.forming == []
        assert client.states == []


async def test_a_corrected_minute_corrects_every_bar_that_it_is_a_part_of(store: BarStore) -> None:
    async with staged(store) as stage:
        one, five, hour = LiveClient(), LiveClient(), LiveClient()
        await stage.join(one, Timeframe.M1, last=10)
        await stage.join(five, Timeframe.M5, last=2)
        await stage.join(hour, Timeframe.H1)
        await minutes(stage, 20)
        other = Bar(LIVE_MS, 5_000, 6_000, 4_000, 5_500, 7)
        await stage.played[0].correct(other)
        await until(lambda: bool(one.corrected and five.corrected))
        assert one.corrected == [other]
        changed = [other if bar.ts == LIVE_MS else bar for bar in MARKET]
        bucket = Timeframe.M5.floor(LIVE_MS)
        assert five.corrected == [bar for bar in fold(changed, Timeframe.M5) if bar.ts == bucket]
        await minutes(stage, 60)
        want = [bar for bar in fold(changed, Timeframe.H1) if bar.ts == Timeframe.H1.floor(LIVE_MS)]
        await until(lambda: hour.view[:1] == want)


async def test_a_minute_corrected_by_somebody_else_is_told_too(store: BarStore) -> None:
    async with staged(store) as stage:
        client = LiveClient()
        await stage.join(client, Timeframe.M1)
        await minutes(stage, 2)
        other = Bar(LIVE_MS, 5_000, 6_000, 4_000, 5_500, 7)
        span = RangeSet.of(LIVE_MS, LIVE_MS + MINUTE_MS)
        await store.record(stage.played[0].claim.series_id, Timeframe.M1, bars=[other], answered=span)
        await until(lambda: client.corrected == [other])


async def test_the_state_of_the_upstream_is_told_to_all_and_to_those_who_come_later(store: BarStore) -> None:
    async with staged(store) as stage:
        early, late = LiveClient(), LiveClient()
        await stage.join(early, Timeframe.M1)
        claim = stage.played[0].claim
        await stage.store.say(claim, FeedState.DOWN, "refused")
        stage.publish(Status(claim.series_id, claim.fence, FeedState.DOWN, "refused"))
        await stage.join(late, Timeframe.M5)
        assert [(event.state, event.detail) for event in (*early.states, *late.states)] == [
            (FeedState.DOWN, "refused")
        ] * 2
        assert isinstance(late.events[-1], StatusEvent)


async def test_a_state_whose_message_was_lost_is_learnt(store: BarStore) -> None:
    async with staged(store) as stage:
        client = LiveClient()
        await stage.join(client, Timeframe.M1)
        await stage.store.say(stage.played[0].claim, FeedState.RECOVERING, "mute")
        await until(lambda: [event.state for event in client.states] == [FeedState.RECOVERING])


async def test_a_series_is_let_go_when_nobody_has_wanted_it_for_a_while(store: BarStore) -> None:
    async with staged(store) as stage:
        stage.registry.grace_s = 0.05
        subscription = await stage.join(LiveClient(), Timeframe.M1)
        subscription.close()
        subscription.close()
        await until(lambda: stage.service.followers.owned == [])
        assert stage.service.overview() == []
        await stage.join(LiveClient(), Timeframe.M1)
        # It may have come while the series was being let go.
        await until(lambda: len(stage.played) == 2)


async def test_what_is_followed_for_the_clients_of_others_is_listed_too(store: BarStore) -> None:
    async with staged(store) as stage:
        await stage.join(LiveClient(), Timeframe.M1)
        stage.service.followers.start(FeedClaim(99, Series("test", "scripted", "FOR/OTHERS"), 1, START_MS))
        [own, other] = stage.service.overview()
        assert (own.clients, own.owner_here) == ({Timeframe.M1: 1}, True)
        assert (other.series.symbol, other.clients, other.owner_here) == ("FOR/OTHERS", {}, True)
        assert other.settled_ms == START_MS
        await stage.service.followers.stop([99])


async def test_nothing_is_told_after_the_end(store: BarStore) -> None:
    async with staged(store) as stage:
        client = LiveClient()
        subscription = await stage.join(client, Timeframe.M1)
        subscription.close()
        before = len(client.events)
        await minutes(stage, 2)
        await asyncio.sleep(0.05)
        assert len(client.events) == before


async def test_a_long_snapshot_is_told_in_parts_as_there_is_room(store: BarStore) -> None:
    async with staged(store) as stage:
        await stage.join(LiveClient(), Timeframe.M1)
        await minutes(stage, 480)
        client = LiveClient()
        waits = 0

        async def room() -> None:
            nonlocal waits
            waits += 1

        client.room = room  # type: ignore[method-assign]
        await stage.join(client, Timeframe.M1, since_ms=START_MS)
        assert client.closed == [bar for bar in MARKET if bar.ts < stage.played[0].at_ms]
        assert waits == 1
        assert client.faults == []


async def test_bad_queries_are_refused_and_leave_nothing_behind(store: BarStore) -> None:
    async with staged(store) as stage:
        with pytest.raises(UnknownSymbolError):
            await stage.service.subscribe(
                LiveQuery(series=Series("test", "scripted", "NO/PE"), timeframe=Timeframe.M1), LiveClient()
            )
        assert stage.service.overview() == []


async def test_a_timeframe_that_the_provider_cannot_make_is_refused(store: BarStore) -> None:
    days = Capabilities(timeframes=(Timeframe.D1,), bars_per_call=500, calls_per_second=10_000)
    async with staged(store, days) as stage:
        with pytest.raises(UnsupportedTimeframeError):
            await stage.subscribe(LiveClient(), Timeframe.M1)
        assert stage.service.overview() == []


async def test_who_comes_while_the_database_is_away_is_told_so(
    store: BarStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription_service, "READY_S", 0.1)
    async with staged(store) as stage:

        async def away(*_: object) -> None:
            raise DatabaseUnavailableError("gone")

        monkeypatch.setattr(stage.store, "tick", away)
        with pytest.raises(DatabaseUnavailableError, match="was not taken up"):
            await stage.subscribe(LiveClient(), Timeframe.M1)


async def test_official_daily_bars_are_the_providers_own(store: BarStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_timeframe, "OFFICIAL_EVERY_S", 0.02)
    stocks = Capabilities(
        timeframes=(Timeframe.M1, Timeframe.D1),
        bars_per_call=500,
        folds_below=Timeframe.D1,
        calls_per_second=10_000,
    )
    async with staged(store, stocks) as stage:
        client = LiveClient()
        await stage.join(client, Timeframe.D1)
        day = Timeframe.D1.floor(LIVE_MS)
        await until(lambda: [bar.ts for bar in client.forming][:1] == [day])
        stage.house.plugin.market["A/B"] = [*MARKET, *random_minutes(4, 1440, start_ms=START_MS + 900 * MINUTE_MS)]
        stage.house.clock.advance(days=(day + DAY_MS - LIVE_MS) / DAY_MS, minutes=1)
        await until(lambda: bool(client.closed))
        assert [bar.ts for bar in client.closed] == [day]
        assert client.faults == []


async def test_a_frontier_that_was_left_behind_long_ago_is_not_begun_at(store: BarStore) -> None:
    async with staged(store) as stage:
        await stage.join(LiveClient(), Timeframe.M1)
        old = stage.played[0]
        await minutes(stage, 5)
        await stage.service.followers.stop(stage.service.followers.owned)
        await stage.store.sign_off()
    async with a_stage(store, MARKET, MemoryBroadcast()) as stage:
        stage.late_s = 0.3
        client = LiveClient()
        await stage.join(client, Timeframe.M1)
        assert stage.played[0].at_ms > old.at_ms
        await until(lambda: client.is_live)
        assert client.closed == []


async def test_nothing_is_read_for_a_client_that_does_not_take_it(
    store: BarStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with staged(store) as stage:
        await stage.join(LiveClient(), Timeframe.M1)
        await minutes(stage, 480)
        taken = asyncio.Event()
        client = LiveClient()
        client.room = taken.wait  # type: ignore[method-assign, assignment]
        subscription = await stage.subscribe(client, Timeframe.M1, since_ms=START_MS)
        monkeypatch.setattr(stage.house.ohlcv, "bars", None)
        running = asyncio.create_task(subscription.run())
        await asyncio.sleep(0.05)
        assert not running.done()
        monkeypatch.undo()
        taken.set()
        await running
        assert client.closed == [bar for bar in MARKET if bar.ts < stage.played[0].at_ms]
