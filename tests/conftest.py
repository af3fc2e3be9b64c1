"""What every test may use: a real PostgreSQL with a fresh database each, and a clock that stands still."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import pytest

from app_extensions.db_pool import DatabasePool
from app_extensions.embedded_postgres import EmbeddedPostgres
from app_extensions.migrations import Flavour, migrate
from domain.timeframe import DAY_MS
from services.bar_store import BarStore
from services.coverage import CoverageLedger
from services.rollups import PlainRollups, TimescaleRollups
from tests.support.clock import ManualClock
from tests.support.market import START_MS
from tests.support.servers import pytest_asyncio_loop_factories  # noqa: F401 - a hook
from tests.timescale.server import TimescaleServer, why_unavailable

RECORDINGS = Path(os.environ.get("CANDLERY_RECORDINGS") or Path(__file__).resolve().parents[2] / "shared")
_REQUIRE_ALL = os.environ.get("CANDLERY_TEST_REQUIRE_ALL") == "1"
_skipped: list[str] = []

#: Runs a coroutine to its end, and gives what it returns.
Backstage = Callable[[Coroutine[Any, Any, Any]], Any]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    reason = str(report.longrepr)
    if report.skipped and "recordings" not in reason and "only root" not in reason:
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Where everything is required, a skipped test fails the run."""
    if _REQUIRE_ALL and _skipped and exitstatus == 0:
        print("\nskipped, though everything is required:", *_skipped, sep="\n  ")
        session.exitstatus = 1


@pytest.fixture(scope="session")
def recordings() -> Path:
    if not (RECORDINGS / "data").is_dir():
        pytest.skip("recordings are not here")
    return RECORDINGS


@pytest.fixture(scope="session")
def backstage() -> Iterator[Backstage]:
    """Runs what is for all tests on a loop that outlives theirs, in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="backstage")
    thread.start()
    yield lambda work: asyncio.run_coroutine_threadsafe(work, loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory, backstage: Backstage) -> Iterator[str]:
    """A PostgreSQL in which databases can be made: the one named, or an embedded one."""
    named = os.environ.get("CANDLERY_TEST_DATABASE_URL")
    if named:
        yield named
        return
    server = EmbeddedPostgres(tmp_path_factory.mktemp("pg"))
    backstage(server.open())
    yield server.dsn
    backstage(server.close())


@asynccontextmanager
async def a_database(server_url: str, name: str, *, template: str = "template1") -> AsyncIterator[str]:
    """A database of this name for the block; the URL that leads to it."""
    admin = await asyncpg.connect(server_url)
    try:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        yield with_database(server_url, name)
        try:
            # Not by force: that would end autovacuum's worker too, which not every role may do; it ends by itself.
            await admin.execute(f"DROP DATABASE {name}")
        except asyncpg.ObjectInUseError:
            left = (
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND usename = current_user"
            )
            await admin.execute(left, name)
            await admin.execute(f"DROP DATABASE {name}")
    finally:
        await admin.close()


def with_database(dsn: str, name: str) -> str:
    """The same server, another database."""
    parts = urlsplit(dsn)
    return urlunsplit(parts._replace(path=f"/{name}"))


@pytest.fixture(scope="session")
def template(postgres_url: str, backstage: Backstage) -> Iterator[tuple[str, Flavour]]:
    """Name and flavour of a migrated database that fresh ones are copied from."""
    name = f"candlery_template_{uuid4().hex[:8]}"
    held = a_database(postgres_url, name)
    flavour = backstage(_migrated(backstage(held.__aenter__())))
    yield name, flavour
    backstage(held.__aexit__(None, None, None))


async def _migrated(url: str) -> Flavour:
    pool = DatabasePool(url, max_size=1)
    await pool.open()
    try:
        return await migrate(pool)
    finally:
        await pool.close()


@pytest.fixture
async def database_url(postgres_url: str, template: tuple[str, Flavour]) -> AsyncIterator[str]:
    """A fresh, migrated database."""
    async with a_database(postgres_url, f"candlery_test_{uuid4().hex[:12]}", template=template[0]) as url:
        yield url


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[DatabasePool]:
    pool = DatabasePool(database_url, max_size=8)
    await pool.open()
    yield pool
    await pool.close()


@pytest.fixture
def clock() -> ManualClock:
    """Thirty days after the markets of the tests begin."""
    return ManualClock(START_MS + 30 * DAY_MS)


def store_on(pool: DatabasePool, flavour: Flavour, clock: ManualClock) -> BarStore:
    rollups = PlainRollups() if flavour is Flavour.POSTGRESQL else TimescaleRollups(pool, clock)
    return BarStore(pool, CoverageLedger(), rollups, clock)


@pytest.fixture
def store(pool: DatabasePool, template: tuple[str, Flavour], clock: ManualClock) -> BarStore:
    return store_on(pool, template[1], clock)


@pytest.fixture(scope="session")
def timescale() -> None:
    reason = why_unavailable()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
async def timescale_url(timescale: None) -> AsyncIterator[str]:
    """A fresh, empty TimescaleDB; it serves one session at a time."""
    server = TimescaleServer()
    await server.open()
    yield server.dsn
    await server.close()


@pytest.fixture
async def timescale_pool(timescale_url: str) -> AsyncIterator[DatabasePool]:
    pool = DatabasePool(timescale_url, min_size=1, max_size=1, connect_timeout_s=30)
    await pool.open()
    await migrate(pool)
    yield pool
    await pool.close()


@pytest.fixture(params=["postgresql", "timescaledb"])
def any_store(request: pytest.FixtureRequest, clock: ManualClock) -> BarStore:
    """The store on each kind of database: the usual one of the tests, and TimescaleDB."""
    if request.param == "postgresql":
        return request.getfixturevalue("store")  # type: ignore[no-any-return]
    return store_on(request.getfixturevalue("timescale_pool"), Flavour.TIMESCALEDB, clock)
