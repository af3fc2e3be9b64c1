"""Minutes like an exchange's, many of them, laid into a database so that Candlery takes them for known.

The rows are made by the server, which is the fastest way; ledger and aggregates are Candlery's own work.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

import asyncpg

from app_extensions.wiring import Services
from bench.product import candlery, embedded_server
from domain.series import Series
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, MINUTE_MS, Timeframe
from services.database import Connection

#: A provider that is open, but need not be asked for anything: all of it is stored.
MARKET, PROVIDER = "crypto", "binance"
SYMBOLS = ("BTC/USDT", "ETH/USDT", "ETH/BTC", "LTC/USDT")
#: 2024-01-01.
BEGAN_MS = 1_704_067_200_000
DAYS, YEAR_DAYS, QUICK_DAYS = 395, 365, 12
WINDOW = 1_000
_TIMEOUT_S = 200.0
_DATABASE, _READY = "history", "history.ready"
#: A walk in tenths, told like 17209.8,17215.0,17201.2,17207.3,812.41234.
_WALK = """
CREATE TEMP TABLE walk AS
SELECT $1::timestamptz + n * interval '1 minute' AS ts, open10, close10,
       greatest(open10, close10) + (random() * 90)::bigint AS high10,
       least(open10, close10) - (random() * 90)::bigint AS low10,
       (random() * 2e8)::bigint / 1e5::float8 AS volume
FROM (
    SELECT n, close10, coalesce(lag(close10) OVER (ORDER BY n), close10) + (random() * 8)::bigint - 4 AS open10
    FROM (
        SELECT n, 172000 + (sum(random() - 0.5) OVER (ORDER BY n) * 50)::bigint + (9000 * sin(n / 40000.0))::bigint
                   AS close10
        FROM generate_series(0, $2::integer - 1) AS n
    ) AS closes
) AS both_ends
"""
_LAY = """
INSERT INTO bars_1m (series_id, ts, open, high, low, close, volume)
SELECT $1::integer, ts, (open10 + $1 * 137) / 10::float8, (high10 + $1 * 137) / 10::float8,
       (low10 + $1 * 137) / 10::float8, (close10 + $1 * 137) / 10::float8, volume
