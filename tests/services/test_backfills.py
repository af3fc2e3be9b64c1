"""Backfill jobs: what they fetch, what they leave alone, and how they end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

from domain.bar import fold
from domain.errors import ConflictError, DatabaseUnavailableError, NotFoundError, UnknownSymbolError
from domain.series import Series, Verdict
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from plugins.base import (
    AuthenticationPluginError,
    Capabilities,
    NetworkPluginError,
    Page,
    RateLimitPluginError,
    SymbolNotFoundPluginError,
)
from services import backfill_chunks, backfill_worker
from services.backfill_chunks import ChunkStore
from services.backfills import BackfillRequest, JobState, Origin
from services.bar_store import BarStore, Written
from services.data_sources import plugin_source
from services.fetch import StoreKeeper
from tests.support.clock import ManualClock
from tests.support.house import House, make_house
from tests.support.market import START_MS, random_minutes
from tests.support.scripted import ScriptedPlugin

DAY = TimeRange(START_MS, START_MS + DAY_MS)


@pytest_asyncio.fixture
async def house(store: BarStore, clock: ManualClock) -> AsyncIterator[House]:
    async with a_house(store, clock) as made:
        yield made


@asynccontextmanager
async def a_house(store: BarStore, clock: ManualClock) -> AsyncIterator[House]:
    plugin = ScriptedPlugin({"A/B": random_minutes(5, 1440), "C/D": random_minutes(6, 1440)})
    yield (made := make_house(store, clock, plugin))
    await made.workers.close()
    await made.markets.close()


async def stored(house: House, symbol: str = "A/B", timeframe: Timeframe = Timeframe.M1) -> list[object]:
    found = await house.store.find_series(Series("test", "scripted", symbol))
    assert found is not None
    return list(await house.store.read(found.id, timeframe, TimeRange(0, START_MS + 400 * DAY_MS)))


async def test_a_job_fetches_each_missing_minute_once_and_is_done(house: House) -> None:
    house.workers.open()
    job = await house.backfill(*DAY)
    assert job.state is JobState.DONE
    assert await stored(house) == house.plugin.market["A/B"]
    assert job.progress.chunks_done == job.progress.chunks_total == 3
    assert job.progress.bars_written == len(house.plugin.market["A/B"])
    assert len(house.plugin.calls) == 3


async def test_interior_holes_are_filled_and_what_is_known_is_not_asked_for(house: House) -> None:
    for hour in (1, 5, 9):
        await house.bars(start_ms=START_MS + hour * HOUR_MS, end_ms=START_MS + (hour + 2) * HOUR_MS, limit=500)
    known = len(house.plugin.calls)
    plan = await house.backfills.plan(BackfillRequest("test", "scripted", ("A/B",), DAY))
    assert [(gap.start_ms - START_MS) // HOUR_MS for gap in plan.symbols[0].gaps] == [0, 3, 7, 11]
    house.workers.open()
    await house.backfill(*DAY)
    assert await stored(house) == house.plugin.market["A/B"]
    assert len(house.plugin.calls) - known == plan.calls == len(plan.symbols[0].chunks)


async def test_the_newest_minutes_of_every_symbol_come_first(house: House) -> None:
    house.workers.open()
    await house.backfill(*DAY, "A/B", "C/D")
    asked = [(symbol, wanted.end_ms) for symbol, _, wanted in house.plugin.calls]
    assert asked == sorted(asked, key=lambda one: -one[1])
    assert {symbol for symbol, _ in asked[:2]} == {"A/B", "C/D"}


async def test_scattered_holes_are_asked_for_together(house: House) -> None:
    series = await house.markets.find(Series("test", "scripted", "A/B"))
    minute = Timeframe.M1
    for at in range(0, 400, 10):
        known = TimeRange(START_MS + at * MINUTE_MS, START_MS + (at + 9) * MINUTE_MS)
        page = house.plugin.honest_page("A/B", minute, known)
        await house.store.record(series.stored.id, minute, bars=page.bars, answered=page.covered)
    request = BackfillRequest("test", "scripted", ("A/B",), TimeRange(START_MS, START_MS + 400 * MINUTE_MS))
    plan = await house.backfills.plan(request)
    assert (len(plan.symbols[0].gaps.ranges), plan.calls, plan.minutes) == (40, 1, 40)


async def test_a_dry_run_writes_no_job_and_asks_for_no_bars(house: House) -> None:
    plan = await house.backfills.plan(BackfillRequest("test", "scripted", ("A/B", "C/D"), DAY))
    assert (plan.chunks, plan.calls, plan.minutes) == (6, 6, 2880)
    assert plan.estimated_s >= 1
    assert await house.backfills.jobs() == []
    assert house.plugin.calls == []


async def test_two_overlapping_jobs_do_the_shared_part_once(house: House) -> None:
    half = DAY_MS // 2
    first = await house.backfills.create(
        BackfillRequest("test", "scripted", ("A/B",), TimeRange(START_MS, START_MS + half + 500 * MINUTE_MS))
    )
    second = await house.backfills.create(
        BackfillRequest("test", "scripted", ("A/B",), TimeRange(START_MS + half - 500 * MINUTE_MS, DAY.end_ms))
    )
    house.workers.open()
    for job in (first, second):
        assert (await house.finished(job.id)).state is JobState.DONE
    asked = sum(wanted.length_ms for _, _, wanted in house.plugin.calls)
    assert asked == DAY.length_ms
    assert await stored(house) == house.plugin.market["A/B"]


async def test_a_job_for_what_is_complete_is_over_at_once(house: House) -> None:
    house.workers.open()
    await house.backfill(*DAY)
    request = BackfillRequest("test", "scripted", ("A/B",), DAY)
    job = await house.backfills.create(request)
    assert (job.state, job.progress.chunks_total, job.progress.percent) == (JobState.DONE, 0, 100)
    assert job.finished_ms is not None


async def test_one_bad_symbol_does_not_stop_the_others(house: House) -> None:
    def fault(_: int, wanted: TimeRange) -> Page | None:
        if house.plugin.calls[-1][0] == "C/D":
            raise SymbolNotFoundPluginError("C/D was delisted")
        return None

    house.plugin.fault = fault
    house.workers.open()
    job = await house.backfill(*DAY, "A/B", "C/D", "E/F")
    assert job.state is JobState.FAILED
    assert await stored(house) == house.plugin.market["A/B"]
    assert (job.errors[0].symbol, job.errors[0].range) == ("E/F", None)
    assert {error.symbol for error in job.errors[1:]} == {"C/D"}
    assert job.errors[1].detail == "C/D was delisted"
    assert (job.progress.chunks_failed, job.progress.chunks_done) == (3, 3)
    assert sum(symbol == "C/D" for symbol, _, _ in house.plugin.calls) == 1


async def test_a_job_of_unknown_symbols_only_is_refused(house: House) -> None:
    with pytest.raises(UnknownSymbolError, match="X/Y"):
        await house.backfills.create(BackfillRequest("test", "scripted", ("X/Y",), DAY))
    assert await house.backfills.jobs() == []


async def test_a_passing_fault_is_rested_from_and_overcome(house: House) -> None:
    def fault(call: int, _: TimeRange) -> Page | None:
        if call <= 2:
            raise NetworkPluginError("connection reset")
        return None

    house.plugin.fault = fault
    house.workers.open()
    job = await house.backfill(*DAY)
    assert (job.state, job.errors) == (JobState.DONE, ())
    assert await stored(house) == house.plugin.market["A/B"]


async def test_a_fault_that_stays_ends_as_fetch_failed_with_reason_and_tries_and_can_be_retried(house: House) -> None:
    def fault(_: int, wanted: TimeRange) -> Page | None:
        if wanted.start_ms < START_MS + 100 * MINUTE_MS:
            raise NetworkPluginError("502 from the gateway")
        return None

    house.plugin.fault = fault
    house.workers.open()
    job = await house.backfill(*DAY)
    assert (job.state, job.progress.chunks_done, job.progress.chunks_failed) == (JobState.FAILED, 2, 1)
    assert [(e.symbol, e.detail, e.attempts) for e in job.errors] == [("A/B", "502 from the gateway", 3)]
    assert job.errors[0].range == TimeRange(START_MS, START_MS + 440 * MINUTE_MS)
    tiles = await house.coverage(*DAY)
    assert (tiles[0].verdict, tiles[0].attempts) == (Verdict.FETCH_FAILED, 3)
    house.plugin.fault = None
    await house.backfills.retry(job.id)
    again = await house.finished(job.id)
    assert (again.state, again.errors, again.progress.chunks_done) == (JobState.DONE, (), 3)
    assert await stored(house) == house.plugin.market["A/B"]


async def test_refused_credentials_end_the_whole_job_at_the_first_call(house: House) -> None:
    def fault(_: int, wanted: TimeRange) -> Page | None:
        raise AuthenticationPluginError("bad key")

    house.plugin.fault = fault
    house.workers.open()
    job = await house.backfill(*DAY, "A/B", "C/D")
    assert (job.state, job.error_count) == (JobState.FAILED, 6)
    assert len(house.plugin.calls) == 1


async def test_a_paused_job_rests_and_a_resumed_one_goes_on(house: House) -> None:
    job = await house.backfills.create(BackfillRequest("test", "scripted", ("A/B",), DAY))
    assert (await house.backfills.pause(job.id)).state is JobState.PAUSED
    house.workers.open()
    await asyncio.sleep(0.3)
    assert house.plugin.calls == []
    with pytest.raises(ConflictError, match="paused"):
        await house.backfills.pause(job.id)
    await house.backfills.resume(job.id)
    assert (await house.finished(job.id)).state is JobState.DONE


async def test_a_job_paused_on_its_way_keeps_what_it_has(house: House) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()
    honest = house.plugin.fetch_page

    async def slow(symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Page:
        page = await honest(symbol, timeframe, wanted)
        reached.set()
        await go_on.wait()
        return page

    house.plugin.fetch_page = slow  # type: ignore[method-assign]
    house.workers.open()
    job = await house.backfills.create(BackfillRequest("test", "scripted", ("A/B",), DAY))
    await asyncio.wait_for(reached.wait(), 10)
    await house.backfills.pause(job.id)
    go_on.set()
    async for now in house.backfills.watch(job.id):
        if now.progress.chunks_done > 0:
            break
    assert (now.state, len(house.plugin.calls)) == (JobState.PAUSED, 1)
    await house.backfills.resume(job.id)
    assert (await house.finished(job.id)).state is JobState.DONE
    assert len(house.plugin.calls) == 3


async def test_a_cancelled_job_ends_and_cannot_be_taken_up(house: House) -> None:
    job = await house.backfills.create(BackfillRequest("test", "scripted", ("A/B",), DAY))
    cancelled = await house.backfills.cancel(job.id)
    assert (cancelled.state, cancelled.progress.chunks_total) == (JobState.CANCELLED, 3)
    for steer in (house.backfills.pause, house.backfills.resume, house.backfills.cancel, house.backfills.retry):
        with pytest.raises(ConflictError, match="cancelled"):
            await steer(job.id)
    house.workers.open()
    await house.backfill(*DAY, "C/D")
    assert {symbol for symbol, _, _ in house.plugin.calls} == {"C/D"}


async def test_an_unknown_job_is_told(house: House) -> None:
    for call in (house.backfills.job, house.backfills.pause, house.backfills.retry):
        with pytest.raises(NotFoundError, match="nothing-like-it"):
            await call("nothing-like-it")


async def test_minutes_that_are_still_forming_are_left_to_a_later_job(house: House, clock: ManualClock) -> None:
    now_ms = clock.now_ms()
    house.plugin.market["A/B"] = random_minutes(9, 120, start_ms=now_ms - 60 * MINUTE_MS)
    house.workers.open()
    job = await house.backfill(now_ms - 60 * MINUTE_MS, now_ms + HOUR_MS)
    assert job.state is JobState.DONE
    tiles = await house.coverage(now_ms - 2 * MINUTE_MS, now_ms + MINUTE_MS)
    assert tiles[-1].verdict is Verdict.NEVER_FETCHED
    assert tiles[-1].range.start_ms == now_ms - MINUTE_MS


async def test_a_symbol_is_healed_by_one_job_at_a_time_and_holds_up_no_other(house: House) -> None:
    first, _ = await house.backfills.heal("test", "scripted", {"A/B": START_MS})
    assert first is not None
    assert first.origin is Origin.HEALING
    with pytest.raises(ConflictError, match="A/B"):
        await house.backfills.heal("test", "scripted", {"A/B": START_MS})
    other, _ = await house.backfills.heal("test", "scripted", {"A/B": START_MS, "C/D": START_MS})
    assert other is not None
    assert other.request.symbols == ("C/D",)
    house.workers.open()
    await house.finished(first.id)
    await house.finished(other.id)
    third, errors = await house.backfills.heal("test", "scripted", {"A/B": START_MS, "E/F": START_MS})
    assert third is None
    assert [error.symbol for error in errors] == ["E/F"]


async def test_every_bad_symbol_is_among_the_errors_however_many_chunks_another_has(house: House) -> None:
    def away(_: int, wanted: TimeRange) -> Page | None:
        raise SymbolNotFoundPluginError("gone")

    house.plugin.fault = away
    house.plugin.market |= {f"S{nth}": [] for nth in range(150)}
    house.workers.open()
    symbols = ("A/B", *(f"S{nth}" for nth in range(98)))
    job = await house.backfill(DAY.start_ms, DAY.end_ms + 9 * DAY_MS, *symbols)
    assert len(job.errors) == 100
    assert {error.symbol for error in job.errors} == set(symbols)


async def test_a_page_that_meets_a_dead_connection_is_written_again_and_not_asked_for_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, writes = house.store.record_in, 0

    async def cut(*args: Any, **findings: Any) -> Written:
        nonlocal writes
        writes += 1
        if writes % 2:
            raise DatabaseUnavailableError("connection was closed in the middle of operation")
        return await honest(*args, **findings)

    monkeypatch.setattr(house.store, "record_in", cut)
    house.workers.open()
    job = await house.backfill(START_MS, START_MS + DAY_MS)
    assert job.state is JobState.DONE
    assert len(house.plugin.calls) == job.progress.chunks_total
    assert await stored(house) == house.plugin.market["A/B"]


async def test_a_chunk_that_cannot_be_stored_fails_in_the_end(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object, **__: object) -> None:
        raise DatabaseUnavailableError("statement timed out")

    monkeypatch.setattr(house.store, "record_in", never)
    monkeypatch.setattr(backfill_chunks, "KEEP_PAUSE_S", 0)
    house.workers.open()
    job = await house.backfill(START_MS, START_MS + 400 * MINUTE_MS)
    assert job.state is JobState.FAILED
    assert job.errors[0].detail == "could not be stored: statement timed out"
    assert len(house.plugin.calls) == 3


async def test_a_query_and_a_job_never_ask_for_the_same_at_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin_source, "BACKGROUND_PATIENCE_S", 60)
    honest, under_way = house.plugin.fetch_page, RangeSet()

    async def watched(symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Page:
        nonlocal under_way
        mine = RangeSet((wanted,))
        assert not mine & under_way
        under_way |= mine
        await asyncio.sleep(0.001)
        under_way -= mine
        return await honest(symbol, timeframe, wanted)

    house.plugin.fetch_page = watched  # type: ignore[method-assign]
    house.workers.open()
    job = await house.backfills.create(BackfillRequest("test", "scripted", ("A/B",), DAY))
    starts = (START_MS + hour * HOUR_MS for hour in range(18))
    answers = await asyncio.gather(*(house.bars(start_ms=at, end_ms=at + 6 * HOUR_MS, limit=500) for at in starts))
    assert (await house.finished(job.id)).state is JobState.DONE
    assert all(answer.error is None for answer in answers)
    assert await stored(house) == house.plugin.market["A/B"]


async def test_aggregates_are_right_as_soon_as_a_job_is_done(any_store: BarStore, clock: ManualClock) -> None:
    async with a_house(any_store, clock) as house:
        house.plugin.market["A/B"] = random_minutes(8, 1440, holes=0)
        await house.bars(timeframe="1m", start_ms=START_MS + 2 * HOUR_MS, end_ms=START_MS + 3 * HOUR_MS, limit=1000)
        house.workers.open()
        await house.backfill(*DAY)
        calls = len(house.plugin.calls)
        for timeframe in ("5m", "1h", "4h", "1d"):
            answer = await house.bars(timeframe=timeframe, start_ms=START_MS, end_ms=DAY.end_ms)
            assert answer.bars == fold(house.plugin.market["A/B"], Timeframe(timeframe))
            assert answer.sources == ["aggregate"]
        assert len(house.plugin.calls) == calls


async def test_a_provider_that_answers_in_small_pieces_is_no_fault(house: House) -> None:
    def fault(_: int, wanted: TimeRange) -> Page | None:
        end = min(wanted.end_ms, wanted.start_ms + 2 * MINUTE_MS)
        return house.plugin.honest_page("A/B", Timeframe.M1, TimeRange(wanted.start_ms, end))

    house.plugin.fault = fault
    house.workers.open()
    job = await house.backfill(START_MS, START_MS + 500 * MINUTE_MS)
    assert (job.state, job.progress.chunks_done) == (JobState.DONE, 1)
    assert len(house.plugin.calls) == 250


async def test_a_blocked_job_waits_without_keeping_the_others_from_their_lane(house: House) -> None:
    """The stretch of the first job is being fetched elsewhere; the second job has its own."""
    blocked = await house.backfills.create(BackfillRequest("test", "scripted", ("A/B",), DAY))
    other = await house.backfills.create(BackfillRequest("test", "scripted", ("A/B",), DAY))
    free = await house.backfills.create(BackfillRequest("test", "scripted", ("C/D",), DAY))
    elsewhere = ChunkStore(house.store, "elsewhere", lease_s=600)
    held = [await elsewhere.claim(blocked.id) for _ in range(3)]
    assert all(held)
    house.workers.open()
    assert (await house.finished(free.id)).state is JobState.DONE
    assert {symbol for symbol, _, _ in house.plugin.calls} == {"C/D"}
    await elsewhere.sign_off()
    for job in (blocked, other):
        assert (await house.finished(job.id)).state is JobState.DONE
    assert await stored(house) == house.plugin.market["A/B"]


async def test_an_answer_counts_as_given_when_it_was_asked_for(house: House, clock: ManualClock) -> None:
    """The machine slept, between the answer and its keeping, long enough for the hour between two looks."""
    minute = TimeRange(START_MS, START_MS + MINUTE_MS)
    listing = await house.markets.find(Series("test", "scripted", "A/B"))
    keeper = StoreKeeper(house.store, listing.stored.id, Timeframe.M1)

    async def ask(*, sleep_h: float) -> None:
        asked_ms = clock.now_ms()
        clock.advance(hours=sleep_h)
        await keeper.keep([], RangeSet((minute,)), vouched=False, asked_ms=asked_ms)

    await ask(sleep_h=0)
    clock.advance(minutes=10)
    await ask(sleep_h=2)
    assert [tile.verdict for tile in await house.coverage(*minute)] == [Verdict.UNCONFIRMED_EMPTY]
    await ask(sleep_h=0)
    assert [tile.verdict for tile in await house.coverage(*minute)] == [Verdict.NO_TRADES]


async def test_a_watcher_sees_a_job_from_its_beginning_to_its_end(house: House) -> None:
    job = await house.backfills.create(BackfillRequest("test", "scripted", ("A/B", "C/D"), DAY))
    house.workers.open()
    seen = [now async for now in house.backfills.watch(job.id)]
    percents = [now.progress.percent for now in seen]
    assert percents == sorted(percents)
    assert (seen[-1].state, percents[-1]) == (JobState.DONE, 100)


async def test_somebody_works_only_while_a_process_does(house: House) -> None:
    assert not await house.backfills.someone_works()
    async with house.workers.running():
        assert await house.backfills.someone_works()
    assert not await house.backfills.someone_works()


async def test_years_before_the_listing_cost_a_few_calls_and_end_as_not_listed(
    house: House, clock: ManualClock
) -> None:
    start_ms = START_MS - 1500 * DAY_MS
    plan = await house.backfills.plan(BackfillRequest("test", "scripted", ("A/B",), TimeRange(start_ms, DAY.end_ms)))
    assert plan.symbols[0].search is not None
    assert plan.chunks > 4000
    house.workers.open()
    job = await house.backfill(start_ms, DAY.end_ms)
    assert (job.state, job.progress.chunks_done, job.progress.chunks_total) == (JobState.DONE, plan.chunks, plan.chunks)
    assert await stored(house) == house.plugin.market["A/B"]
    assert len(house.plugin.calls) < 25
    clock.advance(hours=2)
    while await house.rechecker.run():
        clock.advance(hours=2)
    assert {tile.verdict for tile in await house.coverage(start_ms, START_MS)} == {Verdict.NOT_LISTED}
    assert len(house.plugin.calls) < 50
    assert (await house.backfill(start_ms, DAY.end_ms)).progress.chunks_total == 0


async def test_old_jobs_are_forgotten_and_of_healing_ones_the_newest_ten_are_kept(house: House) -> None:
    house.workers.open()
    kept = await house.backfill(*DAY)
    for hour in range(12):
        job, _ = await house.backfills.heal("test", "scripted", {"C/D": START_MS + (23 - hour) * HOUR_MS})
        assert job is not None
        await house.finished(job.id)
        house.clock.advance(minutes=1)
    await house.backfills.refresh()
    jobs = await house.backfills.jobs()
    assert [job.origin for job in jobs] == [Origin.HEALING] * 10 + [Origin.OPERATOR]
    async with house.store.database.connection() as db:
        await db.execute("UPDATE backfill_jobs SET finished_at = now() - interval '91 days' WHERE id = $1", kept.id)
    await house.backfills.refresh()
    assert kept.id not in {job.id for job in await house.backfills.jobs()}


async def test_a_query_does_not_sit_out_a_chunk_that_hangs(house: House) -> None:
    """Its provider answers the query, and hangs for the job."""
    hangs, honest = asyncio.Event(), house.plugin.fetch_page

    async def first_call_hangs(symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Page:
        if not hangs.is_set():
            hangs.set()
            await asyncio.sleep(3600)
        return await honest(symbol, timeframe, wanted)

    house.plugin.fetch_page = first_call_hangs  # type: ignore[method-assign]
    await house.backfills.create(BackfillRequest("test", "scripted", ("A/B",), DAY))
    house.workers.open()
    await asyncio.wait_for(hangs.wait(), 10)
    answer = await asyncio.wait_for(house.bars(start_ms=DAY.end_ms - HOUR_MS, end_ms=DAY.end_ms, limit=60), 20)
    assert answer.bars == [bar for bar in house.plugin.market["A/B"] if bar.ts >= DAY.end_ms - HOUR_MS]


async def test_a_chunk_that_was_given_to_another_is_not_asked_for_again(store: BarStore, clock: ManualClock) -> None:
    """While its first call hangs another process takes the chunk, and dies; the call fails, and is not repeated."""
    house = make_house(store, clock, ScriptedPlugin({"A/B": random_minutes(5, 400)}), lease_s=0.3, tries=4)
    honest, calls = house.plugin.fetch_page, 0

    async def first_call_hangs(symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Page:
        nonlocal calls
        calls += 1
        if calls > 1:
            return await honest(symbol, timeframe, wanted)
        async with house.store.database.connection() as db:
            await db.execute(
                "UPDATE backfill_chunks SET owner = 'another', fence = fence + 1, "
                "leased_until = clock_timestamp() + interval '1 second'"
            )
        await asyncio.sleep(0.5)
        raise NetworkPluginError("timed out")

    house.plugin.fetch_page = first_call_hangs  # type: ignore[method-assign]
    async with house.workers.running():
        job = await house.backfill(START_MS, START_MS + 400 * MINUTE_MS)
    assert job.state is JobState.DONE
    assert dict(house.backfills.chunks_finished) == {"done": 1, "failed": 0, "refused": 1}
    assert calls == 2
    await house.markets.close()


async def test_minutes_that_retention_would_drop_again_are_left_alone(store: BarStore, clock: ManualClock) -> None:
    house = make_house(store, clock, ScriptedPlugin({"A/B": random_minutes(5, 1440)}), kept_days=10)
    plan = await house.backfills.plan(
        BackfillRequest("test", "scripted", ("A/B",), TimeRange(START_MS, clock.now_ms()))
    )
    assert plan.symbols[0].gaps.ranges[0].start_ms == START_MS + 20 * DAY_MS
    await house.markets.close()


async def test_a_failed_job_that_healed_is_not_retried_beside_another(house: House) -> None:
    def away(_: int, wanted: TimeRange) -> Page | None:
        raise SymbolNotFoundPluginError("gone")

    house.plugin.fault = away
    house.workers.open()
    failed, _ = await house.backfills.heal("test", "scripted", {"A/B": START_MS})
    assert failed is not None
    assert (await house.finished(failed.id)).state is JobState.FAILED
    await house.workers.close()
    await house.backfills.heal("test", "scripted", {"A/B": START_MS})
    with pytest.raises(ConflictError, match="heals"):
        await house.backfills.retry(failed.id)


async def test_odd_words_of_a_provider_do_no_harm(house: House) -> None:
    def odd(_: int, wanted: TimeRange) -> Page | None:
        raise SymbolNotFoundPluginError("a\x00b\ud800c" + "d" * 5000)

    house.plugin.fault = odd
    house.workers.open()
    job = await house.backfill(*DAY)
    assert job.state is JobState.FAILED
    assert job.errors[0].detail == "a?b?c" + "d" * 995


async def test_a_senseless_pause_of_a_provider_ends_by_a_resume(house: House) -> None:
    def busy(call: int, _: TimeRange) -> Page | None:
        if call == 1:
            raise RateLimitPluginError("later", retry_after_s=1e15)
        return None

    house.plugin.fault = busy
    job = await house.backfills.create(BackfillRequest("test", "scripted", ("A/B",), DAY))
    house.workers.open()
    async for now in house.backfills.watch(job.id):
        if now.errors:
            break
    assert (now.state, now.errors[0].detail, now.error_count) == (JobState.RUNNING, "later", 1)
    # As in a process that was started since: its budget knows of no pause.
    house.markets.open_providers()[0].feed.budget._paused_until = 0
    await house.backfills.pause(job.id)
    await house.backfills.resume(job.id)
    assert (await house.finished(job.id)).state is JobState.DONE


async def test_jobs_of_providers_that_only_others_know_are_left_to_them(house: House) -> None:
    async with house.store.database.connection() as db:
        await db.execute(
            "INSERT INTO backfill_jobs (id, market, provider, symbols, starts, ends, origin) "
            "SELECT 'theirs-' || n, 'test', 'elsewhere', '{X}', now() - interval '1 day', now(), 'operator' "
            "FROM generate_series(1, 5) n"
        )
    house.workers.open()
    assert (await house.backfill(*DAY)).state is JobState.DONE
    assert (await house.backfills.job("theirs-1")).state is JobState.QUEUED


async def test_a_long_job_leaves_its_lane_to_a_short_one(
    store: BarStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill_worker, "TURN_S", 0.05)
    plugin = ScriptedPlugin({"A/B": random_minutes(5, 29 * 1440, holes=0.5), "C/D": random_minutes(6, 1440)})
    house = make_house(store, clock, plugin, lanes=1)
    long = await house.backfills.create(
        BackfillRequest("test", "scripted", ("A/B",), TimeRange(START_MS, clock.now_ms()))
    )
    async with house.workers.running():
        short = await house.backfill(*DAY, "C/D")
        assert short.state is JobState.DONE
        assert (await house.backfills.job(long.id)).state is JobState.RUNNING
        assert (await house.finished(long.id)).state is JobState.DONE
    await house.markets.close()


async def test_the_chunks_of_a_cancelled_job_leave_the_table_and_stay_counted(house: House) -> None:
    job = await house.backfills.create(BackfillRequest("test", "scripted", ("A/B",), DAY))
    cancelled = await house.backfills.cancel(job.id)
    await house.backfills.refresh()
    async with house.store.database.connection() as db:
        assert await db.fetchval("SELECT count(*) FROM backfill_chunks") == 0
    assert await house.backfills.job(job.id) == cancelled
    assert cancelled.progress.chunks_total == 3


async def test_minutes_that_the_provider_forgot_while_the_job_waited_count_as_failed(
    store: BarStore, clock: ManualClock
) -> None:
    memory = Capabilities(timeframes=(Timeframe.M1,), bars_per_call=500, history_bars=720, calls_per_second=10_000)
    now_ms = clock.now_ms()
    plugin = ScriptedPlugin({"A/B": random_minutes(5, 720, start_ms=now_ms - 720 * MINUTE_MS)}, capabilities=memory)
    house = make_house(store, clock, plugin)
    request = BackfillRequest("test", "scripted", ("A/B",), TimeRange(now_ms - 700 * MINUTE_MS, now_ms))
    job = await house.backfills.create(request)
    clock.advance(days=1)
    async with house.workers.running():
        over = await house.finished(job.id)
    assert over.state is JobState.FAILED
    assert {error.detail for error in over.errors} == {"the provider no longer has these minutes"}
    await house.markets.close()
