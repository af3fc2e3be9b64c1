"""Seconds from the start of `candlery serve` to its first answer with bars, with the embedded database.

A hundred closed minutes are asked for as soon as the server listens. The first start ever makes the database, and its
answer's bars are fetched from the simulated market and stored; at the second start they come from the database. There
is no control.
"""

import time
from pathlib import Path

import msgspec

from bench.outcome import Outcome, Row, Task
from bench.reading import check_answer, fetched
from bench.servers import candlery_serve

#: A hundred closed minutes.
_TARGET = "/api/v1/ohlcv?market=demo&provider=sim&symbol=DEMO%2FUSD&timeframe=1m&start=1767225600000&end=1767231600000"


async def run(task: Task) -> Outcome:
    """Measure with a new folder each round."""
    first: list[float] = []
    second: list[float] = []
    for number in range(task.rounds):
        folder = task.scratch / str(number)
        folder.mkdir()
        first.append(await _until_answer_s(folder, "provider"))
        second.append(await _until_answer_s(folder, "database"))
    return Outcome(
        [
            Row("first start ever", "s", first, target="under 8", decimals=2),
            Row("second start", "s", second, target="under 2", decimals=2),
        ]
    )


async def _until_answer_s(folder: Path, source: str) -> float:
    began_s = time.perf_counter()
    async with candlery_serve(folder, {"CANDLERY_DATA_DIR": str(folder / "data")}) as server:
        body = await fetched(server, _TARGET)
        took_s = time.perf_counter() - began_s
    check_answer(_TARGET, msgspec.json.decode(body), source=source)
    return took_s
