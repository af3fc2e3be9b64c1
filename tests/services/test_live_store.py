"""Live series in the database: one process follows each, its writes are fenced, and nothing is altered in silence."""

import asyncio
import time
from itertools import count

import pytest

from app_extensions.db_pool import DatabasePool
from app_extensions.migrations import Flavour
from domain.bar import Bar, fold
from domain.errors import DatabaseUnavailableError
from domain.packed import runs_of
from domain.series import Series
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from services.bar_store import BarStore, Written
from services.database import FencedError
from services.live import FeedState
from services.live_store import FeedClaim, FeedRow, LiveStore, Tick, Want
from services.sql import load_queries
from tests.conftest import store_on
from tests.support.clock import ManualClock
from tests.support.market import START_MS, random_minutes

EVER = TimeRange(START_MS - 400 * DAY_MS, START_MS + 400 * DAY_MS)
#: It has expired when it is looked at next.
NO_TIME_S = 0.0
LONG_S = 600.0
_numbers = count()


async def new_series(store: BarStore) -> int:
    return (await store.ensure_series(Series("test", "live", f"S{next(_numbers)}"))).id


def wants(*series_ids: int, line: str | None = None) -> list[Want]:
    return [Want(series_id, line) for series_id in series_ids]


def ids(tick: Tick) -> set[int]:
    return {claim.series_id for claim in tick.claims}


def process(store: BarStore, name: str, *, lease_s: float = LONG_S) -> LiveStore:
    return LiveStore(store, name, lease_s=lease_s)


async def follow(live: LiveStore, series_id: int, settled_ms: int = START_MS) -> FeedClaim:
    """Claim a series for this process and begin at a frontier."""
    (claim,) = (await live.tick(wants(series_id), [])).claims
    await live.begin(claim, settled_ms)
    return claim


async def settle(live: LiveStore, claim: FeedClaim, bars: list[Bar], *, start_ms: int, end_ms: int) -> Written:
    answered = RangeSet.of(start_ms, end_ms)
    done = await live.settle(claim, start_ms=start_ms, end_ms=end_ms, bars=bars, answered=answered)
    assert done.bars == bars
    return done.written


# Claims


async def test_of_two_processes_only_one_follows_a_series(any_store: BarStore) -> None:
    one, two = process(any_store, "one"), process(any_store, "two")
    series_id = await new_series(any_store)
    first = await one.tick(wants(series_id), [])
    assert [(claim.series_id, claim.fence, claim.settled_ms) for claim in first.claims] == [(series_id, 1, None)]
    assert first.claims[0].series.market == "test"
    assert first.feeds[series_id] == FeedRow(series_id, None, 0, 1, FeedState.RECOVERING, None, True)
    second = await two.tick(wants(series_id), [])
    assert (second.claims, second.kept, second.wanted) == ([], set(), set())
    assert second.feeds[series_id].owned
    again = await one.tick(wants(series_id), [series_id])
    assert (again.claims, again.kept, again.wanted) == ([], {series_id}, {series_id})


async def test_a_series_whose_follower_is_not_heard_of_goes_to_another_with_a_higher_fence(any_store: BarStore) -> None:
    dead, heir = process(any_store, "dead", lease_s=NO_TIME_S), process(any_store, "heir")
    series_id = await new_series(any_store)
    claim = await follow(dead, series_id)
    bars = random_minutes(1, 2, holes=0)
    await settle(dead, claim, bars, start_ms=START_MS, end_ms=START_MS + 2 * MINUTE_MS)
    (taken,) = (await heir.tick(wants(series_id), [])).claims
    assert taken.fence == claim.fence + 1
    assert taken.settled_ms == START_MS + 2 * MINUTE_MS
    back = await dead.tick(wants(series_id), [series_id])
    assert (back.claims, back.kept) == ([], set())


