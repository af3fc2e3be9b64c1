"""The store on every kind of database: what goes in comes out, aggregates equal folded minutes, nothing is silent."""

import asyncio
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app_extensions.db_pool import DatabasePool
from app_extensions.migrations import set_compression
from domain.bar import Bar, fold, merge
from domain.packed import runs_of
from domain.series import Series
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from services.bar_store import BarStore, StoredSeries
from services.coverage import CoverageLedger
from services.retention import Retention
from services.rollups import TimescaleRollups
from services.sql import load_queries
from tests.support.clock import ManualClock
from tests.support.market import START_MS, markets, random_minutes

EVER = TimeRange(START_MS - 400 * DAY_MS, START_MS + 400 * DAY_MS)
_numbers = count()


async def new_series(store: BarStore) -> StoredSeries:
    return await store.ensure_series(Series("test", "scripted", f"S{next(_numbers)}"))


async def folded(store: BarStore, series: StoredSeries, timeframe: Timeframe) -> list[Bar]:
    return (await store.read_folded(series.id, timeframe, EVER)).bars


async def write(store: BarStore, series: StoredSeries, bars: list[Bar], **options: bool) -> tuple[int, int]:
    return await store.record(series.id, Timeframe.M1, bars=bars, answered=runs_of(bars, Timeframe.M1), **options)


@st.composite
def histories(draw: st.DrawFn) -> list[list[Bar]]:
    """A market that arrives in parts, some late, some corrected."""
    bars = draw(markets(most_minutes=2500))
    other = {bar.ts: bar for bar in random_minutes(draw(st.integers(0, 99)), 2500, holes=0)}
    cut = draw(st.integers(0, len(bars)))
    corrected = [other[bar.ts] for bar in bars[cut : cut + draw(st.integers(0, 200))]]
    late_at = draw(st.integers(0, 2000))
    late = [other[START_MS + minute * MINUTE_MS] for minute in range(late_at, late_at + draw(st.integers(0, 90)))]
    return [bars[cut:], bars[:cut], corrected, late]


@given(history=histories())
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
async def test_every_aggregate_equals_its_folded_minutes_after_each_write(
    any_store: BarStore, history: list[list[Bar]]
) -> None:
    series = await new_series(any_store)
    truth: list[Bar] = []
    for part in history:
        await write(any_store, series, part)
        truth = merge(truth, part)
        assert await any_store.read(series.id, Timeframe.M1, EVER) == truth
        for timeframe in Timeframe:
            assert await folded(any_store, series, timeframe) == fold(truth, timeframe), timeframe


async def test_aggregates_are_right_before_they_are_refreshed_and_for_the_present_day(
    any_store: BarStore, clock: ManualClock
) -> None:
    """A crash between commit and refresh leaves the queue; readers fold those minutes themselves."""
    series, other = await new_series(any_store), await new_series(any_store)
    today = Timeframe.D1.floor(clock.now_ms())
    bars = random_minutes(1, 4 * 1440, start_ms=today - 3 * DAY_MS)
    async with any_store.database.transaction() as db:
        await any_store.record_in(
            db, series.id, Timeframe.M1, bars=bars, answered=RangeSet.of(today - 3 * DAY_MS, today + DAY_MS)
        )
    for _ in range(2):
        for timeframe in Timeframe:
            assert await folded(any_store, series, timeframe) == fold(bars, timeframe), timeframe
        await any_store.settle()
    clock.advance(days=2)
    await write(any_store, other, random_minutes(2, 600, start_ms=today + DAY_MS))
    for timeframe in Timeframe:
        assert await folded(any_store, series, timeframe) == fold(bars, timeframe), timeframe


async def test_a_series_is_made_once_though_many_ask_at_once(store: BarStore) -> None:
    series = Series("test", "scripted", "ONCE")
    made = await asyncio.gather(*(store.ensure_series(series) for _ in range(8)))
    assert len(set(made)) == 1
    assert await store.find_series(Series("test", "scripted", "NEVER")) is None


