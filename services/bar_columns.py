"""Bars as columns of numbers, which are checked all at once: a year of minutes in some milliseconds."""

from collections.abc import Iterator, Sequence
from math import inf

import numpy as np
from numpy.typing import NDArray

from domain.bar import Bar
from domain.packed import ROW, PackedBars, Rows
from domain.timeframe import Timeframe

#: Rows of `domain.packed`.
PACKED = np.dtype(
    [("ts", ">i8"), ("open", ">f8"), ("high", ">f8"), ("low", ">f8"), ("close", ">f8"), ("volume", ">f8")]
)
assert PACKED.itemsize == ROW.size


class BarColumns:
    """At least one bar; times in UTC epoch milliseconds."""

    __slots__ = ("ts", "values")

    def __init__(self, ts: NDArray[np.int64], values: Sequence[NDArray[np.float64]]) -> None:
        """Take the times, and opens, highs, lows, closes and volumes."""
        self.ts = ts
        self.values = tuple(values)

    def __len__(self) -> int:
        """How many bars."""
        return len(self.ts)

    def __iter__(self) -> Iterator[Bar]:
        """One after the other."""
        return map(Bar, *(column.tolist() for column in (self.ts, *self.values)))

    @property
    def bounds(self) -> tuple[int, int]:
        """Times of the first and the last bar."""
        return int(self.ts[0]), int(self.ts[-1])

    def ascending(self) -> "BarColumns | None":
        """The bars in order; None where that is neither how they stand nor the other way round."""
        columns = self
        if self.ts[0] > self.ts[-1]:
            columns = BarColumns(self.ts[::-1], [column[::-1] for column in self.values])
        return columns if bool(np.all(columns.ts[1:] > columns.ts[:-1])) else None

    def are_good(self, timeframe: Timeframe) -> bool:
        """Whether no bar breaks a rule, as `domain.bar.fault_of` has them. Not for months."""
        open_, high, low, close, volume = self.values
        assert timeframe.width_ms is not None
        # A comparison with NaN is false.
        good = (low <= open_) & (open_ <= high) & (low <= close) & (close <= high)
        good &= (volume >= 0) & (volume < inf) & (low > -inf) & (high < inf)
        good &= (self.ts - timeframe.origin_ms) % timeframe.width_ms == 0
        return bool(np.all(good))

    def packed(self) -> PackedBars:
        """The same, packed."""
        rows = np.empty(len(self), PACKED)
        for name, column in zip(PACKED.names or (), (self.ts, *self.values), strict=True):
            rows[name] = column
        return PackedBars(Rows(rows.tobytes()))
