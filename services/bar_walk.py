"""The walk along the time axis behind one OHLCV answer: window after window until there are enough bars."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from domain.bar import Bar
from domain.packed import joined, runs_of
from domain.series import Gap, Series, Verdict
from domain.time_range import NOWHERE, RangeSet, TimeRange
from domain.timeframe import Timeframe
from plugins.base import PluginError
from services.data_orchestrator import Bars, DataOrchestrator
from services.data_sources.base import Ask
from services.fill import Fill, fill_previous
from services.heavy import aside
from services.market_service import Listing
from services.revisions import Stamp

#: Windows that one answer looks at; what a thinly traded symbol has beyond them is on the next page.
ROUNDS = 24
#: A window that held too little is followed by one so many times as wide, up to the widest, in buckets.
WIDENING = 4
WIDEST = 20_000
#: The search for the last bars ends where so many windows in a row held none.
EMPTY_WINDOWS = 4


@dataclass(frozen=True, kw_only=True)
class OhlcvQuery:
    """What a client asks for, of one series.

    Attributes:
        start_ms: bars from here on, the first `limit` of them; None: the last `limit` before `end_ms`.
        end_ms: bars before here; None: now.
        carry: with a fill, the close of the bar before `start_ms`, from an earlier page.
        settled_ms: minutes before here are known to be final, whatever the clock says: a stream told of them.
    """

    series: Series
    timeframe: Timeframe
    start_ms: int | None = None
    end_ms: int | None = None
    limit: int = 1000
    include_forming: bool = False
    fill: Fill = Fill.NONE
    carry: float | None = None
    settled_ms: int = 0


@dataclass
class OhlcvAnswer:
    """Ascending bars, and all that must be said of them.

    Attributes:
        next_ms: where the next page begins; None: nothing more to come now.
        sources: where the bars came from.
        gaps: what is not known in full of the range that the bars were looked for in.
        filled: times of the bars that are a view, not data.
        forming: times of the bars that may still change.
        error: what the provider failed with on the way, where it did.
        simulated: the bars are made up, by a provider that says so.
        in_past: nothing of the range can change any more, but by a correction.
        stamp: what its bars were read under.
        until_ms: as long as the stamp holds, the same question has this answer until then; None: for good. 0: it is
            not known what may change it.
    """

    bars: Sequence[Bar] = ()
    next_ms: int | None = None
    sources: list[str] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    filled: list[int] = field(default_factory=list)
    forming: list[int] = field(default_factory=list)
    error: PluginError | None = None
    simulated: bool = False
    in_past: bool = False
    stamp: Stamp | None = None
    until_ms: int | None = 0


class BarWalk:
    """One answer in the making."""

    def __init__(self, orchestrator: DataOrchestrator, listing: Listing, query: OhlcvQuery, now_ms: int) -> None:
        """Fix the present: everything that starts before `_final_ms` has ended and settled."""
        self._orchestrator = orchestrator
        self._listing = listing
        self._query = query
        self._now_ms = now_ms = max(now_ms, query.settled_ms)
        self._tf = query.timeframe
        capabilities = listing.feed.capabilities if listing.feed else None
        self._page_size = capabilities.bars_per_call if capabilities else query.limit
        settling_ms = capabilities.settle_ms if capabilities else 0
        self._final_ms = self._tf.floor(max(now_ms - settling_ms, query.settled_ms))
        self._end_ms = self._tf.ceil(now_ms if query.end_ms is None else min(query.end_ms, now_ms))
        self._stop_ms = min(self._end_ms, self._final_ms)
        #: Then another bucket becomes final.
        self._moves_ms = self._tf.next(self._final_ms) + settling_ms
        self._lasting = True
        self._closed = NOWHERE
        self._answer = OhlcvAnswer(
            simulated=capabilities.simulated if capabilities else False,
            in_past=query.end_ms is not None and self._end_ms <= self._final_ms,
            stamp=listing.stored.stamp,
        )

    async def forward(self, start_ms: int) -> OhlcvAnswer:
        """The first `limit` bars from the start on."""
        answer, limit = self._answer, self._query.limit
        first = at = self._tf.ceil(start_ms)
        width = limit
        for _ in range(ROUNDS):
            if at >= self._stop_ms or len(answer.bars) >= limit:
                break
            window = TimeRange(at, min(self._stop_ms, self._tf.back(at, -width)))
            got = await self._take(window)
            unasked_ms = self._unasked(got)
            if unasked_ms is not None and unasked_ms > at:
                # More than one question may fetch: the next page goes on there.
                at = unasked_ms
                break
            at = window.end_ms
            if not got.bars:
                at = await self._skip_empty(at)
            if len(got.bars) * WIDENING < width:
                width = max(width, min(width * WIDENING, WIDEST))
        await self._fill(RangeSet.of(first, at))
        if at >= self._stop_ms and len(answer.bars) < limit:
            await self._append_forming(max(first, self._stop_ms))
        await aside(len(answer.gaps) + len(answer.filled), self._cut_page, first, at)
        self._date(is_full=answer.next_ms is not None and len(answer.bars) >= limit)
        return answer

    async def backward(self) -> OhlcvAnswer:
        """The last `limit` bars before the end."""
        answer, limit = self._answer, self._query.limit
        at, width, empty = self._stop_ms, limit, 0
        for _ in range(ROUNDS):
            if len(answer.bars) >= limit or at <= 0 or empty == EMPTY_WINDOWS:
                break
            window = TimeRange(await self._open_back(at, width), at)
            got = await self._take(window, newest_first=True)
            at = window.start_ms
            if self._unasked(got) is not None:
                break
            if not got.bars and await self._unlisted(window):
                break
            empty = 0 if got.bars else empty + 1
            width = max(limit, min(max(width * WIDENING, self._page_size), WIDEST))
        if answer.bars:
            await self._fill(RangeSet.of(answer.bars[0].ts, self._stop_ms))
        await self._append_forming(self._stop_ms)
        await aside(len(answer.gaps) + len(answer.filled), self._keep_last, at)
        self._date(is_full=False)
        return answer

    def _date(self, *, is_full: bool) -> None:
        """Say how long the answer is good for. A full page with more behind it stays as it is, as time goes on."""
        answer = self._answer
        if self._lasting and not (answer.gaps or answer.forming or answer.error):
            answer.until_ms = None if answer.in_past or is_full else self._moves_ms

    async def _ask(self, window: TimeRange, *, newest_first: bool = False) -> Ask:
        """A question about a window; once the provider has failed, what is stored must do."""
        return await self._orchestrator.ask(
            self._listing,
            self._tf,
            window,
            self._now_ms,
            newest_first=newest_first,
            stored_only=self._answer.error is not None,
            minutes_final=window.end_ms <= self._query.settled_ms,
        )

    async def _take(self, window: TimeRange, *, newest_first: bool = False) -> Bars:
        ask = await self._ask(window, newest_first=newest_first)
        got = await self._orchestrator.bars(ask)
        answer = self._answer
        answer.bars = joined(answer.bars, got.bars)
        answer.sources += [name for name in got.sources if name not in answer.sources]
        if got.gaps:
            answer.gaps = await aside(len(answer.gaps) + len(got.gaps), _joined, [*answer.gaps, *got.gaps])
        answer.error = got.error or answer.error
        self._closed |= ask.closed
        self._lasting = self._lasting and got.lasting
        return got

    def _unasked(self, got: Bars) -> int | None:
        """Where the provider's reach ends, or what one question may fetch; nothing is asked of one that failed."""
        return got.out_of_reach_ms if self._answer.error is None else None

    async def _skip_empty(self, at: int) -> int:
        """Where the walk goes on when a window held nothing: the provider may know that the next bar lies far ahead.

        What is skipped is still looked at, so that the answer tells what is not known for good in it.
        """
        if at >= self._stop_ms:
            return at
        window = TimeRange(at, self._stop_ms)
        ask = await self._ask(window)
        ahead = await self._orchestrator.skip_empty(ask)
        if ahead > at:
            await self._take(TimeRange(at, ahead))
        return ahead

    async def _open_back(self, end_ms: int, buckets: int) -> int:
        """Where a window must begin to hold so many buckets in which the venue is open."""
        start = max(0, self._tf.back(end_ms, buckets))
        for _ in range(4 if self._listing.stored.calendar else 0):
            ask = await self._ask(TimeRange(start, end_ms))
            shut = sum(self._tf.buckets_between(*part) for part in ask.closed)
            short = buckets + shut - self._tf.buckets_between(start, end_ms)
            if short <= 0 or start == 0:
                break
            start = max(0, self._tf.back(start, short * 2))
        return start

    async def _unlisted(self, window: TimeRange) -> bool:
        ask = await self._ask(window)
        return await self._orchestrator.is_unlisted(ask)

    async def _append_forming(self, from_ms: int) -> None:
        """The bars after the final ones, where they were asked for and the end allows."""
        if not self._query.include_forming or self._end_ms <= self._final_ms:
            return
        window = TimeRange(from_ms, self._end_ms)
        ask = await self._ask(window)
        try:
            bars = await self._orchestrator.forming(ask)
        except PluginError as exc:
            self._answer.error = exc
            self._answer.gaps.append(Gap(window, Verdict.FETCH_FAILED))
            return
        self._answer.bars = joined(self._answer.bars, bars)
        self._answer.forming = [bar.ts for bar in bars]

    async def _fill(self, shown: RangeSet) -> None:
        """Flat bars where surely, or as far as anybody knows, nothing traded while the venue was open."""
        if self._query.fill is Fill.PREVIOUS:
            size = sum(self._tf.buckets_between(*part) for part in shown)
            await aside(size, self._fill_in, shown)

    def _fill_in(self, shown: RangeSet) -> None:
        answer = self._answer
        unknown = RangeSet(gap.range for gap in answer.gaps)
        empty = shown - runs_of(answer.bars, self._tf) - self._closed - unknown
        answer.bars, answer.filled = fill_previous(answer.bars, empty, self._tf, carry=self._query.carry)

    def _cut_page(self, first: int, at: int) -> None:
        """Keep the first `limit` bars; what was looked at behind them belongs to the next page."""
        answer, limit = self._answer, self._query.limit
        if len(answer.bars) > limit:
            answer.bars = answer.bars[:limit]
            at = self._tf.next(answer.bars[-1].ts)
            answer.next_ms = at
        elif at < self._stop_ms:
            answer.next_ms = at
        self._clip(TimeRange(first, at))

    def _keep_last(self, first: int) -> None:
        """Keep the last `limit` bars, and what is to be said of their range."""
        answer, limit = self._answer, self._query.limit
        if len(answer.bars) >= limit:
            answer.bars = answer.bars[-limit:]
            first = answer.bars[0].ts
        self._clip(TimeRange(first, max(first, self._end_ms)))

    def _clip(self, shown: TimeRange) -> None:
        answer = self._answer
        if not (answer.gaps or answer.filled or answer.forming):
            return
        parts = ((gap, gap.range.intersect(shown)) for gap in answer.gaps)
        answer.gaps = [Gap(part, gap.verdict) for gap, part in parts if part is not None]
        kept = {bar.ts for bar in answer.bars} if answer.filled or answer.forming else set()
        answer.filled = [ts for ts in answer.filled if ts in kept]
        answer.forming = [ts for ts in answer.forming if ts in kept]


def _joined(gaps: list[Gap]) -> list[Gap]:
    """Ascending gaps, touching ones of one verdict in one."""
    out: list[Gap] = []
    for gap in sorted(gaps):
        if out and out[-1].verdict is gap.verdict and out[-1].range.end_ms == gap.range.start_ms:
            out[-1] = Gap(TimeRange(out[-1].range.start_ms, gap.range.end_ms), gap.verdict)
        else:
            out.append(gap)
    return out
