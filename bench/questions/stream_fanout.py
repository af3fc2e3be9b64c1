"""Messages a second when a bar is sent to 1,000 WebSocket clients, the next when all have it; and how late it comes.

From the message that a minute is closed to the last client's socket, through channel, fold and queues; what the
follower does before (store, ledger) is not in it. The clients are a process of their own that only counts frames. Then
a bar a second is sent: milliseconds from its publishing until a client's process has it. Control: a bare ASGI
application on Hypercorn as it is, that sends the same text to as many clients in a loop.
"""

from pathlib import Path
from statistics import quantiles

from bench.flock import Flock, flock
from bench.outcome import Outcome, Row, Task
from bench.stream_server import HELLO, PATH, Remote, allow_many_files, running

_CLIENTS, _BARS, _SLOW_BARS = 1_000, 100, 3
_WARM_UP = 5


async def run(task: Task) -> Outcome:
    """Measure with fresh servers and clients each round."""
    allow_many_files()
    clients, bars, slow = (100, 20, 2) if task.quick else (_CLIENTS, _BARS, _SLOW_BARS)
    found: dict[str, list[tuple[float, float]]] = {"bare": [], "candlery": []}
    for number in range(task.rounds):
        for kind, values in found.items():
            values.append(await _measured(kind, task.scratch / f"{kind}{number}", clients, bars, slow))
    (rates, delays), (bare_rates, bare_delays) = (zip(*found[kind], strict=True) for kind in ("candlery", "bare"))
    rows = [
        Row(f"one bar to {clients:,} clients", "messages/s", [*rates], [*bare_rates], "ratio at least 0.7"),
        Row(f"p99 to {clients:,} clients, a bar a second", "ms", [*delays], [*bare_delays], "under 50", decimals=1),
    ]
    return Outcome(rows, [f"{bars} bars a round, and then {clients * slow:,} deliveries of a bar a second."])


async def _measured(kind: str, scratch: Path, clients: int, bars: int, slow: int) -> tuple[float, float]:
    """Messages a second, and the delay that 99 of 100 come within."""
    hello = HELLO if kind == "candlery" else None
    async with (
        running(kind, scratch) as server,
        flock(server.address, PATH, clients, hello=hello, wanted=lambda text: b'"closed"' in text) as crowd,
    ):
        if hello is not None:
            await crowd.until_live()
        took_s = [await _one(server, crowd) for _ in range(_WARM_UP + bars)][_WARM_UP:]
        crowd.forget()
        report = await server.order(bars=slow, pause_s=1.0)
        await crowd.until(slow)
        p99_ms = 1_000 * quantiles(_delays_s(crowd, report.published_s), n=100)[98]
        return clients * bars / sum(took_s), p99_ms


async def _one(server: Remote, crowd: Flock) -> float:
    """Seconds from the publishing of a bar until the last client has it."""
    crowd.forget()
    report = await server.order(bars=1)
    await crowd.until(1)
    return crowd.last_arrival_s - report.published_s[0]


def _delays_s(crowd: Flock, published_s: list[float]) -> list[float]:
    return [came - went for client in crowd.clients for came, went in zip(client.arrivals, published_s, strict=True)]
