"""Filling as a view: what was never reported is shown flat, marked, and never stored."""

from collections.abc import Sequence
from enum import StrEnum
from operator import itemgetter

from domain.bar import Bar
from domain.time_range import RangeSet
from domain.timeframe import Timeframe


class Fill(StrEnum):
    """How buckets without a trade are shown: not at all, or as flat bars at the previous close, with no volume."""

    NONE = "none"
    PREVIOUS = "previous"


def fill_previous(
    bars: Sequence[Bar], empty: RangeSet, timeframe: Timeframe, *, carry: float | None
) -> tuple[list[Bar], list[int]]:
    """The bars with a flat one in each bucket of `empty`, and the times of those.

    `carry` is the close before the first bar; without one, buckets before the first bar stay out.
    """
    slots: list[tuple[int, Bar | None]] = [(bar.ts, bar) for bar in bars]
    slots += ((ts, None) for part in empty for ts in timeframe.starts(*part))
    shown: list[Bar] = []
    filled: list[int] = []
    for ts, bar in sorted(slots, key=itemgetter(0)):
        if bar is not None:
            carry = bar.close
            shown.append(bar)
        elif carry is not None:
            shown.append(Bar(ts, carry, carry, carry, carry, 0.0))
            filled.append(ts)
    return shown, filled
