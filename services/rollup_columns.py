"""Aggregates of many minutes at once: to the last bit what the database makes of its rows."""

import numpy as np

from domain.packed import PackedBars
from domain.time_range import TimeRange
from services.bar_copy import Columns, columns_of


def minutes_of(bars: PackedBars) -> Columns:
    """Minutes as columns, and how many minutes each stands for."""
    columns = columns_of(bars)
    return [*columns, np.ones(len(columns[0]), np.int64)]


def folded(finer: Columns, width_ms: int, within: TimeRange) -> Columns:
    """Rows of the buckets of `width_ms` that make up `within`, from ascending finer ones."""
    first, last = np.searchsorted(finer[0], within)
    ts, open_, high, low, close, volume, minutes = (column[first:last] for column in finer)
    if not len(ts):
        return ts, open_, high, low, close, volume, minutes
    bucket = ts - ts % width_ms
    starts = np.flatnonzero(np.concatenate(([True], bucket[1:] != bucket[:-1])))
    sizes = np.diff(np.append(starts, len(ts)))
    volumes = volume[starts]
    # One after the other, as PostgreSQL adds them: in another order they would not add up to the same number.
    for place in range(1, int(sizes.max())):
        longer = np.flatnonzero(sizes > place)
        volumes[longer] += volume[starts[longer] + place]
    return (
        bucket[starts],
        open_[starts],
        np.maximum.reduceat(high, starts),
        np.minimum.reduceat(low, starts),
        close[starts + sizes - 1],
        volumes,
        np.add.reduceat(minutes, starts),
    )
