"""A scripted provider with a stream that says what the test wants, when it wants."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence

from domain.bar import Bar, fold, within
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import MINUTE_MS, Timeframe
from plugins.base import Capabilities, LiveBars, NetworkPluginError, Page, PluginError
from tests.support.clock import ManualClock
from tests.support.scripted import ScriptedPlugin

STREAMED = Capabilities(
    timeframes=(Timeframe.M1,), bars_per_call=500, calls_per_second=10_000, live="stream", settle_ms=2_000
)


class LivePlugin(ScriptedPlugin):
    """REST gives what has begun by its clock; the stream of each symbol is fed by `tell` and ended by `fail`."""

    def __init__(
        self,
        minutes: Mapping[str, Sequence[Bar]],
        clock: ManualClock,
        *,
        capabilities: Capabilities = STREAMED,
        calendar: str | None = None,
    ) -> None:
        super().__init__(minutes, capabilities=capabilities, calendar=calendar)
        self._clock = clock
        self._lines: dict[str, asyncio.Queue[LiveBars | PluginError]] = {}
        #: Streams begun, and what each of the next ones is refused with at once.
        self.connections = 0
        self.refusals: list[PluginError] = []
        #: Refuse every stream with this.
        self.closed_door: PluginError | None = None
        #: Symbols that are listened to now.
        self.listened: set[str] = set()

    async def live_minutes(self, symbol: str) -> AsyncGenerator[LiveBars, None]:
        self.connections += 1
        await asyncio.sleep(0)
        if self.refusals:
            raise self.refusals.pop(0)
        if self.closed_door is not None:
            raise self.closed_door
        if symbol in self.listened:
            raise PluginError(f"{symbol} is streamed already")
        queue = self._lines[symbol] = asyncio.Queue()
        self.listened.add(symbol)
        try:
            while True:
                word = await queue.get()
                if isinstance(word, PluginError):
                    raise word
                yield word
        finally:
            self.listened.discard(symbol)
            del self._lines[symbol]

    def tell(self, *bars: Bar, closed: bool | None = None, symbol: str = "A/B", venue_ms: int | None = None) -> None:
        """Say something on the stream, which must be listened to."""
        self._lines[symbol].put_nowait(LiveBars(symbol, bars, closed, venue_ms))

    def fail(self, error: PluginError | None = None, symbol: str = "A/B") -> None:
        """End the stream."""
        self._lines[symbol].put_nowait(error or NetworkPluginError("the connection was lost"))

    def is_heard(self, symbol: str = "A/B") -> bool:
        """Whether nothing that was said waits to be listened to."""
        return symbol not in self._lines or self._lines[symbol].empty()

    def honest_page(self, symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Page:
        page = super().honest_page(symbol, timeframe, wanted)
        present = RangeSet.of(0, self._clock.now_ms())
        return Page(within(fold(page.bars, timeframe), present), page.covered)


def flat(ts: int, price: float = 10.0, volume: float = 1.0) -> Bar:
    """A bar that only says which one it is."""
    return Bar(ts, price, price, price, price, volume)


def part_of(bar: Bar, share: float) -> Bar:
    """A bar before its minute is over."""
    return Bar(bar.ts, bar.open, bar.open, bar.open, bar.open, bar.volume * share)


def minute(n: int, start_ms: int) -> int:
    """The start of a minute, counted from an instant."""
    return start_ms + n * MINUTE_MS