async def test_the_frozen_follower_that_comes_back_changes_nothing(any_store: BarStore) -> None:
    frozen, heir = process(any_store, "frozen", lease_s=NO_TIME_S), process(any_store, "heir")
    series_id = await new_series(any_store)
    old = await follow(frozen, series_id)
    (new,) = (await heir.tick(wants(series_id), [])).claims
    bars = random_minutes(2, 3, holes=0)
    end_ms = START_MS + 3 * MINUTE_MS
    await settle(heir, new, bars[:1], start_ms=START_MS, end_ms=START_MS + MINUTE_MS)
    await heir.say(new, FeedState.UP, None)
    before = await state_of(any_store, series_id)
    with pytest.raises(FencedError):
        await frozen.settle(
            old, start_ms=START_MS + MINUTE_MS, end_ms=end_ms, bars=bars[1:], answered=minutes(bars[1:])
        )
    with pytest.raises(FencedError):
        await frozen.correct(old, [altered(bars[0])])
    with pytest.raises(FencedError):
        await frozen.say(old, FeedState.DOWN, "frozen")
    with pytest.raises(FencedError):
        await frozen.begin(old, end_ms)
    await frozen.release([series_id])
    await frozen.sign_off()
    assert await state_of(any_store, series_id) == before
    await settle(heir, new, bars[1:], start_ms=START_MS + MINUTE_MS, end_ms=end_ms)


def minutes(bars: list[Bar]) -> RangeSet:
    return runs_of(bars, Timeframe.M1)


def altered(bar: Bar) -> Bar:
    return Bar(bar.ts, 1.0, 2.0, 0.5, 1.5, bar.volume + 1)


async def state_of(store: BarStore, series_id: int) -> tuple[object, ...]:
    """All that following a series writes."""
    async with store.database.connection() as db:
        feed = await db.fetchrow("SELECT * FROM live_feeds WHERE series_id = $1", series_id)
        queue = await db.fetch("SELECT starts, ends FROM rollup_queue WHERE series_id = $1", series_id)
        revision = await db.fetchval("SELECT revision FROM series WHERE id = $1", series_id)
        log = await db.fetch("SELECT * FROM bar_revisions WHERE series_id = $1 ORDER BY id", series_id)
    known = await store.knowledge(series_id, Timeframe.M1, EVER)
    return tuple(feed), queue, revision, log, known, await store.read(series_id, Timeframe.M1, EVER)


async def test_a_follower_whose_lease_ran_out_goes_on_while_nobody_took_over(store: BarStore) -> None:
    late = process(store, "late", lease_s=NO_TIME_S)
    series_id = await new_series(store)
    claim = await follow(late, series_id)
    await settle(late, claim, [], start_ms=START_MS, end_ms=START_MS + MINUTE_MS)
    tick = await late.tick(wants(series_id), [series_id])
    assert (tick.claims, tick.kept) == ([], {series_id})
    assert tick.feeds[series_id].fence == claim.fence


async def test_what_is_owned_and_not_worked_on_is_claimed_anew(store: BarStore) -> None:
    """The answer to the claim was lost."""
    live, other = process(store, "one"), process(store, "two")
    series_id = await new_series(store)
    lost = await follow(live, series_id)
    (again,) = (await live.tick(wants(series_id), [])).claims
    assert again.fence == lost.fence + 1
    with pytest.raises(FencedError):
        await live.begin(lost, START_MS)
    assert (await live.tick([], [])).feeds == {}
    assert ids(await other.tick(wants(series_id), [])) == {series_id}


async def test_many_series_claimed_by_two_at_once_get_one_follower_each(store: BarStore) -> None:
    series = [await new_series(store) for _ in range(60)]
    one, two = process(store, "one"), process(store, "two")
    owned: dict[str, set[int]] = {"one": set(), "two": set()}

    async def want_more(live: LiveStore, order: list[int]) -> None:
        for count_wanted in range(10, 61, 10):
            mine = owned[live.owner]
            tick = await live.tick(wants(*order[:count_wanted]), sorted(mine))
            assert tick.kept == mine
            mine |= ids(tick)

    await asyncio.gather(want_more(one, series), want_more(two, series[::-1]))
    assert owned["one"].isdisjoint(owned["two"])
    assert owned["one"] | owned["two"] == set(series)
    async with store.database.connection() as db:
        rows = await db.fetch("SELECT series_id, owner, fence FROM live_feeds")
    assert all(row["series_id"] in owned[row["owner"]] and row["fence"] == 1 for row in rows)