FROM walk
"""


@asynccontextmanager
async def history(shared: Path, *, quick: bool) -> AsyncIterator[str]:
    """A server with the history of four symbols, made by the first question that wants it; its database's URL."""
    folder = shared / "history"
    async with embedded_server(folder) as server_url:
        url = urlunsplit(urlsplit(server_url)._replace(path=f"/{_DATABASE}"))
        ready = folder / _READY
        if not ready.exists():
            admin = await asyncpg.connect(server_url)
            try:
                await admin.execute(f"DROP DATABASE IF EXISTS {_DATABASE}")
                await admin.execute(f"CREATE DATABASE {_DATABASE}")
            finally:
                await admin.close()
            async with candlery(url, as_server=False) as services:
                await lay(services, SYMBOLS, minutes=days_of(quick=quick) * DAY_MS // MINUTE_MS)
            ready.touch()
        yield url


def days_of(*, quick: bool) -> int:
    """Days that the history has."""
    return QUICK_DAYS if quick else DAYS


async def lay(services: Services, symbols: Sequence[str], *, minutes: int, aggregates: bool = True) -> None:
    """So many minutes of each symbol into an empty database, with their ledger and, if wanted, their aggregates."""
    ids = [(await services.store.ensure_series(Series(MARKET, PROVIDER, symbol))).id for symbol in symbols]
    span = TimeRange(BEGAN_MS, BEGAN_MS + minutes * MINUTE_MS)
    async with services.database.connection() as db, db.transaction():
        # What is written into a table of this very transaction needs no entry in the server's log.
        await db.execute("TRUNCATE bars_1m")
        await _drop_key(db)
        await _walk(db, ids, minutes)
        await _add_key(db)
    await _finish(services, ids, span, aggregates=aggregates)


async def lay_many(services: Services, symbols: Sequence[str], *, minutes: int) -> None:
    """`lay` without aggregates over two connections, into a table that a crash of the server would leave empty."""
    ids = [(await services.store.ensure_series(Series(MARKET, PROVIDER, symbol))).id for symbol in symbols]

    async def some(part: Sequence[int]) -> None:
        async with services.database.connection() as db:
            await _walk(db, part, minutes)

    async with services.database.connection() as db:
        await db.execute("ALTER TABLE bars_1m SET UNLOGGED")
        await _drop_key(db)
    await asyncio.gather(some(ids[::2]), some(ids[1::2]))
    async with services.database.connection() as db:
        await _add_key(db)
    await _finish(services, ids, TimeRange(BEGAN_MS, BEGAN_MS + minutes * MINUTE_MS), aggregates=False)


async def _drop_key(db: Connection) -> None:
    await db.execute("ALTER TABLE bars_1m DROP CONSTRAINT bars_1m_pkey")


async def _walk(db: Any, ids: Sequence[int], minutes: int) -> None:
    """One series after the other, as backfills and imports lay them."""
    await db.execute(_WALK, BEGAN_MS, minutes)
    for series_id in ids:
        await db.execute(_LAY, series_id, timeout=_TIMEOUT_S)


async def _add_key(db: Any) -> None:
    await db.execute("SET maintenance_work_mem = '1GB'")
    await db.execute("ALTER TABLE bars_1m ADD PRIMARY KEY (series_id, ts)", timeout=_TIMEOUT_S)
    await db.execute("RESET maintenance_work_mem")


async def _finish(services: Services, ids: Sequence[int], span: TimeRange, *, aggregates: bool) -> None:
    """The table as it would be found a while after it was written; ledger and aggregates."""
    async with services.database.connection() as db:
        await db.execute("VACUUM ANALYZE bars_1m", timeout=_TIMEOUT_S)
    for series_id in ids:
        async with services.database.transaction() as db:
            now_ms = services.clock.now_ms()
            await services.store.ledger.answered(
                db, series_id, Timeframe.M1, RangeSet((span,)), now_ms=now_ms, complete=True
            )
            if aggregates:
                await services.store.rollups.touched(db, series_id, span)


def windows(symbols: Sequence[str], minutes: int, count: int, *, seed: int) -> list[tuple[str, int]]:
    """So many different stretches of `WINDOW` minutes at random: a symbol and the first minute of each."""
    chance = random.Random(seed)  # noqa: S311 - nothing secret
    numbers = chance.sample(range(len(symbols) * (minutes - WINDOW)), count)
    return [(symbols[n % len(symbols)], BEGAN_MS + n // len(symbols) * MINUTE_MS) for n in numbers]


def window_target(symbol: str, start_ms: int) -> str:
    """What asks for such a stretch."""
    return target(symbol, start=start_ms, end=start_ms + WINDOW * MINUTE_MS, limit=WINDOW)


def years_of_hours(days: int, *, quick: bool, seed: int) -> list[tuple[str, TimeRange]]:
    """Every year of whole hours that the history holds, of each symbol, shuffled; a week for a quick look."""
    length_ms = (7 if quick else YEAR_DAYS) * DAY_MS
    last_ms = BEGAN_MS + days * DAY_MS - length_ms
    found = [
        (symbol, TimeRange(start_ms, start_ms + length_ms))
        for symbol in SYMBOLS
        for start_ms in range(BEGAN_MS, last_ms + 1, HOUR_MS)
    ]
    random.Random(seed).shuffle(found)  # noqa: S311
    return found


def target(symbol: str, **parameters: object) -> str:
    """A request target for bars of the history."""
    query = {"market": MARKET, "provider": PROVIDER, "symbol": symbol, "timeframe": "1m", **parameters}
    return f"/api/v1/ohlcv?{urlencode(query)}"


def pages_of_year(days: int) -> Iterator[str]:
    """Targets that together ask for every minute of all symbols."""
    end_ms = BEGAN_MS + days * DAY_MS
    step_ms = 10_000 * MINUTE_MS
    for symbol in SYMBOLS:
        for start_ms in range(BEGAN_MS, end_ms, step_ms):
            yield target(symbol, start=start_ms, end=min(start_ms + step_ms, end_ms), limit=10_000)


async def series_ids(url: str) -> dict[str, int]:
    """The numbers of the symbols in a database."""
    db = await asyncpg.connect(url)
    try:
        return {row["symbol"]: row["id"] for row in await db.fetch("SELECT symbol, id FROM series")}
    finally:
        await db.close()
