"""Random markets whose volumes add up exactly in floating point, so that folds can be compared for equality."""

import random

from hypothesis import strategies as st

from domain.bar import Bar
from domain.timeframe import MINUTE_MS

#: 2022-12-13, a Tuesday.
START_MS = 1_670_889_600_000


def random_bar(rng: random.Random, ts: int) -> Bar:
    low, open_, close, high = sorted(rng.randrange(1, 4000) / 4 for _ in range(4))
    if rng.random() < 0.5:
        open_, close = close, open_
    return Bar(ts, open_, high, low, close, rng.randrange(0, 100_000) / 1024)


def random_minutes(seed: int, count: int, *, start_ms: int = START_MS, holes: float = 0.1) -> list[Bar]:
    rng = random.Random(seed)
    stamps = (start_ms + minute * MINUTE_MS for minute in range(count))
    return [random_bar(rng, ts) for ts in stamps if rng.random() >= holes]


@st.composite
def markets(draw: st.DrawFn, *, most_minutes: int = 3000) -> list[Bar]:
    """Minutes with holes of all sizes, some of them whole hours."""
    seed = draw(st.integers(0, 2**32))
    count = draw(st.integers(1, most_minutes))
    bars = random_minutes(seed, count, holes=draw(st.sampled_from([0.0, 0.05, 0.5, 0.95])))
    gap_at, gap = draw(st.integers(0, count)), draw(st.sampled_from([0, 7, 61, 300]))
    lost = range(START_MS + gap_at * MINUTE_MS, START_MS + (gap_at + gap) * MINUTE_MS)
    return [bar for bar in bars if bar.ts not in lost]