async def test_a_claim_leaves_out_what_is_being_written_and_takes_it_the_next_time(
    store: BarStore, pool: DatabasePool
) -> None:
    """The dead follower's last transaction still runs in the database."""
    dead, heir = process(store, "dead", lease_s=NO_TIME_S), process(store, "heir")
    busy, idle = await new_series(store), await new_series(store)
    await dead.tick(wants(busy, idle), [])
    async with pool.transaction() as db:
        assert await db.fetchrow(load_queries("live")["hold"], busy, 1, "dead")
        async with asyncio.timeout(10):
            assert ids(await heir.tick(wants(busy, idle), [])) == {idle}
    assert ids(await heir.tick(wants(busy, idle), [idle])) == {busy}


async def test_a_transaction_that_freezes_is_ended_by_the_server(store: BarStore, pool: DatabasePool) -> None:
    frozen = process(store, "frozen")
    claim = await follow(frozen, await new_series(store))
    async with pool.transaction() as db:
        await db.fetchrow(load_queries("live")["hold"], claim.series_id, claim.fence, "frozen")
        shown = await db.fetchval("SELECT current_setting('idle_in_transaction_session_timeout')")
    assert shown == "4s"
    async with pool.transaction() as db:
        await db.fetchrow(load_queries("live")["claim_turn"], 1)
        assert await db.fetchval("SELECT current_setting('idle_in_transaction_session_timeout')") == "2s"


# Lines: series that one process follows together


async def test_all_series_of_a_line_are_followed_by_one_process(any_store: BarStore) -> None:
    one, two = process(any_store, "one"), process(any_store, "two")
    a, b, c, free = [await new_series(any_store) for _ in range(4)]
    assert ids(await one.tick(wants(a, line="m/p"), [])) == {a}
    second = await two.tick([*wants(b, c, line="m/p"), *wants(free)], [])
    assert ids(second) == {free}
    assert not second.feeds[b].owned
    taken = await one.tick(wants(a, line="m/p"), [a])
    assert ids(taken) == {b, c}
    assert set(taken.feeds) == {a}
    third = await one.tick(wants(a, line="m/p"), [a, b, c])
    assert (third.claims, third.kept, third.wanted) == ([], {a, b, c}, {a, b, c})
    assert (await two.tick([*wants(b, c, line="m/p"), *wants(free)], [free])).feeds[b].owned


async def test_who_wants_nothing_of_its_line_any_more_goes_on_for_the_others(store: BarStore) -> None:
    one, two = process(store, "one"), process(store, "two")
    a, b, c = [await new_series(store) for _ in range(3)]
    await one.tick(wants(a, line="m/p"), [])
    await two.tick(wants(b, line="m/p"), [])
    assert ids(await one.tick([], [a])) == {b}
    tick = await one.tick([], [a, b])
    assert (tick.kept, tick.wanted) == ({a, b}, {b})
    await one.release([a])
    assert ids(await two.tick(wants(b, c, line="m/p"), [])) == set()
    assert ids(await one.tick([], [b])) == {c}


async def test_a_dead_process_leaves_its_whole_line_to_another(store: BarStore) -> None:
    dead, heir, third = (
        process(store, "dead", lease_s=NO_TIME_S),
        process(store, "heir"),
        process(store, "third"),
    )
    a, b, c, d = [await new_series(store) for _ in range(4)]
    assert ids(await dead.tick(wants(a, b, line="m/p"), [])) == {a, b}
    assert ids(await heir.tick(wants(b, c, line="m/p"), [])) == {b, c}, "what only the dead wanted is left"
    assert ids(await third.tick(wants(a, d, line="m/p"), [])) == set()
    assert ids(await heir.tick(wants(b, c, line="m/p"), [b, c])) == {a, d}
    assert (await dead.tick(wants(a, b, line="m/p"), [a, b])).kept == set()


async def test_two_processes_that_want_a_line_at_once_do_not_share_it(store: BarStore) -> None:
    one, two = process(store, "one"), process(store, "two")
    for turn in range(10):
        a, b = await new_series(store), await new_series(store)
        first, second = await asyncio.gather(
            one.tick(wants(a, line=f"m/{turn}"), []), two.tick(wants(b, line=f"m/{turn}"), [])
        )
        assert (ids(first) == set()) != (ids(second) == set())


