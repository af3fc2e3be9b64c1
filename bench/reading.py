"""What the questions about reading share: many connections that ask for bars, and a look at what they were told."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import msgspec

from bench import bare_reader, wrk
from bench import load as generator
from bench.bare_reader import Errand
from bench.exchange import running_exchange
from bench.history import PROVIDER
from bench.load import CONNECTIONS, Load, Plan
from bench.outcome import Profile, Row, Task, WrongResultError, side_by_side
from bench.processes import finished
from bench.product import ccxt_settings
from bench.profile import profile
from bench.servers import Server, bare_serve, body_of, candlery_serve
from config import BaseConfig
from domain.timeframe import HOUR_MS, MINUTE_MS

#: Nothing is remembered: every answer comes from the database.
NO_CACHES = {"CANDLERY_CACHE_BYTES": "0"}
_BUSY = 0.9
_END_S = 30.0


@asynccontextmanager
async def serving(task: Task, database_url: str, settings: Mapping[str, str]) -> AsyncIterator[Server]:
    """`candlery serve` on a database, with an exchange in reach that it need not ask for bars."""
    async with (
        running_exchange() as options,
        candlery_serve(
            task.scratch, {"CANDLERY_DATABASE_URL": database_url, **ccxt_settings(PROVIDER, options), **settings}
        ) as server,
    ):
        yield server


class Reader:
    """Asks servers for bars, with wrk where that is installed, else with `python -m bench.load`."""

    def __init__(self, task: Task) -> None:
        """Take where files may be written, and how much is asked."""
        self._task = task
        self._seconds, self._warm_up_s = (1.0, 0.3) if task.quick else (2.0, 0.5)
        self._number = 0
        #: Of the last load.
        self.busy: list[float] = []

    async def load(
        self,
        server: Server,
        targets: Iterable[str],
        *,
        least: int,
        most: int,
        again: bool = False,
        seconds: float | None = None,
    ) -> Load:
        """Go through the targets for a while, `again` and again or once.

        Raises:
            WrongResultError: an answer was not as it should be.
        """
        self._number += 1
        path = self._task.scratch / f"targets.{self._number}"
        await asyncio.to_thread(path.write_text, "\n".join(targets), "ascii")
        plan = Plan(server.address, str(path), least, most, again, seconds or self._seconds, self._warm_up_s)
        done = await wrk.load(plan) if wrk.found() else await _run(plan, self._task.scratch / "load.json")
        path.unlink()
        if done.faults:
            raise WrongResultError("; ".join(done.faults[:3]))
        self.busy.append(done.busy)
        return done

    async def profiled(
        self, title: str, server: Server, targets: Iterable[str], *, least: int, most: int, again: bool = False
    ) -> list[Profile]:
        """Look where the server spends its time under the same load, once the figures are taken."""
        if self._task.quick:
            return []
        loading = asyncio.create_task(self.load(server, targets, least=least, most=most, again=again, seconds=4.2))
        await asyncio.sleep(self._warm_up_s + 0.4)
        found = await profile(title, server.pid, 3, self._task.scratch)
        await loading
        return [found]

    async def bare(
        self, database_url: str, table: str, stretches: Sequence[tuple[int, int, int]], *, rows: int
    ) -> Load:
        """Fetch rows from the database with bare asyncpg: as many at once as there are connections to a server.

        Raises:
            WrongResultError: it did not get them.
        """
        path = self._task.scratch / "stretches"
        await asyncio.to_thread(path.write_bytes, msgspec.json.encode(stretches))
        pool = BaseConfig.db_pool_min, BaseConfig.db_pool_max
        errand = Errand(
            database_url, table, str(path), rows, CONNECTIONS, *pool, seconds=self._seconds, warm_up_s=self._warm_up_s
        )
        done = await _run(errand, self._task.scratch / "load.json")
        if done.faults:
            raise WrongResultError("; ".join(done.faults[:3]))
        return done

    def notes(self) -> list[str]:
        """Whether the one who asked was what was measured."""
        worst = max(self.busy)
        if worst < _BUSY:
            return []
        return [f"The load generator itself was busy for {worst:.0%} of the time: the figures may be higher."]


class Contest(NamedTuple):
    """One server of Candlery's that is asked, beside a bare one.

    Attributes:
        title: of the figure.
        on: the web server of both.
        kind: of the bare application.
        body: what that one answers with.
        targets: what is asked for.
        again: the same again and again; else a new list is made each time, and nothing of it asked for twice.
        check: of what is answered.
        slack: how far a body's length may be from that one's, a share of it.
    """

    title: str
    on: str
    kind: str
    body: bytes
    targets: Callable[[], Sequence[str]]
    check: Callable[[Load], None]
    wanted: str
    again: bool = False
    slack: float = 0.0


async def held(contest: Contest, server: Server, reader: Reader, task: Task) -> tuple[Row, list[Profile]]:
    """Ask both in turns, for the same; then look where the time goes."""
    size = len(contest.body)
    least, most = int(size * (1 - contest.slack)), int(size * (1 + contest.slack))
    asked = contest.targets()
    async with bare_serve(contest.kind, contest.on, task.scratch, contest.body) as bare:

        async def control() -> float:
            nonlocal asked
            asked = contest.targets()
            return (await reader.load(bare, asked, least=size, most=size, again=True)).rate

        async def figure() -> float:
            done = await reader.load(server, asked, least=least, most=most, again=contest.again)
            contest.check(done)
            return done.rate

        controls, figures = await side_by_side(task.rounds, control, figure)
    row = Row(f"{contest.title}, {contest.on}", "answers/s", figures, controls, contest.wanted)
    rest = contest.targets()
    title = f"On {contest.on}"
    return row, await reader.profiled(title, server, rest, least=least, most=most, again=contest.again)


async def _run(plan: Plan | Errand, out: Path) -> Load:
    """A process that does what it is told on stdin."""
    module = generator if isinstance(plan, Plan) else bare_reader
    command = [sys.executable, "-m", module.__name__, str(out)]
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE)
    timeout_s = plan.seconds + plan.warm_up_s + _END_S
    await finished(process, module.__name__, timeout_s, msgspec.json.encode(plan))
    return msgspec.json.decode(await asyncio.to_thread(out.read_bytes), type=Load)


async def fetched(server: Server, target: str) -> bytes:
    """One answer's body."""
    return await asyncio.to_thread(body_of, server.address, target)


