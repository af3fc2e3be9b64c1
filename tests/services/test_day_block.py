"""An hour of minutes in slots: what is laid over it, and what is read out of it."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from domain.packed import PackedBars
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS
from services.day_block import ALL, DayBlock, Findings, Hour, hours_of, mask, runs, touched_hours
from tests.support.market import START_MS, random_minutes

_bits = st.integers(0, ALL)


def hour_with(known: int, present: int, seed: int) -> Hour:
    held = [bar for slot, bar in enumerate(random_minutes(seed, 60, holes=0)) if present >> slot & 1]
    slots = RangeSet(
        (START_MS + slot * MINUTE_MS, START_MS + (slot + 1) * MINUTE_MS) for slot in range(60) if known >> slot & 1
    )
    for _, hour in hours_of(PackedBars.of(held), slots):
        return hour
    return Hour(0, 0, b"")


def row(hour: Hour, slot: int) -> bytes:
    return hour.raw(slot, slot + 1)


@given(_bits)
def test_runs_are_the_stretches_of_set_bits(bits: int) -> None:
    found = list(runs(bits))
    assert sum(mask(*run) for run in found) == bits
    assert all(before[1] < after[0] for before, after in pairwise(found))


@given(_bits, _bits, _bits, _bits)
def test_what_is_newer_counts_and_what_it_does_not_know_stays(known: int, bars: int, newer: int, its_bars: int) -> None:
    old, new = hour_with(known, bars & known, 1), hour_with(newer, its_bars & newer, 2)
    before = (old.known, old.present, old.slots)
    now = old.overlaid(new)
    assert now.known == known | newer
    for slot in range(60):
        assert row(now, slot) == row(new if newer >> slot & 1 else old, slot)
    assert (old.known, old.present, old.slots) == before, "whoever reads the old one is not disturbed"


@given(_bits, st.integers(0, 59), st.integers(1, 60))
def test_text_that_was_made_before_is_that_which_is_made_when_it_is_asked_for(
    bits: int, first: int, length: int
) -> None:
    early, late = hour_with(ALL, bits, 3), hour_with(ALL, bits, 3)
    early.write_out()
    end = min(60, first + length)
    assert early.count(first, end) == len(early.raw(first, end)) // 48
    if early.count(first, end):
        assert early.text(first, end) == late.text(first, end)


def test_a_day_gives_what_it_knows_of_what_is_wanted() -> None:
    bars = random_minutes(4, 180, holes=0.3)
    block = DayBlock(START_MS)
    known = RangeSet.of(START_MS + 10 * MINUTE_MS, START_MS + 130 * MINUTE_MS)
    for hour_ms, hour in hours_of(PackedBars.of(bars), known):
        block.lay((hour_ms - START_MS) // HOUR_MS, hour)
    found = Findings()
    wanted = RangeSet((TimeRange(START_MS, START_MS + HOUR_MS), TimeRange(START_MS + 2 * HOUR_MS, START_MS + DAY_MS)))
    block.take(wanted, found)
    assert found.known == known & wanted
    assert found.bars == PackedBars.of(bars).between(known & wanted)
    assert touched_hours(known) == [0, 1, 2]