async def test_a_changed_bar_is_logged_and_an_equal_one_changes_nothing(any_store: BarStore) -> None:
    series = await new_series(any_store)
    bars = random_minutes(3, 50, holes=0)
    assert await write(any_store, series, bars) == (50, 0)
    assert await write(any_store, series, bars) == (0, 0)
    changed = [Bar(bars[7].ts, 1.0, 2.0, 0.5, 1.5, 9.0)]
    assert await write(any_store, series, changed) == (1, 1)
    async with any_store.database.connection() as db:
        rows = await db.fetch("SELECT ts, old_bar, new_bar FROM bar_revisions WHERE series_id = $1", series.id)
    old = bars[7]
    assert [tuple(row) for row in rows] == [
        (old.ts, [old.open, old.high, old.low, old.close, old.volume], [1.0, 2.0, 0.5, 1.5, 9.0])
    ]


async def test_native_bars_are_kept_beside_the_minutes_and_revised_likewise(any_store: BarStore) -> None:
    series = await new_series(any_store)
    hours = fold(random_minutes(4, 600, holes=0), Timeframe.H1)
    answered = runs_of(hours, Timeframe.H1)
    assert await any_store.record(series.id, Timeframe.H1, bars=hours, answered=answered) == (10, 0)
    better = [Bar(hours[0].ts, 1.0, 2.0, 0.5, 1.5, 9.0)]
    assert await any_store.record(series.id, Timeframe.H1, bars=better, answered=runs_of(better, Timeframe.H1)) == (
        1,
        1,
    )
    assert await any_store.read(series.id, Timeframe.H1, EVER) == merge(hours, better)
    assert await any_store.read(series.id, Timeframe.M1, EVER) == []
    assert await any_store.runs(series.id, Timeframe.H1, EVER, folded=False) == answered


async def test_the_revision_grows_only_when_something_known_is_touched(store: BarStore) -> None:
    series = await new_series(store)
    name = next(_numbers) - 1

    async def revision() -> int:
        found = await store.find_series(Series("test", "scripted", f"S{name}"))
        assert found is not None
        return found.revision

    bars = random_minutes(5, 100, holes=0)
    await write(store, series, bars[:50])
    await write(store, series, bars[50:])
    assert await revision() == 0
    await write(store, series, bars[40:60])
    assert await revision() == 1
    hours = fold(bars, Timeframe.H1)
    await store.record(series.id, Timeframe.H1, bars=hours, answered=runs_of(hours, Timeframe.H1))
    assert await revision() == 2
    await store.record_failure(series.id, Timeframe.M1, RangeSet.of(START_MS, START_MS + HOUR_MS), "down")
    assert await revision() == 2


async def test_empty_answers_are_confirmed_by_a_second_one_an_hour_later(
    any_store: BarStore, clock: ManualClock
) -> None:
    series = await new_series(any_store)
    window = TimeRange(START_MS, START_MS + HOUR_MS)

    async def ask() -> RangeSet:
        await any_store.record(series.id, Timeframe.M1, bars=[], answered=RangeSet((window,)))
        return (await any_store.knowledge(series.id, Timeframe.M1, window)).confirmed

    assert await ask() == RangeSet()
    clock.advance(minutes=59)
    assert await ask() == RangeSet()
    clock.advance(minutes=1)
    assert await ask() == RangeSet((window,))


async def test_a_provider_that_vouches_confirms_at_once_and_a_file_asks_nobody(any_store: BarStore) -> None:
    series = await new_series(any_store)
    first, second = RangeSet.of(START_MS, START_MS + HOUR_MS), RangeSet.of(START_MS + HOUR_MS, START_MS + 2 * HOUR_MS)
    await any_store.record(series.id, Timeframe.M1, bars=[], answered=first, vouched=True)
    await any_store.record(series.id, Timeframe.M1, bars=[], answered=second, was_asked=False)
    known = await any_store.knowledge(series.id, Timeframe.M1, EVER)
    assert (known.answered, known.confirmed) == (first | second, first)
    assert [check.range for check in known.checks] == list(first)


async def test_a_failure_is_written_down_and_makes_nothing_known(any_store: BarStore) -> None:
    series = await new_series(any_store)
    asked = RangeSet.of(START_MS, START_MS + HOUR_MS)
    for _ in range(3):
        await any_store.record_failure(series.id, Timeframe.M1, asked, "the venue is down")
    known = await any_store.knowledge(series.id, Timeframe.M1, EVER)
    assert not known.answered
    assert [(c.range, c.answered, c.attempts, c.error) for c in known.checks] == [
        (next(iter(asked)), False, 3, "the venue is down")
    ]