async def typical_size(server: Server, targets: Iterable[str]) -> int:
    """Bytes of a body in the middle."""
    return int(median([len(await fetched(server, target)) for target in targets]))


def check_kept(done: Load, *, source: str | None = None, bars: int | None = None) -> None:
    """The answers that were kept hold just the bars that were asked for.

    Raises:
        WrongResultError: one does not, or came from another source.
    """
    if not done.kept:
        raise WrongResultError("no answer was kept")
    for target, body in done.kept:
        check_answer(target, msgspec.json.decode(body), source=source, bars=bars)


def check_answer(target: str, answer: Any, *, source: str | None, bars: int | None = None) -> None:
    """`source`: all of it is from there; `bars`: so many, where the target does not say it by its range."""
    asked = {name: values[0] for name, values in parse_qs(urlsplit(target).query).items()}
    times = [row[0] for row in answer["bars"]]
    step_ms = {"1m": MINUTE_MS, "1h": HOUR_MS}[asked["timeframe"]]
    if "start" in asked:
        wanted = list(range(int(asked["start"]), int(asked["end"]), step_ms))
    else:
        first_ms = times[0] if times else 0
        wanted = list(range(first_ms, first_ms + (bars or 0) * step_ms, step_ms))
    if times != wanted or not answer["coverage"]["complete"]:
        raise WrongResultError(f"{target} was answered with {len(times)} bars, {answer['coverage']}")
    if source is not None and answer["sources"] != [source]:
        raise WrongResultError(f"{target} was answered from {answer['sources']}, not from the {source}")
