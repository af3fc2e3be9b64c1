"""A provider with every fault that the contract of plugins allows, and a process that ends at any of its steps."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec

from domain.bar import Bar, fold, within
from domain.errors import DatabaseUnavailableError
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import HOUR_MS, MINUTE_MS, Timeframe
from plugins.base import (
    AuthenticationPluginError,
    Capabilities,
    NetworkPluginError,
    Page,
    PluginError,
    PluginFeatureNotSupportedError,
    RateLimitPluginError,
    SymbolNotFoundPluginError,
)
from services.database import Connection, Database
from tests.support.clock import ManualClock
from tests.support.scripted import ScriptedPlugin

#: What a call may meet; what gives a job up for good is rarer than what may pass.
FAULTS = (
    *(["network", "rate limit", "plain", "hang"] * 3),
    *(["late", "late", "empty", "short", "nothing", "rejected", "beyond", "slept"] * 4),
    *("no key", "no symbol", "no feature"),
)


class FaultyPlugin(ScriptedPlugin):
    """Answers with the market as it is when a call arrives; the answer may be long on its way.

    A bar may be late: it is left out at first, though never in two answers an hour or more apart.

    Attributes:
        mischief: how probable a fault is.
        lag_ms: how far the venue's clock is behind; it says so where it is, or where it `tells` its time anyway.
    """

    def __init__(
        self,
        minutes: Mapping[str, Sequence[Bar]],
        clock: ManualClock,
        *,
        seed: int,
        bars_per_call: int = 60,
        mischief: float = 0.4,
        lag_ms: int = 0,
        tells: bool = False,
        vouches: bool = False,
    ) -> None:
        capabilities = Capabilities(
            timeframes=(Timeframe.M1, Timeframe.H1, Timeframe.D1),
            bars_per_call=bars_per_call,
            calls_per_second=100_000,
            vouches_empty=vouches,
        )
        super().__init__(minutes, capabilities=capabilities)
        self.mischief = mischief
        self.lag_ms = lag_ms
        self._tells = tells or lag_ms > 0
        self._clock = clock
        self._rng = random.Random(seed)
        self._given_from: dict[tuple[str, Timeframe, int], int] = {}
        self.met: list[str] = []

    async def fetch_page(self, symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Page:
        self.calls.append((symbol, timeframe, wanted))
        fault = self._rng.choice(FAULTS) if self._rng.random() < self.mischief else ""
        answer = self._answer(fault, symbol, timeframe, wanted)
        if fault:
            self.met.append(fault)
        await self._travel(fault)
        return answer()

    async def asked_more(self, calls: int, *, patience_s: float) -> None:
        """Wait for so many more calls, though not for long."""
        until = len(self.calls) + calls
        try:
            async with asyncio.timeout(patience_s):
                while len(self.calls) < until:  # noqa: ASYNC110 - to be about as late as random
                    await asyncio.sleep(0.001)
        except TimeoutError:
            return

    async def _travel(self, fault: str) -> None:
        if fault == "hang" or self._rng.random() < 0.1:
            await asyncio.sleep(self._rng.random() / 50)
        if fault == "slept":
            # The machine slept while the answer was on its way.
            self._clock.advance(minutes=self._rng.choice([1, 20, 61]))
        for _ in range(self._rng.randrange(4)):
            await asyncio.sleep(0)

    def _answer(self, fault: str, symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Callable[[], Page]:
        """What the venue makes of a call now: raises or returns it when it has travelled."""
        errors: dict[str, PluginError] = {
            "network": NetworkPluginError("connection reset"),
            "hang": NetworkPluginError("no answer in time"),
            "rate limit": RateLimitPluginError("too many calls", retry_after_s=0.003),
            "plain": PluginError("500"),
            "no key": AuthenticationPluginError("bad key"),
            "no symbol": SymbolNotFoundPluginError("delisted"),
            "no feature": PluginFeatureNotSupportedError("not here"),
        }
        if fault in errors:

            def fail() -> Page:
                raise errors[fault]

            return fail
        page = self._page(fault, symbol, timeframe, wanted)
        return lambda: page

    def _page(self, fault: str, symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Page:
        venue_ms = self._clock.now_ms() - self.lag_ms
        bars = self._bars_by(venue_ms, symbol, timeframe)
        whole = TimeRange(
            wanted.start_ms, min(wanted.end_ms, timeframe.back(wanted.start_ms, -self.capabilities.bars_per_call))
        )
        covered = RangeSet((whole,))
        there = within(bars, covered)
        bars = self._without_late(fault, (symbol, timeframe), there)
        vouched = len(bars) == len(there)
        if fault in {"short", "beyond"}:
            covered = RangeSet.of(whole.start_ms, self._rng.choice(list(timeframe.starts(*whole))))
        elif fault == "nothing":
            covered = RangeSet()
        elif fault == "rejected":
            thrown = self._rng.sample(list(timeframe.starts(*whole)), k=1)
            covered -= RangeSet((ts, timeframe.next(ts)) for ts in thrown)
        given = within(bars, covered)
        if fault == "beyond":
            given += [_bent(bar) for bar in within(bars, RangeSet((whole,)) - covered)]
        rejected = ("a row without a price",) if fault == "rejected" else ()
        return Page(given, covered, rejected, venue_ms if self._tells else None, vouched)

    def _bars_by(self, venue_ms: int, symbol: str, timeframe: Timeframe) -> list[Bar]:
        """The market up to the venue's present; the last bar may still be forming, and looks like it."""
        bars = fold((bar for bar in self.market[symbol] if bar.ts <= venue_ms), timeframe)
        if bars and timeframe.next(bars[-1].ts) > venue_ms:
            bars[-1] = _bent(bars[-1])
        return bars

    def _without_late(self, fault: str, kind: tuple[str, Timeframe], bars: list[Bar]) -> list[Bar]:
        """Some bars become late by a fault, and all late ones stay away until their time."""
        now_ms = self._clock.now_ms()
        share = {"empty": 1.0, "late": self._rng.random(), "slept": 0.5}.get(fault, 0.0)
        for bar in bars:
            if self._rng.random() < share:
                self._given_from.setdefault((*kind, bar.ts), now_ms + self._rng.randrange(1, HOUR_MS))
        return [bar for bar in bars if self._given_from.get((*kind, bar.ts), 0) <= now_ms]