# Wants


async def test_wants_are_replaced_and_written_only_where_they_change(any_store: BarStore) -> None:
    live = process(any_store, "one")
    a, b, c = [await new_series(any_store) for _ in range(3)]

    async def stored() -> list[tuple[int, str | None, str]]:
        async with any_store.database.connection() as db:
            rows = await db.fetch("SELECT series_id, line, xmin::text FROM live_wants ORDER BY series_id")
        return [tuple(row) for row in rows]

    await live.tick(wants(a, b), [])
    first = await stored()
    assert [row[:2] for row in first] == [(a, None), (b, None)]
    await live.tick(wants(a, b), [a, b])
    assert await stored() == first
    await live.tick([*wants(b, line="m/p"), *wants(c)], [a, b])
    assert [row[:2] for row in await stored()] == [(b, "m/p"), (c, None)]
    await live.tick([], [])
    assert await stored() == []


async def test_the_wants_of_the_dead_do_not_count_and_are_cleared_away(store: BarStore) -> None:
    live, dead = process(store, "one"), process(store, "dead", lease_s=NO_TIME_S)
    series_id = await new_series(store)
    await live.tick(wants(series_id), [])
    await dead.tick(wants(series_id), [])
    assert (await live.tick([], [series_id])).wanted == set()
    alive = process(store, "two")
    await alive.tick(wants(series_id), [])
    assert (await live.tick([], [series_id])).wanted == {series_id}
    async with store.database.connection() as db:
        await db.execute("UPDATE live_processes SET leased_until = now() - interval '2 minutes' WHERE id = 'dead'")
        await db.execute(load_queries("live")["forget_dead"])
        left = await db.fetch("SELECT process FROM live_wants ORDER BY process")
    assert [row["process"] for row in left] == ["two"]


async def test_what_was_released_is_free_at_once(store: BarStore) -> None:
    one, two = process(store, "one"), process(store, "two")
    a, b = await new_series(store), await new_series(store)
    claims = (await one.tick(wants(a, b), [])).claims
    await one.release([a])
    assert ids(await two.tick(wants(a, b), [])) == {a}
    released = next(claim for claim in claims if claim.series_id == a)
    with pytest.raises(FencedError):
        await one.begin(released, START_MS)
    await one.release([a])
    assert (await two.tick(wants(a, b), [a])).kept == {a}


async def test_who_signs_off_leaves_everything_at_once(store: BarStore) -> None:
    one, two = process(store, "one"), process(store, "two")
    a, b, c = [await new_series(store) for _ in range(3)]
    await one.tick([*wants(a), *wants(b, line="m/p")], [])
    await two.tick([*wants(a), *wants(c, line="m/p")], [])
    await one.sign_off()
    tick = await two.tick([*wants(a), *wants(c, line="m/p")], [])
    assert ids(tick) == {a, c}
    await two.sign_off()
    async with store.database.connection() as db:
        assert await db.fetchval("SELECT count(*) FROM live_wants") == 0
        assert await db.fetchval("SELECT count(*) FROM live_processes") == 0
        assert await db.fetchval("SELECT count(*) FROM live_feeds WHERE owner IS NOT NULL") == 0


# Closing minutes


async def test_minutes_coverage_and_frontier_are_written_together(any_store: BarStore) -> None:
    live = process(any_store, "one")
    claim = await follow(live, await new_series(any_store))
    bars = random_minutes(4, 3, holes=0)
    written = await settle(live, claim, bars[:2], start_ms=START_MS, end_ms=START_MS + 2 * MINUTE_MS)
    assert written == (2, 0)
    assert await any_store.read(claim.series_id, Timeframe.M1, EVER) == bars[:2]
    known = await any_store.knowledge(claim.series_id, Timeframe.M1, EVER)
    assert known.answered == RangeSet.of(START_MS, START_MS + 2 * MINUTE_MS)
    assert known.checks == []
    tick = await live.tick(wants(claim.series_id), [claim.series_id])
    assert tick.feeds[claim.series_id][1:3] == (START_MS + 2 * MINUTE_MS, 0)


