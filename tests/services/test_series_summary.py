"""Stored series in numbers: what is counted equals what is there, minute by minute."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain.bar import Bar
from domain.series import Series, Verdict
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from services.bar_store import BarStore, StoredSeries
from services.coverage import tile
from services.retention import Retention
from services.series_summary import MISSING, NativeBars, SeriesFilter, SeriesSummaries, StoredPart
from services.sessions import NY_WEEKDAYS, InMemorySessionRepository, SessionService
from tests.support.clock import ManualClock
from tests.support.market import random_minutes

M1 = Timeframe.M1
_numbers = count()


@dataclass
class Opened:
    """A provider that is open."""

    market: str
    provider: str
    settle_ms: int

    @property
    def feed(self) -> Any:
        return self

    @property
    def capabilities(self) -> Any:
        return self


@dataclass
class Markets:
    opened: list[Any] = field(default_factory=list)

    def open_providers(self) -> Sequence[Any]:
        return self.opened


@pytest.fixture
def markets() -> Markets:
    return Markets()


def summaries_on(store: BarStore, clock: ManualClock, markets: Markets) -> SeriesSummaries:
    return SeriesSummaries(store, SessionService(InMemorySessionRepository(), clock=clock), markets, clock)


@pytest.fixture
def summaries(any_store: BarStore, clock: ManualClock, markets: Markets) -> SeriesSummaries:
    return summaries_on(any_store, clock, markets)


def a_name() -> Series:
    return Series("test", "scripted", f"S{next(_numbers)}")


async def summary(summaries: SeriesSummaries, series: Series) -> StoredPart:
    (found,), more = await summaries.page(SeriesFilter(*series), limit=10)
    assert not more
    return found


async def by_minute(store: BarStore, stored: StoredSeries, span: TimeRange, clock: ManualClock) -> Counter[Verdict]:
    """The verdict of each minute, from the minutes themselves."""
    sessions = SessionService(InMemorySessionRepository(), clock=clock)
    closed = RangeSet((span,)) - await sessions.open_ranges(stored.calendar, M1, span)
    knowledge = await store.knowledge(stored.id, M1, span)
    data = await store.runs(stored.id, M1, span, folded=True)
    found: Counter[Verdict] = Counter()
    for part in tile(RangeSet((span,)), data=data, closed=closed, knowledge=knowledge):
        found[part.verdict] += part.range.length_ms // MINUTE_MS
    return found


async def begins(store: BarStore, stored: StoredSeries, now_ms: int) -> int | None:
    """The first minute with a bar, or that was asked for and not found to lie before a listing."""
    ever = TimeRange(0, now_ms)
    known = await store.knowledge(stored.id, M1, ever)
    asked = (
        known.answered | RangeSet(c.range for c in known.checks if c.attempts and not c.answered)
    ) - known.not_listed
    span = (asked | await store.runs(stored.id, M1, ever, folded=True)).span
    return None if span is None else span.start_ms


class Step(NamedTuple):
    """Something that happens to minutes `[at, at + length)`, counted from three days before today."""

    kind: str
    at: int
    length: int
    holes: float = 0.0
    hours_later: int = 0


KINDS = ("record", "record", "record", "vouched", "file", "unsettled", "unsettled", "failed", "not_listed", "forget")
MOST = 4 * 1440
steps = st.lists(
    st.builds(
        Step,
        st.sampled_from(KINDS),
        st.integers(0, MOST),
        st.one_of(st.integers(1, 200), st.integers(200, MOST)),
        st.sampled_from([0.0, 0.1, 0.9, 1.0]),
        st.sampled_from([0, 0, 2]),
    ),
    min_size=1,
    max_size=7,
)


async def happen(store: BarStore, clock: ManualClock, stored: StoredSeries, step: Step) -> None:
    clock.advance(hours=step.hours_later)
    first_ms = Timeframe.D1.floor(clock.now_ms()) - 3 * DAY_MS
    start_ms = first_ms + step.at * MINUTE_MS
    span = RangeSet.of(start_ms, min(start_ms + step.length * MINUTE_MS, M1.floor(clock.now_ms())))
    if not span:
        return
    start_ms = next(iter(span)).start_ms
    if step.kind == "failed":
        await store.record_failure(stored.id, M1, span, "down")
    elif step.kind == "not_listed":
        async with store.database.transaction() as db:
            await store.ledger.not_listed(db, stored.id, M1, RangeSet.of(0, start_ms))
    elif step.kind == "forget":
        # Nothing is settled after it: on TimescaleDB the aggregates still hold what is gone.
        await Retention(store.database, store.rollups, clock, days=1 + step.at % 3).run()
    else:
        await record(store, stored, step, span)


async def record(store: BarStore, stored: StoredSeries, step: Step, span: RangeSet) -> None:
    ((start_ms, end_ms),) = span
    minutes = (end_ms - start_ms) // MINUTE_MS
    bars = random_minutes(step.at, minutes, start_ms=start_ms, holes=step.holes)
    options = {"vouched": step.kind == "vouched", "was_asked": step.kind != "file"}
    async with store.database.transaction() as db:
        await store.record_in(db, stored.id, M1, bars=bars, answered=span, **options)
    if step.kind != "unsettled":
        await store.settle()


@given(history=steps, calendar=st.sampled_from([None, NY_WEEKDAYS]), settle_ms=st.sampled_from([0, 2_000, 600_000]))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
async def test_the_numbers_are_those_of_counting_every_minute(
    any_store: BarStore,
    summaries: SeriesSummaries,
    markets: Markets,
    clock: ManualClock,
    history: list[Step],
    calendar: str | None,
    settle_ms: int,
) -> None:
    series = a_name()
    markets.opened = [Opened(series.market, series.provider, settle_ms)]
    stored = await any_store.ensure_series(series, calendar=calendar)
    for step in history:
        await happen(any_store, clock, stored, step)
    found = await summary(summaries, series)
    end_ms = M1.floor(clock.now_ms() - settle_ms)
    start_ms = await begins(any_store, stored, clock.now_ms())
    if start_ms is None or start_ms >= end_ms:
        assert (found.range, found.bars, set(found.missing.values())) == (None, 0, {0})
        return
    assert found.range == (start_ms, end_ms)
    truth = await by_minute(any_store, stored, found.range, clock)
    assert {Verdict.DATA: found.bars, **found.missing} == {verdict: truth[verdict] for verdict in Verdict}
    bars = await any_store.read(stored.id, M1, found.range)
    assert (found.first_ms, found.last_ms) == ((bars[0].ts, bars[-1].ts) if bars else (None, None))
    assert found.lag_s == ((clock.now_ms() - bars[-1].ts - MINUTE_MS) / 1000 if bars else None)


async def test_whole_days_and_hours_are_counted_without_reading_their_minutes(
    store: BarStore, clock: ManualClock, markets: Markets
) -> None:
    series, start_ms = a_name(), clock.now_ms() - 5 * DAY_MS + 90 * MINUTE_MS
    stored = await store.ensure_series(series)
    bars = random_minutes(1, 3 * 1440, start_ms=start_ms)
    await store.record(stored.id, M1, bars=bars, answered=RangeSet.of(start_ms, start_ms + 3 * DAY_MS))
    # No way that the product goes: were the minutes read, they would be missed.
    async with store.database.connection() as db:
        await db.execute(
            "DELETE FROM bars_1m WHERE series_id = $1 AND ts >= $2 AND ts < $3",
            stored.id,
            start_ms + 30 * MINUTE_MS,
            start_ms + 3 * DAY_MS - 30 * MINUTE_MS,
        )
    found = await summary(summaries_on(store, clock, markets), series)
    assert found.bars == len(bars)


async def test_a_series_of_which_nothing_is_known_has_no_range(any_store: BarStore, summaries: SeriesSummaries) -> None:
    series = a_name()
    await any_store.ensure_series(series, calendar="XNYS", listed_ms=HOUR_MS)
    found = await summary(summaries, series)
    assert found == StoredPart(series, "XNYS", None, None, None, 0, dict.fromkeys(MISSING, 0), None, ())


async def test_a_calendar_that_nobody_knows_counts_as_open_and_spoils_no_other_series(
    any_store: BarStore, summaries: SeriesSummaries, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    series = a_name()
    stored = await any_store.ensure_series(series, calendar="NO_SUCH_PLACE")
    start_ms = clock.now_ms() - DAY_MS
    await any_store.record(stored.id, M1, bars=[], answered=RangeSet.of(start_ms, start_ms + HOUR_MS))
    for _ in range(2):
        found = await summary(summaries, series)
    assert found.missing[Verdict.UNCONFIRMED_EMPTY] == 60
    assert len([record for record in caplog.records if "NO_SUCH_PLACE" in record.message]) == 1


async def test_a_providers_own_bars_of_other_timeframes_are_told_finest_first(
    any_store: BarStore, summaries: SeriesSummaries, clock: ManualClock
) -> None:
    series = a_name()
    stored = await any_store.ensure_series(series)
    day_ms = Timeframe.D1.floor(clock.now_ms())
    for timeframe in (Timeframe.D1, Timeframe.H1):
        bars = [Bar(day_ms - days * DAY_MS, 1.0, 2.0, 0.5, 1.5, 10.0) for days in (9, 4, 1)]
        answered = RangeSet.of(day_ms - 9 * DAY_MS, day_ms)
        await any_store.record(stored.id, timeframe, bars=bars, answered=answered)
    found = await summary(summaries, series)
    assert found.native == tuple(
        NativeBars(timeframe, day_ms - 9 * DAY_MS, day_ms - DAY_MS) for timeframe in (Timeframe.H1, Timeframe.D1)
    )
    assert (found.range, found.bars) == (None, 0)


async def test_series_come_in_order_and_in_pages_and_only_those_that_were_asked_for(
    store: BarStore, clock: ManualClock, markets: Markets
) -> None:
    names = [Series(m, p, s) for m in ("crypto", "stocks") for p in ("a", "B") for s in ("b/c", "A", "a", "\u00e4")]
    for name in reversed(names):
        await store.ensure_series(name)
    summaries = summaries_on(store, clock, markets)

    async def keys(wanted: SeriesFilter, limit: int) -> list[Series]:
        found: list[Series] = []
        more = True
        while more:
            page, more = await summaries.page(wanted, limit=limit, after=found[-1] if found else None)
            assert 0 < len(page) <= limit
            found += [one.series for one in page]
        return found

    for limit in (1, 3, 16, 100):
        assert await keys(SeriesFilter(), limit) == sorted(names)
    assert await keys(SeriesFilter(provider="a"), 3) == sorted(name for name in names if name.provider == "a")
    assert await keys(SeriesFilter("stocks", None, "A"), 1) == [Series("stocks", "B", "A"), Series("stocks", "a", "A")]
    assert await summaries.page(SeriesFilter("stocks", "c"), limit=5) == ([], False)


async def test_minutes_that_were_forgotten_do_not_count_though_the_aggregates_still_hold_them(
    any_store: BarStore, summaries: SeriesSummaries, clock: ManualClock
) -> None:
    series, start_ms = a_name(), Timeframe.D1.floor(clock.now_ms()) - 4 * DAY_MS
    stored = await any_store.ensure_series(series)
    bars = random_minutes(1, 4 * 1440, start_ms=start_ms)
    await any_store.record(stored.id, M1, bars=bars, answered=RangeSet.of(start_ms, start_ms + 4 * DAY_MS))
    await Retention(any_store.database, any_store.rollups, clock, days=2).run()
    await any_store.record_failure(stored.id, M1, RangeSet.of(start_ms, start_ms + DAY_MS), "down")
    found = await summary(summaries, series)
    assert found.range is not None
    assert found.range.start_ms == start_ms
    assert found.bars == sum(bar.ts >= start_ms + 2 * DAY_MS for bar in bars)
    assert found.missing[Verdict.FETCH_FAILED] == found.missing[Verdict.NEVER_FETCHED] == 1440
