"""How often something took how long, in plain numbers: what is counted on every answer must cost next to nothing."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate


class Histogram:
    """Counts seconds by upper bounds, as Prometheus has it."""

    def __init__(self, bounds_s: Sequence[float]) -> None:
        """Take the bounds, ascending; what is above them all is counted, too."""
        self._bounds_s = bounds_s
        self._counts = [0] * (len(bounds_s) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """It took so long."""
        self._counts[bisect_left(self._bounds_s, seconds)] += 1
        self.sum_s += seconds

    def buckets(self) -> list[tuple[str, int]]:
        """For each bound how often it took no longer than that."""
        bounds = (*(str(float(bound)) for bound in self._bounds_s), "+Inf")
        return list(zip(bounds, accumulate(self._counts), strict=True))