async def test_a_transaction_that_breaks_leaves_everything_as_it_was(
    any_store: BarStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = process(any_store, "one")
    claim = await follow(live, await new_series(any_store))
    bars = random_minutes(5, 3, holes=0)
    before = await state_of(any_store, claim.series_id)
    queries = dict(load_queries("live"))
    queries["advance"] += "; SELECT broken"
    monkeypatch.setattr(live, "_sql", queries)
    with pytest.raises(Exception, match="multiple commands"):
        await settle(live, claim, bars, start_ms=START_MS, end_ms=START_MS + 3 * MINUTE_MS)
    assert await state_of(any_store, claim.series_id) == before
    assert any_store.bars_written == 0


async def test_a_connection_killed_in_the_middle_leaves_everything_as_it_was(
    store: BarStore, pool: DatabasePool, database_url: str
) -> None:
    """As when the process is killed: the server rolls back, and another process goes on from there."""
    doomed_pool = DatabasePool(database_url, max_size=1)
    await doomed_pool.open()
    doomed = process(store_on(doomed_pool, Flavour.POSTGRESQL, ManualClock(START_MS)), "doomed", lease_s=NO_TIME_S)
    claim = await follow(doomed, await new_series(store))
    bars = random_minutes(6, 3, holes=0)
    before = await state_of(store, claim.series_id)
    end_ms = START_MS + 3 * MINUTE_MS
    async with pool.transaction() as db:
        await db.fetchval(load_queries("series")["lock"], claim.series_id)
        closing = asyncio.create_task(settle(doomed, claim, bars, start_ms=START_MS, end_ms=end_ms))
        await pool_waits(pool, then="pg_terminate_backend(pid)")
        with pytest.raises(DatabaseUnavailableError):
            await closing
    await doomed_pool.close()
    assert await state_of(store, claim.series_id) == before
    heir = process(store, "heir")
    (taken,) = (await heir.tick(wants(claim.series_id), [])).claims
    assert taken.settled_ms == START_MS
    await settle(heir, taken, bars, start_ms=START_MS, end_ms=end_ms)


async def pool_waits(pool: DatabasePool, *, then: str = "pid") -> None:
    """Wait until a connection to the database waits for a lock."""
    query = f"SELECT {then} FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    deadline = time.monotonic() + 20
    async with pool.connection() as looker:
        while await looker.fetchval(query) is None:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)


async def test_minutes_that_do_not_begin_at_the_frontier_are_refused(any_store: BarStore) -> None:
    live = process(any_store, "one")
    claim = await follow(live, await new_series(any_store), START_MS + MINUTE_MS)
    bars = random_minutes(7, 4, holes=0)
    before = await state_of(any_store, claim.series_id)
    for first in (0, 2):
        with pytest.raises(FencedError, match="closed up to"):
            await settle(live, claim, bars[first:], start_ms=bars[first].ts, end_ms=START_MS + 4 * MINUTE_MS)
    assert await state_of(any_store, claim.series_id) == before


async def test_minutes_whose_commit_was_not_answered_can_be_closed_again(any_store: BarStore) -> None:
    live = process(any_store, "one")
    claim = await follow(live, await new_series(any_store))
    bars, end_ms = random_minutes(7, 3, holes=0), START_MS + 3 * MINUTE_MS
    await settle(live, claim, bars, start_ms=START_MS, end_ms=end_ms)
    before = await state_of(any_store, claim.series_id)
    assert await settle(live, claim, bars, start_ms=START_MS, end_ms=end_ms) == (0, 0)
    assert await state_of(any_store, claim.series_id) == before


async def test_a_series_that_was_not_begun_cannot_be_settled(store: BarStore) -> None:
    live = process(store, "one")
    (claim,) = (await live.tick(wants(await new_series(store)), [])).claims
    with pytest.raises(FencedError):
        await settle(live, claim, [], start_ms=START_MS, end_ms=START_MS + MINUTE_MS)


