"""When venues are open: by real calendars, built as the server builds them, and by calendars of the test's own."""

import asyncio
import csv
import json
import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from app_extensions.db_pool import DatabasePool
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from services import sessions
from services.session_store import StoredSessionRepository
from services.sessions import (
    NY_WEEKDAYS,
    InMemorySessionRepository,
    Session,
    SessionBuildError,
    SessionService,
    StoredSessions,
    UnknownCalendarError,
    run_builder_subprocess,
)
from tests.support.clock import ManualClock

ROOT = Path(__file__).resolve().parents[2]


def at(text: str) -> int:
    """UTC epoch milliseconds of an ISO time."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


def span(start: str, end: str) -> TimeRange:
    return TimeRange(at(start), at(end))


def opened(*pairs: tuple[str, str]) -> RangeSet:
    return RangeSet((at(start), at(end)) for start, end in pairs)


NOW_MS = at("2025-06-02")
BUILT = TimeRange(at("1970-01-01"), at("2026-07-01"))


@pytest.fixture(scope="module")
def xnys() -> StoredSessions:
    """The real calendar, by the real program, once."""
    return asyncio.run(run_builder_subprocess("XNYS", BUILT))


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW_MS)


@pytest.fixture
def service(xnys: StoredSessions, clock: ManualClock) -> SessionService:
    return SessionService(InMemorySessionRepository(), clock=clock, build=Builder(xnys))


class Builder:
    """Gives what it was given, fails on demand, and counts."""

    def __init__(self, built: StoredSessions) -> None:
        self.built = built
        self.calls: list[tuple[str, TimeRange]] = []
        self.fault: Exception | None = None

    async def __call__(self, calendar: str, wanted: TimeRange) -> StoredSessions:
        self.calls.append((calendar, wanted))
        await asyncio.sleep(0)
        if self.fault:
            raise self.fault
        return self.built


def weekdays(first: str, days: int) -> StoredSessions:
    """Monday to Friday from 14:00 to 21:00 UTC; extended from 09:00 to 01:00."""
    rows = []
    for n in range(days):
        day_ms = at(first) + n * DAY_MS
        if datetime.fromtimestamp(day_ms / 1000, UTC).isoweekday() < 6:
            rows.append(Session(day_ms, *(day_ms + hour * HOUR_MS for hour in (14, 21, 9, 25))))
    return StoredSessions(rows, at(first), at(first) + days * DAY_MS)


# The real calendar of New York


async def test_a_usual_day_is_open_from_four_to_eight_in_new_york(service: SessionService) -> None:
    found = await service.open_ranges("XNYS", Timeframe.M1, span("2024-11-26", "2024-11-28"))
    assert found == opened(("2024-11-26T00:00", "2024-11-26T01:00"), ("2024-11-26T09:00", "2024-11-27T01:00")) | opened(
        ("2024-11-27T09:00", "2024-11-28T00:00")
    )


async def test_a_half_day_ends_at_five_in_new_york(service: SessionService, xnys: StoredSessions) -> None:
    half = next(session for session in xnys.sessions if session.date_ms == at("2024-11-29"))
    assert half.close_ms == at("2024-11-29T18:00")
    found = await service.open_ranges("XNYS", Timeframe.M1, span("2024-11-28T01:00", "2024-12-02T09:00"))
    assert found == opened(("2024-11-29T09:00", "2024-11-29T22:00")), "Thanksgiving and the weekend are closed"


async def test_a_day_of_mourning_is_closed(service: SessionService) -> None:
    for timeframe in (Timeframe.M1, Timeframe.H1, Timeframe.D1):
        found = await service.open_ranges("XNYS", timeframe, span("2025-01-09T02:00", "2025-01-10T00:00"))
        assert found == RangeSet()


async def test_hours_follow_daylight_saving_time(service: SessionService) -> None:
    found = await service.open_ranges("XNYS", Timeframe.M1, span("2024-03-08T05:00", "2024-03-12T05:00"))
    assert found == opened(
        ("2024-03-08T09:00", "2024-03-09T01:00"),
        ("2024-03-11T08:00", "2024-03-12T00:00"),
    )


async def test_a_bucket_is_open_when_it_touches_a_session(service: SessionService) -> None:
    monday = span("2024-03-11", "2024-03-12")
    halfhour = await service.open_ranges("XNYS", Timeframe.M30, span("2024-11-29T02:00", "2024-12-01T00:00"))
    assert halfhour == opened(("2024-11-29T09:00", "2024-11-29T22:00"))
    four = await service.open_ranges("XNYS", Timeframe.H4, span("2024-11-29T04:00", "2024-12-01T00:00"))
    assert four == opened(("2024-11-29T08:00", "2024-11-30T00:00"))
    twelve = await service.open_ranges("XNYS", Timeframe.H12, monday)
    assert twelve == RangeSet((monday,))


async def test_a_day_is_open_when_it_is_a_sessions_date(service: SessionService) -> None:
    found = await service.open_ranges("XNYS", Timeframe.D1, span("2024-11-25", "2024-12-03"))
    assert found == opened(("2024-11-25", "2024-11-28"), ("2024-11-29", "2024-11-30"), ("2024-12-02", "2024-12-03"))


async def test_weeks_and_months_are_open_when_they_hold_a_session(service: SessionService) -> None:
    # After 2001-09-10 the exchange stayed closed until the 17th; the week of the 10th had one session.
    weeks = span("2001-09-03", "2001-09-24")
    assert await service.open_ranges("XNYS", Timeframe.W1, weeks) == RangeSet((weeks,))
    days = await service.open_ranges("XNYS", Timeframe.D1, span("2001-09-10", "2001-09-18"))
    assert days == opened(("2001-09-10", "2001-09-11"), ("2001-09-17", "2001-09-18"))
    months = span("2001-09-01", "2001-11-01")
    assert await service.open_ranges("XNYS", Timeframe.MN1, months) == RangeSet((months,))


async def test_every_answer_is_a_part_of_the_range(service: SessionService) -> None:
    inside = span("2024-11-26T13:07", "2024-11-26T13:23")
    for timeframe in Timeframe:
        assert await service.open_ranges("XNYS", timeframe, inside) in (RangeSet((inside,)), RangeSet())
    assert await service.open_ranges("XNYS", Timeframe.M1, inside) == RangeSet((inside,))


async def test_an_empty_or_reversed_range_is_never_open(service: SessionService) -> None:
    for wanted in (span("2024-11-26", "2024-11-26"), span("2024-11-27", "2024-11-26")):
        for calendar in ("XNYS", NY_WEEKDAYS, None):
            assert await service.open_ranges(calendar, Timeframe.M1, wanted) == RangeSet()


async def test_beyond_the_calendar_everything_is_open(service: SessionService, xnys: StoredSessions) -> None:
    assert xnys.last_ms == at("2026-07-01")
    later = TimeRange(xnys.last_ms, xnys.last_ms + 10 * DAY_MS)
    for timeframe in (Timeframe.M1, Timeframe.D1, Timeframe.W1):
        assert (await service.open_ranges("XNYS", timeframe, later)).covers(RangeSet((later,)))
    across = await service.open_ranges("XNYS", Timeframe.D1, span("2026-06-27", "2026-07-06"))
    assert across == opened(("2026-06-29", "2026-07-06")), "the weekend is closed, the weekend after is not known"


async def test_hours_of_the_unknown_next_day_are_not_called_closed(clock: ManualClock) -> None:
    # 2024-01-01 was a Monday. Who knows whether the session of Sunday's date ran on into it?
    service = SessionService(InMemorySessionRepository(), clock=clock, build=Builder(weekdays("2024-01-01", 5)))
    found = await service.open_ranges("X", Timeframe.M1, span("2023-12-31", "2024-01-08"))
    assert found == RangeSet((span("2023-12-31", "2024-01-08"),)) - opened(
        ("2024-01-02T01:00", "2024-01-02T09:00"),
        ("2024-01-03T01:00", "2024-01-03T09:00"),
        ("2024-01-04T01:00", "2024-01-04T09:00"),
    )


async def test_a_month_of_minutes_is_answered_within_a_millisecond(service: SessionService) -> None:
    wanted = span("2024-10-01", "2024-11-01")
    await service.open_ranges("XNYS", Timeframe.M1, wanted)
    took = []
    for _ in range(50):
        began = time.perf_counter()
        await service.open_ranges("XNYS", Timeframe.M1, wanted)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.001


@pytest.mark.parametrize("symbol", ["SPY", "BAC"])
async def test_every_recorded_regular_minute_is_in_open_hours(
    service: SessionService, recordings: Path, symbol: str
) -> None:
    with (recordings / "data" / "us_stock_1m" / f"{symbol}_1m.csv").open() as file:
        stamps = [int(row["ts_ms"]) for row in csv.DictReader(file)]
    wanted = TimeRange(min(stamps), max(stamps) + MINUTE_MS)
    hours = await service.open_ranges("XNYS", Timeframe.M1, wanted)
    recorded = RangeSet((ts, ts + MINUTE_MS) for ts in stamps)
    assert recorded.length_ms > 6 * 390 * MINUTE_MS
    regular = RangeSet((ts, ts + MINUTE_MS) for ts in stamps if at("1970-01-01T13:30") <= ts % DAY_MS < 20 * HOUR_MS)
    assert regular.length_ms >= 6 * 390 * MINUTE_MS
    assert hours.covers(regular)
    assert hours.covers(recorded), "these hold extended hours, but none outside of them"
    assert hours != RangeSet((wanted,))


# New York weekdays, without a library


async def test_weekdays_in_new_york_need_no_builder(clock: ManualClock) -> None:
    builder = Builder(weekdays("2024-01-01", 5))
    service = SessionService(InMemorySessionRepository(), clock=clock, build=builder)
    found = await service.open_ranges(NY_WEEKDAYS, Timeframe.M1, span("2024-03-08", "2024-03-12"))
    assert found == opened(("2024-03-08T14:30", "2024-03-08T21:00"), ("2024-03-11T13:30", "2024-03-11T20:00"))
    hours = await service.open_ranges(NY_WEEKDAYS, Timeframe.H1, span("2024-03-11T14:00", "2024-03-13"))
    assert hours == opened(("2024-03-11T14:00", "2024-03-11T20:00"), ("2024-03-12T13:00", "2024-03-12T20:00"))
    days = await service.open_ranges(NY_WEEKDAYS, Timeframe.D1, span("2023-12-29", "2024-01-03"))
    assert days == opened(("2023-12-29", "2023-12-30"), ("2024-01-01", "2024-01-03")), "it keeps no holidays"
    assert builder.calls == []


async def test_a_range_may_begin_within_a_session(service: SessionService) -> None:
    wanted = span("2024-03-11T19:59", "2024-03-11T20:01")
    assert await service.open_ranges(NY_WEEKDAYS, Timeframe.M1, wanted) == opened(
        ("2024-03-11T19:59", "2024-03-11T20:00")
    )


async def test_without_a_calendar_everything_is_open(service: SessionService) -> None:
    wanted = span("2024-03-09", "2024-03-10")
    assert await service.open_ranges(None, Timeframe.M1, wanted) == RangeSet((wanted,))


# Loading, building, renewing


SATURDAY = span("2025-05-31", "2025-06-01")


@pytest.fixture
def builder() -> Builder:
    return Builder(weekdays("2025-01-01", 540))


async def closed(service: SessionService) -> bool:
    return await service.open_ranges("X", Timeframe.D1, SATURDAY) == RangeSet()


async def test_a_calendar_is_built_once_however_many_ask(builder: Builder, clock: ManualClock) -> None:
    service = SessionService(InMemorySessionRepository(), clock=clock, build=builder)
    assert all(await asyncio.gather(*(closed(service) for _ in range(20))))
    assert len(builder.calls) == 1
    name, wanted = builder.calls[0]
    assert (name, wanted.start_ms) == ("X", 0)
    assert wanted.end_ms > NOW_MS + 365 * DAY_MS


async def test_a_calendar_that_was_kept_is_not_built_again(builder: Builder, clock: ManualClock) -> None:
    repository = InMemorySessionRepository()
    assert await closed(SessionService(repository, clock=clock, build=builder))
    assert await closed(SessionService(repository, clock=clock, build=builder))
    assert len(builder.calls) == 1


async def test_a_calendar_is_renewed_before_it_ends(builder: Builder, clock: ManualClock) -> None:
    service = SessionService(InMemorySessionRepository(), clock=clock, build=builder)
    assert await closed(service)
    clock.advance(days=120)
    builder.built = weekdays("2025-01-01", 700)
    assert await closed(service)
    assert len(builder.calls) == 2
    assert await closed(service)
    assert len(builder.calls) == 2


async def test_a_calendar_that_cannot_reach_far_enough_is_not_built_all_the_time(
    builder: Builder, clock: ManualClock
) -> None:
    builder.built = weekdays("2025-01-01", 200)
    service = SessionService(InMemorySessionRepository(), clock=clock, build=builder)
    for _ in range(3):
        assert await closed(service)
    assert len(builder.calls) == 1


async def test_while_a_calendar_is_renewed_the_old_one_answers(builder: Builder, clock: ManualClock) -> None:
    started, finish = asyncio.Event(), asyncio.Event()

    async def slow(calendar: str, wanted: TimeRange) -> StoredSessions:
        if builder.calls:
            started.set()
            await finish.wait()
        return await builder(calendar, wanted)

    service = SessionService(InMemorySessionRepository(), clock=clock, build=slow)
    assert await closed(service)
    clock.advance(days=200)
    renewing = asyncio.create_task(closed(service))
    await asyncio.wait_for(started.wait(), 10)
    assert await asyncio.wait_for(closed(service), 10)
    finish.set()
    assert await renewing


async def test_a_failed_build_closes_nothing_and_is_tried_again_later(
    builder: Builder, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    builder.fault = SessionBuildError("it fell over")
    service = SessionService(InMemorySessionRepository(), clock=clock, build=builder)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert await service.open_ranges("X", Timeframe.D1, SATURDAY) == RangeSet((SATURDAY,))
    assert len(builder.calls) == 1
    assert "it fell over" in caplog.text
    builder.fault = None
    clock.advance(minutes=6)
    assert await closed(service)


async def test_a_failed_renewal_leaves_the_old_calendar(builder: Builder, clock: ManualClock) -> None:
    service = SessionService(InMemorySessionRepository(), clock=clock, build=builder)
    assert await closed(service)
    clock.advance(days=200)
    builder.fault = SessionBuildError("it fell over")
    assert await closed(service)
    assert len(builder.calls) == 2


async def test_a_cancelled_build_is_begun_again_by_the_next(builder: Builder, clock: ManualClock) -> None:
    started = asyncio.Event()

    async def endless(calendar: str, wanted: TimeRange) -> StoredSessions:
        if not started.is_set():
            started.set()
            await asyncio.Event().wait()
        return await builder(calendar, wanted)

    service = SessionService(InMemorySessionRepository(), clock=clock, build=endless)
    first = asyncio.create_task(closed(service))
    await asyncio.wait_for(started.wait(), 10)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await closed(service)


async def test_an_unknown_calendar_is_an_error_and_asked_for_once(builder: Builder, clock: ManualClock) -> None:
    builder.fault = UnknownCalendarError("The requested ExchangeCalendar, X, does not exist.")
    service = SessionService(InMemorySessionRepository(), clock=clock, build=builder)
    for _ in range(2):
        with pytest.raises(UnknownCalendarError, match="X, does not exist"):
            await service.open_ranges("X", Timeframe.D1, SATURDAY)
    assert len(builder.calls) == 1


async def test_calendars_are_kept_in_the_database(pool: DatabasePool, xnys: StoredSessions, clock: ManualClock) -> None:
    repository = StoredSessionRepository(pool)
    assert await repository.load("XNYS") is None
    builder = Builder(xnys)
    wanted = span("2024-11-20", "2024-12-10")
    first = await SessionService(repository, clock=clock, build=builder).open_ranges("XNYS", Timeframe.M1, wanted)
    again = await SessionService(repository, clock=clock, build=builder).open_ranges("XNYS", Timeframe.M1, wanted)
    assert first == again
    assert len(builder.calls) == 1
    assert await repository.load("XNYS") == xnys


# The builder's process


async def test_the_real_builder_does_not_know_every_name() -> None:
    with pytest.raises(UnknownCalendarError, match="NOPE"):
        await run_builder_subprocess("NOPE", BUILT)


async def test_the_real_builder_knows_other_exchanges_hours() -> None:
    london = await run_builder_subprocess("XLON", span("2024-01-01", "2025-01-01"))
    first = london.sessions[0]
    assert first == Session(
        at("2024-01-02"),
        at("2024-01-02T08:00"),
        at("2024-01-02T16:30"),
        at("2024-01-02T08:00"),
        at("2024-01-02T16:30"),
    )


GOOD = [0, 10, 20, 5, 30]
NONSENSE = {
    "nothing": "",
    "no json": "Traceback",
    "a list": "[]",
    "no sessions": json.dumps({"first_ms": 0, "last_ms": DAY_MS, "sessions": []}),
    "short rows": json.dumps({"first_ms": 0, "last_ms": DAY_MS, "sessions": [GOOD[:4]]}),
    "texts": json.dumps({"first_ms": 0, "last_ms": DAY_MS, "sessions": [["0"] * 5]}),
    "fractions": json.dumps({"first_ms": 0, "last_ms": DAY_MS, "sessions": [[0.0, 10, 20, 5, 30]]}),
    "a close before the open": json.dumps({"first_ms": 0, "last_ms": DAY_MS, "sessions": [[0, 20, 10, 5, 30]]}),
    "a date outside": json.dumps({"first_ms": DAY_MS, "last_ms": 2 * DAY_MS, "sessions": [GOOD]}),
    "a date twice": json.dumps({"first_ms": 0, "last_ms": DAY_MS, "sessions": [GOOD, GOOD]}),
}


@pytest.mark.parametrize("output", NONSENSE.values(), ids=NONSENSE.keys())
async def test_what_a_builder_prints_is_checked(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _run_instead(monkeypatch, f"print({output!r})")
    with pytest.raises(SessionBuildError, match="nonsense"):
        await run_builder_subprocess("XNYS", BUILT)


async def test_a_builder_that_dies_is_an_error_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    _run_instead(monkeypatch, "raise SystemExit('out of luck')")
    with pytest.raises(SessionBuildError, match="ended with 1: out of luck"):
        await run_builder_subprocess("XNYS", BUILT)


async def test_a_builder_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    _run_instead(monkeypatch, "import time; time.sleep(600)")
    monkeypatch.setattr(sessions, "_BUILD_TIMEOUT_S", 0.3)
    with pytest.raises(SessionBuildError, match="took over"):
        await run_builder_subprocess("XNYS", BUILT)


def _run_instead(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let the builder's process run other code."""
    real = sessions._output_of

    async def other(_: Sequence[str]) -> bytes:
        return await real([sys.executable, "-I", "-c", code])

    monkeypatch.setattr(sessions, "_output_of", other)


