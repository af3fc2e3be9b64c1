"""Packed bars are copied into the store by their bytes, and are there what they were, on every kind of database."""

from itertools import count, pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain.bar import Bar, fold
from domain.packed import PackedBars, runs_of
from domain.series import Series
from domain.time_range import TimeRange
from domain.timeframe import DAY_MS, MINUTE_MS, Timeframe
from services import bar_store
from services.bar_store import BarStore
from services.rollups import LEVELS
from tests.support.market import START_MS, random_minutes

EVER = TimeRange(START_MS - DAY_MS, START_MS + 400 * DAY_MS)
_numbers = count()


async def test_packed_bars_are_copied_and_fold_like_others(
    any_store: BarStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bar_store, "ROWS_PER_COPY", 2_500)
    series = await any_store.ensure_series(Series("test", "scripted", "PACKED/COPY"))
    bars = random_minutes(11, 6_000)
    found = PackedBars.of(bars)
    written = await any_store.record(
        series.id, Timeframe.M1, bars=found, answered=runs_of(found, Timeframe.M1), was_asked=False
    )
    assert written == (len(bars), 0)
    assert await any_store.read(series.id, Timeframe.M1, EVER) == bars
    assert (await any_store.read_folded(series.id, Timeframe.H1, EVER)).bars == fold(bars, Timeframe.H1)


async def test_packed_bars_over_others_alter_only_what_differs(any_store: BarStore) -> None:
    series = await any_store.ensure_series(Series("test", "scripted", "PACKED/AGAIN"))
    bars = random_minutes(12, 300, holes=0)
    first = PackedBars.of(bars)
    await any_store.record(series.id, Timeframe.M1, bars=first, answered=runs_of(first, Timeframe.M1))
    last = bars[-1]
    altered = Bar(last.ts, last.open, last.high, last.low, last.close, last.volume + 1)
    later = [*bars[:-1], altered, Bar(last.ts + MINUTE_MS, 1.0, 2.0, 0.5, 1.5, 3.0)]
    again = PackedBars.of(later)
    written = await any_store.record(series.id, Timeframe.M1, bars=again, answered=runs_of(again, Timeframe.M1))
    assert written == (2, 1)
    assert await any_store.read(series.id, Timeframe.M1, EVER) == later


@st.composite
def parts_of_a_market(draw: st.DrawFn) -> list[list[Bar]]:
    """Minutes with holes, in parts of any size that come in any order."""
    start_ms = START_MS + draw(st.integers(0, 3_000)) * MINUTE_MS
    made = random_minutes(draw(st.integers(0, 99)), draw(st.integers(60, 9_000)), start_ms=start_ms)
    # Volumes that add up to another number in another order.
    bars = [Bar(bar.ts, bar.open, bar.high, bar.low, bar.close, bar.volume / 7) for bar in made]
    cuts = sorted(draw(st.lists(st.integers(0, len(bars)), max_size=4)))
    parts = [bars[first:last] for first, last in pairwise([0, *cuts, len(bars)])]
    return draw(st.permutations([part for part in parts if part]))


@given(parts=parts_of_a_market())
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
async def test_the_aggregates_of_packed_bars_are_to_the_bit_those_of_others(
    any_store: BarStore, parts: list[list[Bar]]
) -> None:
    number = next(_numbers)
    packed, plain = [
        await any_store.ensure_series(Series("test", "scripted", f"{kind}/{number}")) for kind in ("PACKED", "PLAIN")
    ]
    for part in parts:
        answered = runs_of(part, Timeframe.M1)
        await any_store.record(packed.id, Timeframe.M1, bars=PackedBars.of(part), answered=answered)
        await any_store.record(plain.id, Timeframe.M1, bars=part, answered=answered)
    for level in LEVELS:
        query = f"SELECT ts, open, high, low, close, volume, minutes FROM {level.table} WHERE series_id = $1 ORDER BY 1"
        async with any_store.database.connection() as db:
            ours, theirs = [[tuple(row) for row in await db.fetch(query, one.id)] for one in (packed, plain)]
        assert ours == theirs
        assert sum(row[6] for row in ours) == sum(map(len, parts))


async def test_stale_aggregates_where_minutes_are_copied_are_replaced(any_store: BarStore) -> None:
    """Somebody deleted minutes by hand."""
    series = await any_store.ensure_series(Series("test", "scripted", "PACKED/STALE"))
    bars = random_minutes(13, 3_000)
    for found in (PackedBars.of(random_minutes(14, 3_000)), PackedBars.of(bars)):
        await any_store.record(series.id, Timeframe.M1, bars=found, answered=runs_of(found, Timeframe.M1))
        if list(found) != bars:
            async with any_store.database.connection() as db:
                await db.execute("DELETE FROM bars_1m WHERE series_id = $1", series.id)
    assert (await any_store.read_folded(series.id, Timeframe.H1, EVER)).bars == fold(bars, Timeframe.H1)
