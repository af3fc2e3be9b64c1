"""A process that works on backfill jobs until its stdin ends, or kills itself at a step, or stops at one to be frozen.

Usage: python -m tests.support.backfill_child DSN CALLS_FILE MODE

It says `ready`, `here` where it waits for a line on stdin, and `refused` when a chunk turned out to be another's.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from app_extensions.db_pool import DatabasePool
from app_extensions.migrations import Flavour, migrate
from domain.time_range import TimeRange
from domain.timeframe import DAY_MS, MINUTE_MS, Timeframe
from plugins.base import Capabilities, Page
from services.backfill_chunks import ChunkKeeper, ChunkStore
from services.backfill_store import BackfillStore
from services.bar_store import BarStore
from services.coverage import CoverageLedger
from services.feed import Feed
from services.rollups import PlainRollups, TimescaleRollups
from tests.support.clock import ManualClock
from tests.support.crash_child import dying
from tests.support.house import make_house
from tests.support.market import START_MS, random_minutes
from tests.support.scripted import ScriptedPlugin

MINUTES = 2000
MARKET = random_minutes(79, MINUTES, holes=0.1)
WINDOW = TimeRange(START_MS, START_MS + MINUTES * MINUTE_MS)
NOW_MS = START_MS + 30 * DAY_MS
#: In every bar that comes out of a freezer.
STALE_VOLUME = 424_242.0
LEASE_S = 1.0
#: Method to die in, on which of its calls, and whether before or after its work.
STEPS: dict[str, tuple[type, str, int, bool]] = {
    "before the claim": (ChunkStore, "claim", 2, True),
    "after the claim": (ChunkStore, "claim", 2, False),
    "before the call": (Feed, "page", 2, True),
    "after the page came": (Feed, "page", 2, False),
    "after the bars, before their coverage": (CoverageLedger, "answered", 2, True),
    "after the coverage, before the chunk is done": (CoverageLedger, "answered", 2, False),
    "after the chunk is done, before the commit": (ChunkStore, "mark_done", 2, False),
    "after the commit": (ChunkKeeper, "keep", 2, False),
    "before the aggregates are rebuilt": (BarStore, "settle", 1, True),
    "before the job's end": (BackfillStore, "close_finished", 1, True),
    "after the job's end": (BackfillStore, "close_finished", 1, False),
}
WORK, MEET, FREEZE_IN_CALL, FREEZE_IN_TRANSACTION = "work", "meet", "freeze in a call", "freeze in a transaction"


class WitnessedPlugin(ScriptedPlugin):
    """Writes each call into a file that outlives the process: pid, symbol, start, end."""

    def __init__(self, calls_file: Path, *, bars_per_call: int = 500) -> None:
        capabilities = Capabilities(
            timeframes=(Timeframe.M1, Timeframe.H1, Timeframe.D1),
            bars_per_call=bars_per_call,
            calls_per_second=10_000,
        )
        super().__init__({f"K{n}/X": MARKET for n in range(len(STEPS))}, capabilities=capabilities)
        self.calls_file = calls_file

    async def fetch_page(self, symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Page:
        with self.calls_file.open("a") as file:
            file.write(f"{os.getpid()} {symbol} {wanted.start_ms} {wanted.end_ms}\n")
        return await super().fetch_page(symbol, timeframe, wanted)


class MeetingPlugin(WitnessedPlugin):
    """Its first call waits for another process to make one, too."""

    async def fetch_page(self, symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Page:
        page = await super().fetch_page(symbol, timeframe, wanted)
        async with asyncio.timeout(30):
            while len({call.split()[0] for call in self.calls_file.read_text().splitlines()}) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return page


class FrozenPlugin(WitnessedPlugin):
    """Its first call takes until a line comes in, and brings what must not be stored."""

    async def fetch_page(self, symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Page:
        page = await super().fetch_page(symbol, timeframe, wanted)
        if len(self.calls) > 1:
            return page
        await here()
        stale = [msgspec.structs.replace(bar, volume=STALE_VOLUME) for bar in page.bars]
        return Page(stale, page.covered)


def say(word: str) -> None:
    print(word, flush=True)


#: Set when the word to go on came in.
awake = asyncio.Event()


async def here() -> None:
    """Wait to be frozen, and for the word to go on."""
    say("here")
    await asyncio.to_thread(sys.stdin.readline)
    awake.set()


class FreezingChunks:
    """In place of `ChunkStore.mark_done`: the first time, the transaction stays open until a line comes in."""

    def __init__(self) -> None:
        self.honest = ChunkStore.mark_done
        self.calls = 0

    async def mark_done(self, chunks: ChunkStore, *args: Any) -> None:
        self.calls += 1
        await self.honest(chunks, *args)
        if self.calls == 1:
            await here()


def plugin_for(mode: str, calls_file: Path) -> WitnessedPlugin:
    if mode == MEET:
        return MeetingPlugin(calls_file, bars_per_call=250)
    return FrozenPlugin(calls_file) if mode == FREEZE_IN_CALL else WitnessedPlugin(calls_file)


def prepare(mode: str) -> None:
    if mode in STEPS:
        owner, name, nth, before = STEPS[mode]
        setattr(owner, name, dying(getattr(owner, name), nth, before=before))
    if mode == FREEZE_IN_TRANSACTION:
        freezing = FreezingChunks()

        async def mark_done(chunks: ChunkStore, *args: Any) -> None:
            await freezing.mark_done(chunks, *args)

        ChunkStore.mark_done = mark_done  # type: ignore[method-assign, assignment]


async def main(dsn: str, calls_file: str, mode: str) -> None:
    prepare(mode)
    clock = ManualClock(NOW_MS)
    pool = DatabasePool(
        dsn, min_size=1, max_size=1 if mode in STEPS else 4, connect_timeout_s=30, idle_in_transaction_s=2
    )
    await pool.open()
    flavour = await migrate(pool)
    rollups = TimescaleRollups(pool, clock) if flavour is Flavour.TIMESCALEDB else PlainRollups()
    store = BarStore(pool, CoverageLedger(), rollups, clock)
    house = make_house(store, clock, plugin_for(mode, Path(calls_file)), lanes=1, lease_s=LEASE_S)
    async with house.workers.running():
        say("ready")
        if mode in {FREEZE_IN_CALL, FREEZE_IN_TRANSACTION}:
            await awake.wait()
        if mode == FREEZE_IN_CALL:
            async with asyncio.timeout(60):
                while not house.workers.finished["refused"]:  # noqa: ASYNC110 - the count has no event
                    await asyncio.sleep(0.02)
            say("refused")
        await asyncio.to_thread(sys.stdin.readline)
    await pool.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