async def test_silence_is_looked_at_again_and_what_could_not_be_had_is_asked_for_later(
    any_store: BarStore, clock: ManualClock
) -> None:
    live = process(any_store, "one")
    claim = await follow(live, await new_series(any_store))
    silent = RangeSet.of(START_MS, START_MS + MINUTE_MS)
    lost = RangeSet.of(START_MS + MINUTE_MS, START_MS + 3 * MINUTE_MS)
    done = await live.settle(
        claim, start_ms=START_MS, end_ms=START_MS + 3 * MINUTE_MS, answered=silent, unhealed=lost, why="it is away"
    )
    assert (done.written, done.bars) == ((0, 0), [])
    known = await any_store.knowledge(claim.series_id, Timeframe.M1, EVER)
    assert (known.answered, known.confirmed) == (silent, RangeSet())
    empty, failed = known.checks
    assert (empty.range, empty.answered, empty.error) == (silent.span, True, None)
    assert (failed.range, failed.answered, failed.error) == (lost.span, False, "it is away")
    for check in (empty, failed):
        assert check.recheck_ms == clock.now_ms() + HOUR_MS


async def test_minutes_that_were_fetched_before_they_were_closed_are_told_of_too(any_store: BarStore) -> None:
    live = process(any_store, "one")
    claim = await follow(live, await new_series(any_store))
    bars = random_minutes(8, 2, holes=0)
    await any_store.record(claim.series_id, Timeframe.M1, bars=bars[:1], answered=minutes(bars[:1]))
    end_ms = START_MS + 2 * MINUTE_MS
    done = await live.settle(claim, start_ms=START_MS, end_ms=end_ms, bars=bars[1:], answered=minutes(bars[1:]))
    assert done.bars == bars
    assert done.revision == 0
    again = await any_store.find_series(claim.series)
    assert again is not None
    assert await live.revisions(claim.series_id, 0) == []


async def test_the_revision_of_the_series_grows_where_known_minutes_are_touched(any_store: BarStore) -> None:
    live = process(any_store, "one")
    claim = await follow(live, await new_series(any_store))
    bars = random_minutes(9, 1, holes=0)
    await any_store.record(claim.series_id, Timeframe.M1, bars=bars, answered=minutes(bars))
    done = await live.settle(
        claim, start_ms=START_MS, end_ms=START_MS + MINUTE_MS, bars=bars, answered=minutes(bars), asked_ms=START_MS
    )
    assert (done.revision, done.written, done.bars) == (1, (0, 0), bars)


async def test_a_followed_series_has_one_entry_in_the_queue_of_aggregates(timescale_pool: DatabasePool) -> None:
    clock = ManualClock(START_MS + HOUR_MS)
    store = store_on(timescale_pool, Flavour.TIMESCALEDB, clock)
    live = process(store, "one")
    bars = random_minutes(10, 30, holes=0)
    claim = await follow(live, await new_series(store))
    for bar in bars:
        await settle(live, claim, [bar], start_ms=bar.ts, end_ms=bar.ts + MINUTE_MS)
    async with timescale_pool.connection() as db:
        rows = await db.fetch("SELECT starts, ends FROM rollup_queue")
    assert [tuple(row) for row in rows] == [(START_MS, START_MS + 30 * MINUTE_MS)]
    for day in (0, 2):
        clock.advance(days=day)
        await store.settle()
        found = await store.read_folded(claim.series_id, Timeframe.M5, EVER)
        assert found.bars == fold(bars, Timeframe.M5)
    async with timescale_pool.connection() as db:
        assert await db.fetchval("SELECT count(*) FROM rollup_queue") == 0


# The log of what was altered


async def test_corrections_and_late_minutes_are_logged_in_order(any_store: BarStore) -> None:
    live = process(any_store, "one")
    claim = await follow(live, await new_series(any_store))
    bars = random_minutes(11, 5, holes=0)
    end_ms = START_MS + 5 * MINUTE_MS
    held_back = [bar for bar in bars if bar is not bars[2]]
    await settle(live, claim, held_back, start_ms=START_MS, end_ms=end_ms)
    assert await live.revisions(claim.series_id, 0) == []
    assert not await live.correct(claim, [bars[1]])
    assert await live.correct(claim, [altered(bars[3])])
    assert await live.correct(claim, [altered(bars[1]), bars[2]])
    log = await live.revisions(claim.series_id, 0)
    assert [entry.bar for entry in log] in (
        [altered(bars[3]), altered(bars[1]), bars[2]],
        [altered(bars[3]), bars[2], altered(bars[1])],
    )
    assert [entry.id for entry in log] == sorted(entry.id for entry in log)
    assert await live.revisions(claim.series_id, log[0].id) == log[1:]
    assert await live.revisions(claim.series_id, 0, 1) == log[:1]
    tick = await live.tick(wants(claim.series_id), [claim.series_id])
    assert tick.feeds[claim.series_id].revision == log[-1].id
    assert (await old_bars(any_store, claim.series_id))[bars[2].ts] == []


