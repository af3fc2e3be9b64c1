"""Watched series are kept complete: from their start on, without anybody asking, and after an outage."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from app_extensions.supervisor import Supervisor
from domain.errors import (
    CandleryError,
    ConflictError,
    DatabaseUnavailableError,
    InvalidParameterError,
    NotFoundError,
    UnknownSymbolError,
)
from domain.series import Series, WatchedSeries
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS
from plugins.base import NetworkPluginError
from services.backfills import BackfillRequest, Job, JobError, JobState, Origin, Plan, Progress, SymbolPlan
from services.healing import MOST_CHUNKS, Healer, WatchedStatus
from tests.support.clock import ManualClock
from tests.support.instant import at_once
from tests.support.market import START_MS

SERIES = Series("test", "scripted", "A/B")
LATER = Series("test", "scripted", "C/D")
OTHER = Series("test", "other", "X")
HOUR = TimeRange(START_MS, START_MS + HOUR_MS)


class FakeBackfills:
    """Of each symbol the first hour is missing, and what is told; a job ends how it is told to."""

    def __init__(self) -> None:
        self.missing: dict[str, RangeSet] = {}
        self.chunks = 1
        #: By symbol or provider, what asking for it ends in.
        self.failures: dict[str, Exception] = {}
        self.heal_failure: Exception | None = None
        self.made: list[tuple[str, str, Mapping[str, int]]] = []
        self.last_jobs: list[Job] = []

    async def plan(self, request: BackfillRequest) -> Plan:
        for name in (*request.symbols, request.provider):
            if name in self.failures:
                raise self.failures[name]
        (symbol,) = request.symbols
        gaps = self.missing.get(symbol, RangeSet((HOUR,))) & RangeSet((request.range,))
        chunks = (HOUR,) * self.chunks if gaps else ()
        return Plan(request, (SymbolPlan(symbol, gaps, chunks),), (), len(chunks), 1.0)

    async def heal(
        self, market: str, provider: str, starts: Mapping[str, int]
    ) -> tuple[Job | None, Sequence[JobError]]:
        if self.heal_failure is not None:
            raise self.heal_failure
        self.made.append((market, provider, dict(starts)))
        request = BackfillRequest(market, provider, tuple(starts), HOUR)
        progress = Progress(0, 0, len(starts), 0, None)
        name = f"job {len(self.made)}"
        job = Job(name, JobState.QUEUED, Origin.HEALING, request, progress, (), 0, 0, None, None)
        self.last_jobs.append(job)
        return job, ()

    async def job(self, job_id: str) -> Job:
        for job in self.last_jobs:
            if job.id == job_id:
                return job
        raise NotFoundError(f"There is no backfill {job_id!r}.")

    def end(self, state: JobState, *errors: JobError) -> None:
        """The last job ends."""
        self.last_jobs[-1] = self.last_jobs[-1]._replace(state=state, errors=errors, error_count=len(errors))


def make_healer(backfills: FakeBackfills, *series: Series) -> Healer:
    watched = [WatchedSeries(one, START_MS) for one in series or (SERIES,)]
    return Healer(backfills, watched, ManualClock(START_MS + DAY_MS), least_pause_s=0)


def heals(healer: Healer) -> dict[str, str | None]:
    return {status.series.symbol: status.problem for status in healer.status()}


async def test_each_series_is_healed_from_its_own_start_with_one_job_a_provider() -> None:
    backfills = FakeBackfills()
    watched = [WatchedSeries(SERIES, START_MS), WatchedSeries(OTHER, START_MS), WatchedSeries(LATER, START_MS + 60_000)]
    assert await Healer(backfills, watched, ManualClock(START_MS + DAY_MS)).run() == 2
    assert backfills.made == [
        ("test", "scripted", {"A/B": START_MS, "C/D": START_MS + 60_000}),
        ("test", "other", {"X": START_MS}),
    ]


async def test_where_nothing_is_missing_there_is_no_job() -> None:
    backfills = FakeBackfills()
    backfills.missing = {"A/B": RangeSet(), "C/D": RangeSet((HOUR,))}
    healer = make_healer(backfills, SERIES, LATER)
    assert await healer.run() == 1
    assert [symbols for _, _, symbols in backfills.made] == [{"C/D": START_MS}]
    assert healer.status() == [
        WatchedStatus(SERIES, START_MS, START_MS + DAY_MS, 0, None),
        WatchedStatus(LATER, START_MS, START_MS + DAY_MS, 60, None),
    ]


async def test_no_second_job_is_made_while_one_is_under_way() -> None:
    backfills = FakeBackfills()
    healer = make_healer(backfills)
    assert [await healer.run() for _ in range(3)] == [1, 0, 0]
    backfills.end(JobState.DONE)
    assert await healer.run() == 1


async def test_a_job_that_another_process_made_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    backfills = FakeBackfills()
    backfills.heal_failure = ConflictError("under way")
    healer = make_healer(backfills)
    assert await healer.run() == 0
    assert (caplog.records, heals(healer)) == ([], {"A/B": None})


async def test_a_job_that_is_no_longer_kept_is_forgotten() -> None:
    backfills = FakeBackfills()
    healer = make_healer(backfills)
    await healer.run()
    backfills.last_jobs.clear()
    assert await healer.run() == 1


@pytest.mark.parametrize(
    "failure",
    [UnknownSymbolError("no such symbol"), NetworkPluginError("away"), InvalidParameterError("symbols", "too much")],
)
async def test_a_bad_series_is_told_once_and_stops_no_other(
    caplog: pytest.LogCaptureFixture, failure: CandleryError
) -> None:
    backfills = FakeBackfills()
    backfills.failures["A/B"] = failure
    healer = make_healer(backfills, SERIES, LATER)
    for _ in range(3):
        await healer.run()
    assert [symbols for _, _, symbols in backfills.made] == [{"C/D": START_MS}]
    assert [record.message for record in caplog.records] == [f"watched test/scripted A/B: {failure.detail}"]
    assert heals(healer) == {"A/B": failure.detail, "C/D": None}
    backfills.failures.clear()
    await healer.run()
    assert heals(healer) == {"A/B": None, "C/D": None}


async def test_a_provider_that_is_away_stops_no_other_and_is_told_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "services.healing")
    backfills = FakeBackfills()
    backfills.failures["scripted"] = NetworkPluginError("no route to host")
    healer = make_healer(backfills, SERIES, LATER, OTHER)
    for _ in range(2):
        await healer.run()
    backfills.failures.clear()
    await healer.run()
    assert [record.message for record in caplog.records if record.message.startswith("watched")] == [
        "watched test/scripted A/B, C/D: no route to host",
        "watched test/scripted A/B, C/D: all is well again",
    ]
    assert [provider for _, provider, _ in backfills.made] == ["other", "scripted"]


async def test_an_unforeseen_fault_is_logged_and_stops_no_other_provider(caplog: pytest.LogCaptureFixture) -> None:
    backfills = FakeBackfills()
    backfills.failures["A/B"] = ZeroDivisionError("oh")
    healer = make_healer(backfills, SERIES, OTHER)
    assert await healer.run() == 1
    assert caplog.records[0].exc_info is not None
    assert heals(healer)["A/B"] == "an internal error; see the log"


async def test_a_database_that_was_away_is_followed_by_a_look_soon() -> None:
    backfills = FakeBackfills()
    backfills.failures["A/B"] = DatabaseUnavailableError("away")
    healer = Healer(backfills, [WatchedSeries(SERIES, START_MS)], ManualClock(START_MS + DAY_MS), least_pause_s=0.01)
    await healer.run()
    assert heals(healer) == {"A/B": "away"}
    await asyncio.wait_for(healer.woken.wait(), 5)
    backfills.failures.clear()
    assert await healer.run() == 1
    assert heals(healer) == {"A/B": None}


def test_recoveries_in_a_row_make_no_more_than_one_look_a_pause() -> None:
    async def run() -> None:
        loop, backfills = asyncio.get_running_loop(), FakeBackfills()
        healer = Healer(backfills, [WatchedSeries(SERIES, START_MS)], ManualClock(START_MS + DAY_MS), least_pause_s=5)
        looks: list[float] = []

        async def look() -> None:
            await healer.run()
            looks.append(loop.time())

        supervisor = Supervisor()
        supervisor.every(300, "heal", look, woken=healer.woken)
        for _ in range(99):
            await asyncio.sleep(0.1)
            healer.wake()
        await asyncio.sleep(400)
        await supervisor.close()
        assert looks == pytest.approx([0, 5, 10, 310])

    at_once(run())


def test_what_failed_is_tried_again_ever_more_seldom_and_new_minutes_meanwhile() -> None:
    async def run() -> None:
        loop, backfills = asyncio.get_running_loop(), FakeBackfills()
        clock = ManualClock(START_MS + HOUR_MS)
        healer = Healer(backfills, [WatchedSeries(SERIES, START_MS)], clock, least_pause_s=0, rest_s=300)
        whole: list[float] = []
        for _ in range(288):
            backfills.missing["A/B"] = RangeSet.of(START_MS, clock.now_ms())
            await healer.run()
            ((_, _, starts),) = backfills.made[-1:]
            if starts == {"A/B": START_MS}:
                whole.append(loop.time())
                backfills.end(JobState.FAILED, JobError("A/B", "never"))
            else:
                assert starts == {"A/B": clock.now_ms() - 5 * MINUTE_MS}
                backfills.end(JobState.DONE)
            assert heals(healer) == {"A/B": "never" if len(backfills.made) > 1 else None}
            clock.advance(minutes=5)
            await asyncio.sleep(300)
        assert len(backfills.made) == 288
        assert whole[:5] == [0, 600, 1500, 3000, 5700]
        assert 20 <= len(whole) <= 30

    at_once(run())


async def test_a_recovery_ends_the_rest_of_what_failed() -> None:
    backfills = FakeBackfills()
    healer = make_healer(backfills, SERIES, LATER)
    await healer.run()
    backfills.end(JobState.FAILED, JobError("A/B", "away"))
    assert await healer.run() == 1
    assert [symbols for _, _, symbols in backfills.made[1:]] == [{"C/D": START_MS}]
    backfills.end(JobState.DONE)
    backfills.missing["C/D"] = RangeSet()
    assert await healer.run() == 0
    healer.wake()
    assert await healer.run() == 1
    assert [symbols for _, _, symbols in backfills.made[2:]] == [{"A/B": START_MS}]
    backfills.end(JobState.DONE)
    backfills.missing["A/B"] = RangeSet()
    await healer.run()
    assert heals(healer) == {"A/B": None, "C/D": None}


async def test_a_recovery_that_came_before_the_failure_was_seen_counts_too() -> None:
    backfills = FakeBackfills()
    healer = make_healer(backfills)
    await healer.run()
    backfills.end(JobState.FAILED, JobError("A/B", "away"))
    healer.wake()
    assert await healer.run() == 1


async def test_what_is_too_much_for_one_job_comes_in_several() -> None:
    backfills = FakeBackfills()
    backfills.chunks = MOST_CHUNKS // 2 + 1
    healer = make_healer(backfills, SERIES, LATER)
    await healer.run()
    backfills.end(JobState.DONE)
    backfills.missing["A/B"] = RangeSet()
    await healer.run()
    assert [list(symbols) for _, _, symbols in backfills.made] == [["A/B"], ["C/D"]]


async def test_with_an_empty_watch_list_nothing_happens() -> None:
    backfills = FakeBackfills()
    healer = Healer(backfills, [], ManualClock(START_MS))
    healer.wake()
    assert not healer.woken.is_set()
    assert (await healer.run(), healer.status()) == (0, [])
