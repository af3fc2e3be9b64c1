"""After any interleaving of queries, backfills, faults, crashes and restarts the store ends equal to the market.

0 bars lost, 0 doubled, 0 invented: over 200 random lives on plain PostgreSQL, and some on TimescaleDB. Each life has
series of its own in a database that it shares with others, and one or two processes that work on the same jobs.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from app_extensions.db_pool import DatabasePool
from app_extensions.migrations import Flavour
from domain.bar import Bar, fold, within
from domain.errors import ConflictError, DatabaseUnavailableError
from domain.packed import runs_of
from domain.series import Series, Verdict
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, MINUTE_MS, Timeframe
from services import backfill_chunks
from services.backfills import BackfillRequest, Job, JobState
from services.bar_walk import OhlcvAnswer
from services.cache_manager import MemoryCache
from tests.conftest import store_on
from tests.support.clock import ManualClock
from tests.support.faulty import FaultyPlugin, KilledProcess, thin_market
from tests.support.house import House, make_house
from tests.support.market import START_MS, random_minutes

BLOCKS, SEEDS_PER_BLOCK = 8, 26
TIMESCALE_SEEDS = range(1000, 1006)
#: Stored aggregates, and some that are folded from them.
COARSER = [Timeframe(name) for name in ("3m", "5m", "15m", "30m", "1h", "2h", "4h", "1d", "1w")]
LEASE_S = 0.2
PATIENCE_S = 30


@pytest.fixture(autouse=True)
def short_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfill_chunks, "REST_S", 0.004)
    monkeypatch.setattr(backfill_chunks, "REST_LIMIT_S", 0.02)


class Process:
    """One server process: a house, and the questions that clients have put to it."""

    def __init__(self, life: "Life") -> None:
        self.life = life
        self.database = KilledProcess(life.pool)
        store = store_on(self.database, life.flavour, life.clock)  # type: ignore[arg-type]
        self.house: House = make_house(
            store, life.clock, life.plugin, cache=life.cache, lanes=2, attempts=3, lease_s=LEASE_S
        )
        self.tasks: list[asyncio.Task[None]] = []
        self.database.dies_with(self._everything)
        self.house.workers.open()

    def _everything(self) -> list[asyncio.Task[Any]]:
        workers = self.house.workers
        return [*workers._tasks, *workers._working.values(), *self.tasks]

    def begin(self, act: Callable[["Process"], Awaitable[None]]) -> None:
        self.tasks.append(asyncio.create_task(self._or_no_database(act)))

    async def _or_no_database(self, act: Callable[["Process"], Awaitable[None]]) -> None:
        """A client who is told that the database is away may ask again later."""
        try:
            await act(self)
        except DatabaseUnavailableError:
            self.life.log.append("no database")

    async def end(self) -> None:
        """Be dead, and nothing left of it."""
        if not self.database.dead:
            self.database.die()
        await asyncio.wait_for(asyncio.gather(*self._everything(), return_exceptions=True), PATIENCE_S)
        self.raise_what_failed()

    def raise_what_failed(self) -> None:
        for task in self.tasks:
            if task.done() and not task.cancelled() and (exc := task.exception()) is not None:
                raise exc
        self.tasks = [task for task in self.tasks if not task.done()]


class Life:
    """What one seed makes happen."""

    def __init__(self, seed: int, pool: DatabasePool, flavour: Flavour) -> None:
        self.rng = rng = random.Random(seed)
        self.pool = pool
        self.flavour = flavour
        minutes = rng.randrange(120, 600)
        start_ms = START_MS + rng.randrange(2 * 1440) * MINUTE_MS
        self.symbols = [f"S{seed}/A", f"S{seed}/B"][: rng.choice([1, 1, 2])]
        markets = {
            symbol: thin_market(rng, random_minutes(seed * 2 + n, minutes, start_ms=start_ms, holes=rng.random() / 5))
            for n, symbol in enumerate(self.symbols)
        }
        self.window = TimeRange(start_ms, start_ms + minutes * MINUTE_MS)
        # In half of the lives the market goes on while the queries and backfills come.
        born_ms = rng.choice([self.window.end_ms + 3 * DAY_MS, start_ms + rng.randrange(60, minutes) * MINUTE_MS])
        self.clock = ManualClock(born_ms + rng.randrange(60_000))
        self.plugin = FaultyPlugin(
            markets,
            self.clock,
            seed=seed,
            bars_per_call=rng.choice([15, 30, 60, 200]),
            mischief=rng.choice([0.0, 0.3, 0.5, 0.7]),
            lag_ms=rng.choice([0, 0, 0, 5_000, 10 * MINUTE_MS]),
            tells=rng.random() < 0.5,
            vouches=rng.random() < 0.2,
        )
        # Outlives the processes, as Redis would.
        self.cache = MemoryCache(max_bytes=1 << 24, ttl_s=3600, clock=self.clock)
        self.processes: list[Process] = []
        #: What was final when each job was made.
        self.jobs: dict[str, int] = {}
        self.log: list[str] = []

    async def live(self) -> None:
        works = [self.query] * 6 + [self.backfill] * 4 + [self.steer] * 4 + [self.look_again]
        blows = [self.crash] * 2 + [self.lose_connection] * 2 + [self.pass_time] * 3
        for _ in range(self.rng.randrange(10, 25)):
            await self.bury_the_dead()
            process = self.rng.choice(self.processes)
            if self.rng.random() < len(works) / (len(works) + len(blows)):
                work = self.rng.choice(works)
                self.log.append(work.__name__)
                process.begin(work)
            else:
                blow = self.rng.choice(blows)
                self.log.append(blow.__name__)
                blow(process)
            await self.plugin.asked_more(self.rng.choice([0, 0, 1, 1, 3, 6]), patience_s=0.012)

    async def bury_the_dead(self) -> None:
        for process in [one for one in self.processes if one.database.dead]:
            self.processes.remove(process)
            await process.end()
        wanted = self.rng.choice([1, 1, 2])
        while len(self.processes) < wanted:
            self.processes.append(Process(self))
        for process in self.processes:
            process.raise_what_failed()

    @property
    def window_and_around(self) -> TimeRange:
        return TimeRange(self.window.start_ms - DAY_MS, self.window.end_ms + DAY_MS)

    def random_part(self) -> TimeRange:
        at = sorted(self.rng.randrange(-30, self.window.length_ms // MINUTE_MS + 30) for _ in range(2))
        start_ms = min(self.window.start_ms + at[0] * MINUTE_MS, self.clock.now_ms() - MINUTE_MS)
        return TimeRange(start_ms, max(start_ms, self.window.start_ms + at[1] * MINUTE_MS) + MINUTE_MS)

    async def query(self, process: Process) -> None:
        symbol = self.rng.choice(self.symbols)
        timeframe = self.rng.choice([Timeframe.M1] * 6 + COARSER)
        part = self.random_part()
        limit = self.rng.choice([10, 50])
        start_ms = None
        if self.rng.random() < 0.8:
            start_ms, limit = part.start_ms, self.rng.choice([10, 100, 1000])
        part = TimeRange(part.start_ms, min(part.end_ms, self.clock.now_ms() - MINUTE_MS))
        answer = await process.house.bars(symbol, timeframe.value, start_ms=start_ms, end_ms=part.end_ms, limit=limit)
        self.check_answer(answer, symbol, timeframe, part, backward=start_ms is None)

    async def backfill(self, process: Process) -> None:
        symbols = tuple(self.rng.sample(self.symbols, k=self.rng.randint(1, len(self.symbols))))
        request = BackfillRequest("test", "scripted", symbols, self.random_part())
        final_ms = Timeframe.M1.floor(self.clock.now_ms() - 2_000)
        job = await process.house.backfills.create(request)
        self.jobs[job.id] = final_ms

    async def steer(self, process: Process) -> None:
        if not self.jobs:
            return
        manager = process.house.backfills
        verb = self.rng.choice([manager.pause, manager.resume, manager.resume, manager.cancel, manager.retry])
        try:
            await verb(self.rng.choice(list(self.jobs)))
        except ConflictError:
            self.log.append("conflict")

    async def look_again(self, process: Process) -> None:
        await process.house.rechecker.run()

    def crash(self, process: Process) -> None:
        process.database.die_before_step(self.rng.randrange(120))

    def lose_connection(self, process: Process) -> None:
        process.database.lose_connection_before_step(self.rng.randrange(60))

    def pass_time(self, process: Process) -> None:
        self.clock.advance(minutes=self.rng.choice([0.5, 1, 7, 31, 61, 180]))

    def check_answer(
        self, answer: OhlcvAnswer, symbol: str, timeframe: Timeframe, part: TimeRange, *, backward: bool
    ) -> None:
        """What is said to be known is the market's; what of minutes is given at all is the market's."""
        truth = fold(self.plugin.market[symbol], timeframe)
        unknown = RangeSet(gap.range for gap in answer.gaps)
        end_ms = min(answer.next_ms or part.end_ms, part.end_ms)
        start_ms = timeframe.ceil(part.start_ms)
        if backward:
            start_ms = answer.bars[0].ts if answer.bars else end_ms
        final = RangeSet.of(start_ms, timeframe.floor(end_ms)) - unknown
        assert within(answer.bars, final) == within(truth, final), (symbol, timeframe, part, answer.gaps)
        if timeframe is Timeframe.M1:
            assert set(answer.bars) <= set(truth)

    async def end_well(self) -> Process:
        """The provider recovers, a last job fills what is missing, and what was unconfirmed is asked for again."""
        self.plugin.mischief, self.plugin.lag_ms = 0, 0
        for process in self.processes:
            process.database.die_before_step(None)
        await self.bury_the_dead()
        for other in self.processes[1:]:
            await other.end()
        process = self.processes[0]
        await asyncio.wait_for(asyncio.gather(*process.tasks), PATIENCE_S)
        rest_of_day_ms = max(0, Timeframe.D1.ceil(self.window.end_ms) - self.clock.now_ms())
        self.clock.advance(minutes=rest_of_day_ms / MINUTE_MS + 200)
        house = process.house
        for job in await self.every_job(house):
            if job.state is JobState.PAUSED:
                await house.backfills.resume(job.id)
            await self.check_job(house, await asyncio.wait_for(house.finished(job.id), PATIENCE_S))
        last = await asyncio.wait_for(house.backfill(*self.window, *self.symbols), PATIENCE_S)
        assert last.state is JobState.DONE, last
        self.jobs[last.id] = self.window.end_ms
        self.clock.advance(hours=2)
        if self.rng.random() < 0.5:
            while await asyncio.wait_for(house.rechecker.run(), PATIENCE_S):
                pass
        for symbol in self.symbols:
            await house.every_page(symbol=symbol, start_ms=self.window.start_ms, end_ms=self.window.end_ms)
        await house.store.settle()
        return process

    async def every_job(self, house: House) -> list[Job]:
        """All of this life, those included of which nobody was told since the process ended or the connection broke."""
        return [job for job in await house.backfills.jobs(limit=50) if set(job.request.symbols) <= set(self.symbols)]

    async def check_job(self, house: House, job: Job) -> None:
        """Done means that the provider accounted for each minute that was final when the job was made."""
        progress = job.progress
        assert job.state.is_over
        if job.state is not JobState.DONE:
            return
        assert (progress.chunks_done, progress.chunks_failed, progress.percent) == (progress.chunks_total, 0, 100)
        start_ms, end_ms = (Timeframe.M1.ceil(ms) for ms in job.request.range)
        part = RangeSet.of(start_ms, min(end_ms, self.jobs.get(job.id, 0)))
        for symbol in job.request.symbols:
            found = await house.store.find_series(Series("test", "scripted", symbol))
            assert found is not None
            known = await house.store.knowledge(found.id, Timeframe.M1, self.window_and_around)
            # Before a first bar that was searched for by coarser bars minutes wait to be asked for in the background.
            wished = RangeSet(check.range for check in known.checks if check.recheck_ms is not None)
            assert (known.answered | known.not_listed | wished).covers(part)

    async def check(self, house: House) -> None:
        for symbol in self.symbols:
            await self.check_series(house, symbol)
        async with asyncio.timeout(PATIENCE_S):
            while await self.open_chunks():  # noqa: ASYNC110 - no event tells what others do in the database
                await asyncio.sleep(0.02)

    async def open_chunks(self) -> int:
        """Chunks that somebody has yet to take up, or to be found dead over."""
        async with self.pool.connection() as db:
            query = "SELECT count(*) FROM backfill_chunks WHERE symbol = ANY ($1) AND state IN ('queued', 'running')"
            return int(await db.fetchval(query, self.symbols))

    async def check_series(self, house: House, symbol: str) -> None:
        market = self.plugin.market[symbol]
        found = await house.store.find_series(Series("test", "scripted", symbol))
        assert found is not None
        ever = TimeRange(0, START_MS + 400 * DAY_MS)
        stored = await house.store.read(found.id, Timeframe.M1, ever)
        truth = {bar.ts: bar for bar in market}
        assert [bar for bar in stored if truth.get(bar.ts) != bar] == [], "invented"
        assert [bar for bar in market if bar not in set(stored)] == [], "lost"
        assert stored == market
        async with self.pool.connection() as db:
            revisions = await db.fetchval("SELECT count(*) FROM bar_revisions WHERE series_id = $1", found.id)
            assert revisions == 0
        written = sum(job.progress.bars_written for job in await self.every_job(house))
        assert written <= sum(map(len, self.plugin.market.values())), "doubled"
        await self.check_aggregates(house, found.id, symbol, market)
        await self.check_ledger(house, symbol, market)

    async def check_aggregates(self, house: House, series_id: int, symbol: str, market: list[Bar]) -> None:
        week = TimeRange(Timeframe.W1.floor(self.window.start_ms), Timeframe.W1.ceil(self.window.end_ms))
        for timeframe in COARSER:
            folded = (await house.store.read_folded(series_id, timeframe, week)).bars
            assert folded == fold(market, timeframe), timeframe
        for timeframe in (Timeframe.M5, Timeframe.H1, Timeframe.D1):
            start_ms, end_ms = timeframe.floor(self.window.start_ms), timeframe.ceil(self.window.end_ms)
            bars, _ = await house.every_page(symbol=symbol, timeframe=timeframe.value, start_ms=start_ms, end_ms=end_ms)
            assert bars == fold(market, timeframe), timeframe

    async def check_ledger(self, house: House, symbol: str, market: list[Bar]) -> None:
        tiles = await house.coverage(*self.window, symbol=symbol)
        borders = [self.window.start_ms, *(tile.range.end_ms for tile in tiles)]
        assert [tile.range.start_ms for tile in tiles] == borders[:-1]
        assert borders[-1] == self.window.end_ms
        data = runs_of(market, Timeframe.M1)
        assert RangeSet(tile.range for tile in tiles if tile.verdict is Verdict.DATA) == data
        rest = RangeSet((self.window,)) - data
        unlisted = RangeSet(tile.range for tile in tiles if tile.verdict is Verdict.NOT_LISTED)
        assert not unlisted & RangeSet.of(market[0].ts, self.window.end_ms)
        assert RangeSet(tile.range for tile in tiles if tile.verdict is Verdict.NO_TRADES) | unlisted == rest


async def run(seed: int, pool: DatabasePool, flavour: Flavour) -> None:
    life = Life(seed, pool, flavour)
    try:
        await life.bury_the_dead()
        await life.live()
        survivor = await life.end_well()
        await life.check(survivor.house)
    except BaseException as exc:
        exc.add_note(f"seed {seed}: {life.log}, met {life.plugin.met}")
        raise
    finally:
        for process in life.processes:
            await process.end()
        async with pool.connection() as db:
            # Or the second looks of the next life would be at these.
            await db.execute("DELETE FROM series")


@pytest.mark.parametrize("block", range(BLOCKS))
async def test_any_life_ends_with_the_store_equal_to_the_market(
    block: int, pool: DatabasePool, template: tuple[str, Flavour]
) -> None:
    for seed in range(block * SEEDS_PER_BLOCK, (block + 1) * SEEDS_PER_BLOCK):
        await run(seed, pool, template[1])


async def test_any_life_on_timescaledb_ends_with_the_store_equal_to_the_market(timescale_pool: DatabasePool) -> None:
    for seed in TIMESCALE_SEEDS:
        await run(seed, timescale_pool, Flavour.TIMESCALEDB)
