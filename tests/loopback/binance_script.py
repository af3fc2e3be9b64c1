"""A market that plays minutes to a loopback Binance faster than life, with all that can befall them on the way."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import msgspec

from domain.bar import Bar
from domain.timeframe import MINUTE_MS
from tests.loopback import faults
from tests.loopback.binance import BinanceLoopback
from tests.loopback.exchange import forming
from tests.support.clock import ManualClock
from tests.support.market import random_bar, random_minutes

ID = "BTCUSDT"
#: What the REST side does now and then while the stream goes on.
REST_FAULTS = (faults.too_many(), faults.ERROR_500, faults.OVERLOADED, faults.TRUNCATED, faults.DROP, faults.HTML)


class BinanceScript:
    """Minutes from `first_ms` on, after `history`; a seed decides on everything but what `troubles` are to come."""

    def __init__(
        self,
        venue: BinanceLoopback,
        clock: ManualClock,
        *,
        seed: int,
        first_ms: int,
        history: int,
        count: int,
        troubles: int = 4,
    ) -> None:
        self._venue = venue
        self._clock = clock
        self._rng = random.Random(seed)
        start_ms = first_ms - history * MINUTE_MS
        bars = random_minutes(seed, history + count, start_ms=start_ms, holes=self._rng.choice([0.0, 0.05, 0.4]))
        self.first_ms, self.end_ms = first_ms, first_ms + count * MINUTE_MS
        #: What the venue says of each minute now; what is to come included.
        self.truth = {bar.ts: bar for bar in bars}
        #: Minutes that came late, or were changed after their end.
        self.touched: set[int] = set()
        self._held: dict[int, Bar] = {}
        self.troubles: list[str] = []
        kinds = list(self._troubles)
        order = self._rng.sample(kinds, len(kinds))
        stamps = range(first_ms + 5 * MINUTE_MS, self.end_ms - 15 * MINUTE_MS, MINUTE_MS)
        self._due = dict(zip(sorted(self._rng.sample(stamps, troubles)), order, strict=False))
        self._serve()

    @property
    def bars(self) -> list[Bar]:
        """The truth, ascending."""
        return [self.truth[ts] for ts in sorted(self.truth)]

    async def play(self, *, each_minute: Callable[[], Awaitable[None]]) -> None:
        """Let all minutes pass; at the end the venue repeats whatever it corrected, for who has missed it."""
        for ts in range(self.first_ms, self.end_ms, MINUTE_MS):
            if ts in self._due:
                await self._trouble(self._due[ts])
            await each_minute()
            await self._minute(ts)
            if self._rng.random() < 0.1:
                await self._correct(ts - self._rng.randrange(20) * MINUTE_MS)
        await self.settle_down()

    async def settle_down(self) -> None:
        """Nothing more goes wrong, and what was missing is there."""
        self._venue.faults.clear()
        self._venue.stream.errors.clear()
        self._venue.stream.refusals.clear()
        await self._release(share=1.0)

    async def repeat_corrections(self) -> None:
        """Say once more how the minutes are that came late or were changed."""
        for ts in sorted(self.touched):
            await self._close(self.truth[ts])

    async def _minute(self, ts: int) -> None:
        rng, bar = self._rng, self.truth.get(ts)
        if bar is not None and rng.random() < 0.06:
            # The venue itself has it only later.
            self._held[ts] = self.truth.pop(ts)
            self.touched.add(ts)
            self._serve()
            bar = None
        for at_ms in sorted(rng.sample(range(1_000, 59_000), rng.randrange(3))):
            self._set_clock(ts + at_ms)
            if bar is not None:
                await self._venue.stream.say(ID, forming(bar))
        self._set_clock(ts + MINUTE_MS + rng.randrange(50))
        if bar is not None:
            for _ in range(rng.choice([1, 1, 1, 1, 2, 3])):
                await self._close(bar)
        await self._release(share=0.4)
        # Now and then several minutes pass at once.
        if rng.random() < 0.7:
            await asyncio.sleep(rng.uniform(0, 0.02))

    async def _release(self, *, share: float) -> None:
        for ts in [ts for ts in self._held if self._rng.random() < share]:
            self.truth[ts] = self._held.pop(ts)
            self._serve()
            await self._close(self.truth[ts])

    async def _correct(self, ts: int) -> None:
        if ts in self.truth and ts >= self.first_ms:
            self.truth[ts] = msgspec.structs.replace(random_bar(self._rng, ts), open=self.truth[ts].open)
            bar = self.truth[ts]
            high, low = max(bar.open, bar.high), min(bar.open, bar.low)
            self.truth[ts] = msgspec.structs.replace(bar, high=high, low=low)
            self.touched.add(ts)
            self._serve()
            await self._close(self.truth[ts])

    async def _close(self, bar: Bar) -> None:
        await self._venue.stream.say(ID, bar, closed=True)

    def _serve(self) -> None:
        self._venue.set_bars(ID, self.bars)

    def _set_clock(self, now_ms: int) -> None:
        self._clock.advance(minutes=(now_ms - self._clock.now_ms()) / MINUTE_MS)

    async def _trouble(self, kind: str) -> None:
        self.troubles.append(kind)
        await self._troubles[kind]()

    @property
    def _troubles(self) -> dict[str, Callable[[], Awaitable[None]]]:
        return {
            "closed": self._venue.stream.close_all,
            "cut": self._cut,
            "half open": self._fall_silent,
            "cut, and refused": self._refuse,
            "cut, and no subscription": self._refuse_subscriptions,
            "REST in trouble": self._spoil_rest,
            "cut, and REST in trouble": self._spoil_all,
        }

    async def _cut(self) -> None:
        self._venue.stream.cut()

    async def _fall_silent(self) -> None:
        self._venue.stream.fall_silent()

    async def _refuse(self) -> None:
        self._venue.stream.refusals += [(429, {"Retry-After": "0.05"}), (503, {})]
        self._venue.stream.cut()

    async def _refuse_subscriptions(self) -> None:
        self._venue.stream.errors += [{"code": 2, "msg": "Invalid request: invalid stream"}] * 2
        self._venue.stream.cut()

    async def _spoil_rest(self) -> None:
        self._venue.faults.next(*(self._rng.choice([None, *REST_FAULTS]) for _ in range(8)))

    async def _spoil_all(self) -> None:
        await self._spoil_rest()
        self._venue.stream.cut()
