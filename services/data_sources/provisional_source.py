"""Bars folded from minutes that were all answered for, though some emptiness among them is not confirmed yet."""

from domain.time_range import RangeSet
from services.bar_store import Folded
from services.coverage import Knowledge
from services.data_sources.aggregate_source import AggregateSource
from services.data_sources.base import Ask


class ProvisionalSource(AggregateSource):
    """The last resort for coarser timeframes: asked when the provider did not give its own bars. Settles nothing."""

    async def _pick(
        self,
        ask: Ask,  # noqa: ARG002 - as the source that it widens
        folded: Folded,  # noqa: ARG002
        knowledge: Knowledge,  # noqa: ARG002
        reach: RangeSet,
    ) -> tuple[RangeSet, RangeSet]:
        """All that was answered for, none of it settled."""
        return reach, RangeSet()
