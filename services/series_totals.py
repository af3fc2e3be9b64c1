"""What is stored of all series together, for the metrics: counted piece by piece in the background, kept in memory."""

import time
from collections import Counter
from collections.abc import Callable, Mapping

from domain.series import Series, Verdict
from services.series_summary import SeriesSummaries

#: Work of one pass; what is left has its turn in the next.
PASS_S = 2.0
#: Series counted between two looks at the time.
_STEP = 5


class SeriesTotals:
    """Minutes by market, provider and verdict, of the series counted so far; each is counted anew in its turn."""

    def __init__(
        self, summaries: SeriesSummaries, *, pass_s: float = PASS_S, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Take who counts, and how long one pass may go on; do no I/O."""
        self._summaries = summaries
        self._pass_s = pass_s
        self._monotonic = monotonic
        self._minutes: dict[Series, Mapping[Verdict, int]] = {}
        self._counted_to = 0
        #: Stored series; None before the first pass.
        self.series: int | None = None
        #: Minutes by market, provider and verdict, from the first minute known of each series to the present.
        self.minutes: Mapping[tuple[str, str, Verdict], int] = {}

    async def refresh(self) -> None:
        """Count again: every series once, or for as long as a pass may take, going on where the last one stopped.

        Raises:
            DatabaseUnavailableError: the database cannot be reached; what was counted before stands.
        """
        deadline = self._monotonic() + self._pass_s
        self.series = left = await self._summaries.stored()
        while left > 0 and self._monotonic() < deadline:
            rows = await self._summaries.numbered(self._counted_to, min(left, _STEP))
            if not rows and self._counted_to == 0:
                break
            for one in await self._summaries.sum_up(rows):
                self._minutes[one.series] = {Verdict.DATA: one.bars, **one.missing}
            self._counted_to = rows[-1].id if rows else 0
            left -= len(rows)
        self.minutes = self._totals()

    def _totals(self) -> Mapping[tuple[str, str, Verdict], int]:
        totals: Counter[tuple[str, str, Verdict]] = Counter()
        for series, minutes in self._minutes.items():
            for verdict, count in minutes.items():
                totals[series.market, series.provider, verdict] += count
        return totals
