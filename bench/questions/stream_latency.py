"""Milliseconds from a bar to each of 1,000 WebSocket clients, at one bar a second.

As `stream_fanout`, but with a pause of a second after each bar: from its publishing until a client's process has it.
Control: the bare ASGI application on Hypercorn.
"""

from pathlib import Path
from statistics import quantiles

from bench.flock import Flock, flock
from bench.outcome import Outcome, Row, Task, side_by_side
from bench.stream_server import HELLO, PATH, allow_many_files, running

_CLIENTS, _BARS = 1_000, 6
_WARM_UP = 2


async def run(task: Task) -> Outcome:
    """Measure with fresh servers and clients each round."""
    allow_many_files()
    clients, bars = (100, 3) if task.quick else (_CLIENTS, _BARS)
    rounds = iter(range(1_000))

    async def p99(kind: str) -> float:
        return await _p99(kind, task.scratch / str(next(rounds)), clients, bars)

    controls, figures = await side_by_side(task.rounds, lambda: p99("bare"), lambda: p99("candlery"))
    row = Row(f"p99 to {clients:,} clients, a bar a second", "ms", figures, controls, "under 50", decimals=1)
    return Outcome([row], [f"{clients * bars:,} deliveries a round."])


async def _p99(kind: str, scratch: Path, clients: int, bars: int) -> float:
    hello = HELLO if kind == "candlery" else None
    async with (
        running(kind, scratch) as server,
        flock(server.address, PATH, clients, hello=hello, wanted=lambda text: b'"closed"' in text) as crowd,
    ):
        if hello is not None:
            await crowd.until_live()
        await server.order(bars=_WARM_UP, pause_s=0.5)
        await crowd.until(_WARM_UP)
        crowd.forget()
        report = await server.order(bars=bars, pause_s=1.0)
        await crowd.until(bars)
        return 1_000 * quantiles(_delays_s(crowd, report.published_s), n=100)[98]


def _delays_s(crowd: Flock, published_s: list[float]) -> list[float]:
    return [came - went for client in crowd.clients for came, went in zip(client.arrivals, published_s, strict=True)]
