"""Messages a second when a bar is sent to 1,000 WebSocket clients, the next one when all have it.

From the message that a minute is closed to the last client's socket, through channel, fold and queues; what the
follower does before (store, ledger) is not in it. The clients are a process of their own that only counts frames.
Control: a bare ASGI application on Hypercorn as it is, that sends the same text to as many clients in a loop.
"""

from pathlib import Path

from bench.flock import Flock, flock
from bench.outcome import Outcome, Row, Task, side_by_side
from bench.stream_server import HELLO, PATH, Remote, allow_many_files, running

_CLIENTS, _BARS = 1_000, 100
_WARM_UP = 5


async def run(task: Task) -> Outcome:
    """Measure with fresh servers and clients each round."""
    allow_many_files()
    clients, bars = (100, 20) if task.quick else (_CLIENTS, _BARS)
    rounds = iter(range(1_000))

    async def rate(kind: str) -> float:
        return await _rate(kind, task.scratch / str(next(rounds)), clients, bars)

    controls, figures = await side_by_side(task.rounds, lambda: rate("bare"), lambda: rate("candlery"))
    row = Row(f"one bar to {clients:,} clients", "messages/s", figures, controls, "ratio at least 0.7")
    return Outcome([row], [f"{bars} bars a round."])


async def _rate(kind: str, scratch: Path, clients: int, bars: int) -> float:
    hello = HELLO if kind == "candlery" else None
    async with (
        running(kind, scratch) as server,
        flock(server.address, PATH, clients, hello=hello, wanted=lambda text: b'"closed"' in text) as crowd,
    ):
        if hello is not None:
            await crowd.until_live()
        took_s = [await _one(server, crowd) for _ in range(_WARM_UP + bars)][_WARM_UP:]
        return clients * bars / sum(took_s)


async def _one(server: Remote, crowd: Flock) -> float:
    """Seconds from the publishing of a bar until the last client has it."""
    crowd.forget()
    report = await server.order(bars=1)
    await crowd.until(1)
    return crowd.last_arrival_s - report.published_s[0]