def _bent(bar: Bar) -> Bar:
    """The bar as it is not: a valid one that must never be stored."""
    return msgspec.structs.replace(bar, high=bar.high + 7777, volume=0.5)


class KilledProcess:
    """The way to the database of a process that ends, as by `kill -9`, before the n-th of its next steps.

    A step is a statement, a commit, or the return from one. Dead, it reaches the database no more. Instead of ending,
    it may lose its connection there.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._steps_left: int | None = None
        self._breaks = False
        self._victims: Callable[[], Iterable[asyncio.Task[Any]]] = tuple
        self.dead = False

    def dies_with(self, tasks: Callable[[], Iterable[asyncio.Task[Any]]]) -> None:
        """All that the process is."""
        self._victims = tasks

    def die_before_step(self, steps: int | None) -> None:
        """None: live on."""
        self._steps_left, self._breaks = steps, False

    def lose_connection_before_step(self, steps: int) -> None:
        self._steps_left, self._breaks = steps, True

    def die(self) -> None:
        self.dead = True
        for task in self._victims():
            task.cancel()

    async def step(self, what: str) -> None:
        if self._steps_left is not None and not self.dead:
            self._steps_left -= 1
            if self._steps_left < 0:
                self._steps_left = None
                if self._breaks:
                    raise DatabaseUnavailableError(f"the connection broke at {what}")
                self.die()
        if self.dead:
            raise asyncio.CancelledError

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        await self.step("connection")
        async with self._database.connection() as db:
            yield cast("Connection", _Steps(db, self.step))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        await self.step("begin")
        async with self._database.transaction() as db:
            yield cast("Connection", _Steps(db, self.step))
            await self.step("commit")
        await self.step("committed")


class _Steps:
    """A connection each of whose statements is a step."""

    def __init__(self, db: Connection, step: Callable[[str], Awaitable[None]]) -> None:
        self._db = db
        self._step = step

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._db, name)

        async def stepped(query: str, *args: object, **options: object) -> Any:
            # Of a session that is gone the server itself takes care.
            if query not in {"ROLLBACK", "SELECT pg_advisory_unlock($1)"}:
                await self._step(query)
            return await method(query, *args, **options)

        return stepped


def thin_market(rng: random.Random, bars: Sequence[Bar]) -> list[Bar]:
    """The bars with minutes and stretches taken out in which nothing traded."""
    quiet = RangeSet(
        (start, start + rng.choice([1, 2, 5, 30, 61, 130]) * MINUTE_MS)
        for start in (bar.ts for bar in bars if rng.random() < 0.02)
    )
    return [bar for bar in bars if not quiet & RangeSet.of(bar.ts, bar.ts + MINUTE_MS)]
