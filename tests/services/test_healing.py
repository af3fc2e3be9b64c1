"""Watched series are kept complete: from their start on, without anybody asking, and after an outage."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

import pytest
import pytest_asyncio

from domain.errors import ConflictError, DatabaseUnavailableError
from domain.series import Series, Verdict, WatchedSeries
from domain.time_range import TimeRange
from domain.timeframe import DAY_MS, HOUR_MS
from plugins.base import NetworkPluginError, Page
from services.backfills import Job, JobError, JobState, Origin
from services.bar_store import BarStore
from services.healing import Healer
from tests.support.clock import ManualClock
from tests.support.house import House, make_house
from tests.support.market import START_MS, random_minutes
from tests.support.scripted import ScriptedPlugin

SERIES = Series("test", "scripted", "A/B")
LATER = Series("test", "scripted", "C/D")


@pytest_asyncio.fixture
async def house(store: BarStore, clock: ManualClock) -> AsyncIterator[House]:
    clock.advance(days=-29)
    plugin = ScriptedPlugin({"A/B": random_minutes(5, 1440), "C/D": random_minutes(6, 1440)})
    house = make_house(store, clock, plugin)
    async with house.workers.running():
        yield house
    await house.markets.close()


async def healed(house: House, healer: Healer) -> list[Job]:
    """Look once, and wait for the jobs of it."""
    made = await healer.run()
    jobs = [job for job in await house.backfills.jobs() if job.origin is Origin.HEALING][:made]
    return [await house.finished(job.id) for job in jobs]


async def test_holes_of_watched_series_are_filled_each_from_its_own_start(house: House) -> None:
    await house.bars(start_ms=START_MS + 3 * HOUR_MS, end_ms=START_MS + 5 * HOUR_MS, limit=500)
    healer = Healer(
        house.backfills,
        [WatchedSeries(SERIES, START_MS), WatchedSeries(LATER, START_MS + 20 * HOUR_MS)],
        least_pause_s=0,
    )
    (job,) = await healed(house, healer)
    assert job.state is JobState.DONE
    verdicts = {tile.verdict for tile in await house.coverage(START_MS, START_MS + DAY_MS - HOUR_MS)}
    assert verdicts == {Verdict.DATA, Verdict.UNCONFIRMED_EMPTY}
    before = await house.coverage(START_MS, START_MS + 20 * HOUR_MS, symbol="C/D")
    assert [tile.verdict for tile in before] == [Verdict.NEVER_FETCHED]
    assert await healer.run() == 0


async def test_new_minutes_are_healed_at_the_next_look(house: House, clock: ManualClock) -> None:
    healer = Healer(house.backfills, [WatchedSeries(SERIES, START_MS)], least_pause_s=0)
    await healed(house, healer)
    calls = len(house.plugin.calls)
    now_ms = clock.now_ms()
    clock.advance(minutes=10)
    assert len(await healed(house, healer)) == 1
    assert [wanted for _, _, wanted in house.plugin.calls[calls:]] == [TimeRange(now_ms - 60_000, now_ms + 9 * 60_000)]


async def test_after_an_outage_it_looks_again_at_once(house: House) -> None:
    def away(_: int, wanted: TimeRange) -> Page | None:
        raise NetworkPluginError("unreachable")

    house.plugin.fault = away
    healer = Healer(house.backfills, [WatchedSeries(SERIES, START_MS)], least_pause_s=0)
    house.markets.on_recovery = healer.wake
    (job,) = await healed(house, healer)
    assert job.state is JobState.FAILED
    assert not healer.woken.is_set()
    house.plugin.fault = None
    await house.bars(symbol="C/D", start_ms=START_MS, end_ms=START_MS + HOUR_MS, limit=60)
    assert healer.woken.is_set()
    (job,) = await healed(house, healer)
    assert job.state is JobState.DONE


class FakeBackfills:
    """Fails in the ways it is told."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.errors: Sequence[JobError] = ()
        self.asked: list[tuple[str, str, Mapping[str, int]]] = []

    async def heal(
        self, market: str, provider: str, starts: Mapping[str, int]
    ) -> tuple[Job | None, Sequence[JobError]]:
        self.asked.append((market, provider, starts))
        if self.failure is not None:
            raise self.failure
        return None, self.errors


async def test_a_provider_that_cannot_be_asked_stops_no_other_and_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backfills = FakeBackfills()
    backfills.failure = NetworkPluginError("no route to host")
    watched = [WatchedSeries(SERIES, 1), WatchedSeries(Series("test", "other", "X"), 2)]
    healer = Healer(backfills, watched, least_pause_s=0)
    for _ in range(3):
        await healer.run()
    assert [asked[1] for asked in backfills.asked] == ["scripted", "other"] * 3
    assert [record.message for record in caplog.records] == [
        "watched test/scripted: no route to host",
        "watched test/other: no route to host",
    ]
    caplog.clear()
    backfills.failure, backfills.errors = None, [JobError("X", "no such symbol")]
    for _ in range(2):
        await healer.run()
    assert [record.message for record in caplog.records] == [
        "watched test/scripted: all is well again",
        "watched test/other: all is well again",
        "watched test/other/X: no such symbol",
    ]


async def test_a_job_that_heals_already_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    backfills = FakeBackfills()
    backfills.failure = ConflictError("under way")
    assert await Healer(backfills, [WatchedSeries(SERIES, 1)], least_pause_s=0).run() == 0
    assert caplog.records == []


async def test_a_database_that_was_away_is_followed_by_a_look_soon() -> None:
    backfills = FakeBackfills()
    backfills.failure = DatabaseUnavailableError("away")
    healer = Healer(backfills, [WatchedSeries(SERIES, 1)], least_pause_s=0.01)
    await healer.run()
    await asyncio.wait_for(healer.woken.wait(), 5)


async def test_recoveries_in_a_row_make_no_more_than_one_look_a_pause() -> None:
    backfills = FakeBackfills()
    healer = Healer(backfills, [WatchedSeries(SERIES, 1)], least_pause_s=30)
    await healer.run()
    again = asyncio.create_task(healer.run())
    done, _ = await asyncio.wait({again}, timeout=0.05)
    assert not done
    again.cancel()
    await asyncio.gather(again, return_exceptions=True)
    assert len(backfills.asked) == 1