def test_the_process_that_uses_sessions_never_loads_the_library() -> None:
    code = """
import asyncio, sys
from services.sessions import InMemorySessionRepository, SessionService, Timeframe, TimeRange
from domain.clock import SystemClock
service = SessionService(InMemorySessionRepository(), clock=SystemClock())
week = TimeRange(1732492800000, 1733097600000)
hours = asyncio.run(service.open_ranges("XNYS", Timeframe.M1, week))
print(hours.length_ms // 3_600_000, [name for name in ("exchange_calendars", "pandas", "numpy") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split(maxsplit=1) == ["61", "[]\n"], "three days of 16 hours and one of 13"


def test_fifty_years_of_sessions_take_little_memory(xnys: StoredSessions) -> None:
    held = sessions._StoredHours(xnys)
    size = sum(sys.getsizeof(column) for column in (held._dates, held._opens, held._closes))
    assert len(xnys.sessions) > 14_000
    assert size < 500_000


def test_a_half_day_is_one_that_closes_before_four(xnys: StoredSessions) -> None:
    """By hand from the exchange's published hours of 2024."""
    year = span("2024-01-01", "2025-01-01")
    half_days = [
        datetime.fromtimestamp(s.date_ms / 1000, UTC).strftime("%m-%d")
        for s in xnys.sessions
        if year.contains(s.date_ms) and s.extended_close_ms - s.extended_open_ms == timedelta(hours=13) // _MS
    ]
    assert half_days == ["07-03", "11-29", "12-24"]


_MS = timedelta(milliseconds=1)
