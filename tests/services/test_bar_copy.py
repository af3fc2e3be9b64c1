"""Packed bars are copied into the store by their bytes, and are there what they were, on every kind of database."""

import pytest

from domain.bar import Bar, fold
from domain.packed import PackedBars, runs_of
from domain.series import Series
from domain.time_range import TimeRange
from domain.timeframe import DAY_MS, MINUTE_MS, Timeframe
from services import bar_store
from services.bar_store import BarStore
from tests.support.market import START_MS, random_minutes

EVER = TimeRange(START_MS - DAY_MS, START_MS + 400 * DAY_MS)


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