async def old_bars(store: BarStore, series_id: int) -> dict[int, list[float]]:
    async with store.database.connection() as db:
        rows = await db.fetch("SELECT ts, old_bar FROM bar_revisions WHERE series_id = $1", series_id)
    return {row["ts"]: row["old_bar"] for row in rows}


async def test_minutes_that_are_not_closed_cannot_be_corrected(any_store: BarStore) -> None:
    live = process(any_store, "one")
    claim = await follow(live, await new_series(any_store))
    with pytest.raises(FencedError, match="not closed"):
        await live.correct(claim, random_minutes(12, 1, holes=0))
    assert not await live.correct(claim, [])


@pytest.mark.parametrize("many", [3, 200])
async def test_late_minutes_of_any_writer_are_logged_within_what_was_followed(any_store: BarStore, many: int) -> None:
    """Fetches of clients, backfills and imports all write by record()."""
    live = process(any_store, "one")
    series_id, other = await new_series(any_store), await new_series(any_store)
    began = START_MS + many * MINUTE_MS
    claim = await follow(live, series_id, began)
    end_ms = began + many * MINUTE_MS
    await settle(live, claim, [], start_ms=began, end_ms=end_ms)
    bars = random_minutes(13, 3 * many, holes=0)
    for at in (series_id, other):
        assert await any_store.record(at, Timeframe.M1, bars=bars, answered=minutes(bars)) == (3 * many, 0)
    log = await live.revisions(series_id, 0, 10_000)
    assert [entry.bar for entry in log] == [bar for bar in bars if began <= bar.ts < end_ms]
    assert set(map(tuple, (await old_bars(any_store, series_id)).values())) == {()}
    assert await live.revisions(other, 0) == []
    assert await any_store.record(series_id, Timeframe.M1, bars=bars, answered=minutes(bars)) == (0, 0)
    assert len(await live.revisions(series_id, 0, 10_000)) == many


async def test_other_timeframes_are_not_in_the_log_of_minutes(any_store: BarStore) -> None:
    live = process(any_store, "one")
    claim = await follow(live, await new_series(any_store))
    hour = fold(random_minutes(14, 60, holes=0), Timeframe.H1)
    for bars in (hour, [altered(hour[0])]):
        await any_store.record(claim.series_id, Timeframe.H1, bars=bars, answered=runs_of(bars, Timeframe.H1))
    assert len(await old_bars(any_store, claim.series_id)) == 1
    assert await live.revisions(claim.series_id, 0) == []
    assert (await live.tick(wants(claim.series_id), [claim.series_id])).feeds[claim.series_id].revision == 0


async def test_beginning_afresh_waits_for_who_writes_and_does_not_know_of_it(
    store: BarStore, pool: DatabasePool
) -> None:
    live = process(store, "one")
    (claim,) = (await live.tick(wants(await new_series(store)), [])).claims
    bars = random_minutes(15, 2, holes=0)
    async with pool.transaction() as db:
        await store.record_in(db, claim.series_id, Timeframe.M1, bars=bars, answered=minutes(bars))
        beginning = asyncio.create_task(live.begin(claim, START_MS + 2 * MINUTE_MS))
        await pool_waits(pool)
        assert not beginning.done()
    await beginning


async def test_what_is_said_of_an_upstream_is_seen_by_all(store: BarStore) -> None:
    one, two = process(store, "one"), process(store, "two")
    series_id = await new_series(store)
    claim = await follow(one, series_id)
    for state, detail in ((FeedState.UP, None), (FeedState.DOWN, "the venue is away")):
        await one.say(claim, state, detail)
        row = (await two.tick(wants(series_id), [])).feeds[series_id]
        assert (row.state, row.detail, row.settled_ms) == (state, detail, START_MS)