async def test_eight_writers_at_once_lose_no_coverage(store: BarStore) -> None:
    series = await new_series(store)
    bars = random_minutes(6, 1600, holes=0)
    parts = [bars[at : at + 100] for at in range(0, 1600, 100)]
    await asyncio.gather(*(write(store, series, part) for part in parts))
    known = await store.knowledge(series.id, Timeframe.M1, EVER)
    assert known.answered == runs_of(bars, Timeframe.M1)
    assert await store.read(series.id, Timeframe.M1, EVER) == bars
    assert await folded(store, series, Timeframe.H1) == fold(bars, Timeframe.H1)


async def test_a_write_that_fails_leaves_neither_bars_nor_coverage(store: BarStore) -> None:
    series = await new_series(store)
    bars = random_minutes(7, 100, holes=0)

    with pytest.raises(ZeroDivisionError):
        async with store.database.transaction() as db:
            await store.record_in(db, series.id, Timeframe.M1, bars=bars, answered=runs_of(bars, Timeframe.M1))
            raise ZeroDivisionError
    assert await store.read(series.id, Timeframe.M1, EVER) == []
    assert not (await store.knowledge(series.id, Timeframe.M1, EVER)).answered
    assert await folded(store, series, Timeframe.H1) == []


@given(bars=markets(most_minutes=1500))
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
async def test_runs_from_the_database_equal_runs_of_the_bars(store: BarStore, bars: list[Bar]) -> None:
    series = await new_series(store)
    await write(store, series, bars)
    for timeframe in (Timeframe.M1, Timeframe.M5, Timeframe.H1, Timeframe.MN1):
        found = await store.runs(series.id, timeframe, EVER, folded=True)
        assert found == runs_of(fold(bars, timeframe), timeframe)


async def test_what_retention_forgets_is_unknown_again_and_not_without_trade(
    any_store: BarStore, clock: ManualClock
) -> None:
    series = await new_series(any_store)
    bars = random_minutes(8, 3 * 1440)
    whole = RangeSet.of(START_MS, START_MS + 3 * DAY_MS)
    await any_store.record(series.id, Timeframe.M1, bars=bars, answered=whole)
    retention = Retention(any_store.database, any_store.rollups, clock, days=28)
    cutoff = START_MS + 2 * DAY_MS
    kept = [bar for bar in bars if bar.ts >= cutoff]
    assert await retention.run() == len(bars) - len(kept)
    await any_store.settle()
    known = await any_store.knowledge(series.id, Timeframe.M1, EVER)
    assert known.answered == RangeSet.of(cutoff, START_MS + 3 * DAY_MS)
    assert [check.range for check in known.checks] == list(known.answered)
    assert await any_store.read(series.id, Timeframe.M1, EVER) == kept
    for timeframe in (Timeframe.M5, Timeframe.H4, Timeframe.D1):
        assert await folded(any_store, series, timeframe) == fold(kept, timeframe)
    assert await Retention(any_store.database, any_store.rollups, clock, days=0).run() == 0


async def test_late_and_corrected_bars_reach_compressed_chunks(
    timescale_pool: DatabasePool, clock: ManualClock
) -> None:
    store = BarStore(timescale_pool, CoverageLedger(), TimescaleRollups(timescale_pool, clock), clock)
    series = await new_series(store)
    bars = random_minutes(11, 8 * 1440, holes=0.2)
    late, early = bars[::3], [bar for at, bar in enumerate(bars) if at % 3]
    await write(store, series, early)
    async with timescale_pool.connection() as db:
        assert await db.fetch("SELECT compress_chunk(c) FROM show_chunks('bars_1m') AS c")
    corrected = [Bar(bar.ts, 1.0, 2.0, 0.5, 1.5, 9.0) for bar in early[:100]]
    assert await write(store, series, late) == (len(late), 0)
    assert await write(store, series, corrected) == (100, 100)
    truth = merge(bars, corrected)
    assert await store.read(series.id, Timeframe.M1, EVER) == truth
    for timeframe in Timeframe:
        assert await folded(store, series, timeframe) == fold(truth, timeframe), timeframe


async def test_the_compression_job_follows_the_setting(timescale_pool: DatabasePool) -> None:
    async def job() -> str | None:
        async with timescale_pool.connection() as db:
            return await db.fetchval(load_queries("rollups")["compression_job"])

    for days, stands in ((30, "30 days"), (30, "30 days"), (7, "7 days"), (0, None), (0, None)):
        await set_compression(timescale_pool, after_days=days)
        assert await job() == stands
