"""The supervisor: prepares, starts, watches and stops one PostgreSQL server."""

import asyncio
import logging
import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg

from app_extensions.embedded_postgres.binaries import Binaries, installed_binaries
from app_extensions.embedded_postgres.errors import EmbeddedPostgresError
from app_extensions.embedded_postgres.folder import DataFolder, Endpoint
from app_extensions.embedded_postgres.log_file import LogFile
from app_extensions.embedded_postgres.processes import forget_stale_pid, spawn, stop_leftovers

log = logging.getLogger(__name__)

_DATABASE = "candlery"
#: What Candlery works as. It may not read or write the server's files, whatever SQL it is made to run.
_ROLE = "candlery"
_SUPERUSER = "postgres"

_INITDB_TIMEOUT_S = 120.0
#: After a crash the log is replayed first; stopping the server meanwhile would only make it begin again.
_RECOVERY_TIMEOUT_S = 900.0
_CONNECT_TIMEOUT_S = 5.0
_FIRST_POLL_S = 0.01
_LAST_POLL_S = 0.25
_FIRST_RESTART_S = 0.1
_LAST_RESTART_S = 30.0
#: A server that ran for so long was well: the next restart is not delayed for earlier ones.
_STABLE_S = 60.0
_LOG_CHECK_S = 60.0

#: Durable, for a small machine, on a bounded disk. Replication is off, so the log can be the shortest.
_SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "max_connections": "50",
    "shared_buffers": "64MB",
    "effective_cache_size": "512MB",
    "work_mem": "8MB",
    "maintenance_work_mem": "64MB",
    "jit": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "min_wal_size": "32MB",
    "max_wal_size": "512MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_destination": "stderr",
    "logging_collector": "off",
    "log_line_prefix": "%m [%p] ",
    "log_checkpoints": "off",
}

#: What a client meets while the server is not ready for it.
_NOT_YET = (OSError, TimeoutError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError)


class EmbeddedPostgres:
    """A PostgreSQL server on one data folder. The constructor stores; `open()` starts; `close()` stops.

    While it is open the server is started again whenever it dies, and `dsn` stays the same. However this process ends,
    the server ends too: at once on Linux, elsewhere at the next `open()` at the latest.
    """

    def __init__(self, data_dir: Path, *, start_timeout_s: float = 30, stop_timeout_s: float = 4) -> None:
        """Take the folder, and how long the server may take to answer and to stop."""
        self._folder = DataFolder(data_dir)
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._log = LogFile(self._folder.log)
        self._endpoint: Endpoint | None = None
        self._password = ""
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def dsn(self) -> str:
        """The address of the database `candlery`, with its password: for asyncpg, and not for logs."""
        return self._dsn(_ROLE, _DATABASE)

    @property
    def pid(self) -> int | None:
        """The server's process; None while there is none."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if running and self._process is not None else None

    async def open(self) -> None:
        """Start the server, on a new database where there is none yet.

        Raises `DataFolderInUseError` where another server has the folder, `EmbeddedPostgresError` with the end of the
        log where PostgreSQL cannot be started.
        """
        if self._endpoint is not None:
            raise EmbeddedPostgresError(f"The embedded database in {self._folder.root} is open already.")
        try:
            await self._open()
        except OSError as exc:
            await self.close()
            raise EmbeddedPostgresError(
                f"{self._folder.root} cannot be used for the database: {exc}. {self._folder.advice}"
            ) from exc
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop the server: gently, and by force in time. Does nothing where it is not open."""
        keeper, self._keeper = self._keeper, None
        try:
            if keeper is not None:
                keeper.cancel()
                await asyncio.wait([keeper])
        finally:
            try:
                await self._stop()
            finally:
                self._endpoint = None
                self._folder.release()

    async def _open(self) -> None:
        binaries = installed_binaries()
        self._folder.claim()
        if self._folder.check(binaries.major_version):
            await self._clear_away()
        else:
            await self._prepare(binaries)
        self._password = self._folder.read_password()
        self._endpoint = self._folder.choose_endpoint()
        await self._start(binaries, self._endpoint)
        self._keeper = asyncio.create_task(self._keep_running(binaries, self._endpoint), name="embedded PostgreSQL")

    async def _clear_away(self) -> None:
        """End what is left of an earlier server on this folder, so that it can't write beside the new one."""
        await stop_leftovers(self._folder.identity, self._folder.data.stat().st_uid)
        await asyncio.to_thread(forget_stale_pid, self._folder.data, self._folder.identity)

    async def _prepare(self, binaries: Binaries) -> None:
        """Make the database aside and move it into its place when it is complete."""
        log.info("Preparing a database in %s", self._folder.root)
        unfinished = self._folder.begin_cluster()
        try:
            await self._initdb(binaries, unfinished)
            self._folder.finish_cluster(unfinished)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise

    async def _initdb(self, binaries: Binaries, unfinished: Path) -> None:
        mark, process = await self._spawn(
            binaries,
            binaries.initdb,
            f"--pgdata={unfinished / 'data'}",
            f"--pwfile={unfinished / 'password'}",
            f"--username={_SUPERUSER}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--no-locale",
            "--no-instructions",
            needed=unfinished,
            death_signal=signal.SIGKILL,
        )
        try:
            async with asyncio.timeout(_INITDB_TIMEOUT_S):
                code = await process.wait()
        except TimeoutError as exc:
            raise self._failed("The database could not be prepared in time", mark) from exc
        finally:
            await _kill(process)
        if code != 0:
            raise self._failed("The database could not be prepared", mark)

    async def _start(self, binaries: Binaries, endpoint: Endpoint) -> None:
        started = time.monotonic()
        settings = _SETTINGS | endpoint.settings | {"cluster_name": self._folder.identity}
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        mark, self._process = await self._spawn(
            binaries,
            binaries.postgres,
            "-D",
            self._folder.data,
            *options,
            needed=self._folder.data,
            # A fast shutdown, so that the next start has nothing to recover.
            death_signal=signal.SIGINT,
        )
        try:
            connection = await self._first_connection(self._process, mark)
            try:
                await _make_database(connection, self._password)
            finally:
                await connection.close()
        except BaseException:
            await self._stop()
            raise
        log.info("PostgreSQL runs as process %d, after %.2f s", self._process.pid, time.monotonic() - started)

    async def _spawn(
        self,
        binaries: Binaries,
        program: Path,
        *arguments: str | Path,
        needed: Path,
        death_signal: signal.Signals,
    ) -> tuple[int, asyncio.subprocess.Process]:
        """Start a program; returns where in the log its own words begin, too."""
        output = self._log.open()
        try:
            self._folder.give_file(output)
            self._log.trim()
            mark = self._log.size()
            process = await spawn(
                program,
                *arguments,
                account=self._folder.account,
                needed=(f"x:{binaries.postgres}", f"x:{program}", binaries.catalogue, needed),
                death_signal=death_signal,
                output=output,
            )
        finally:
            os.close(output)
        return mark, process

    async def _first_connection(self, process: asyncio.subprocess.Process, mark: int) -> Any:
        """Ask until PostgreSQL answers, ends, or takes too long. One that recovers from a crash may take longer."""
        deadline = time.monotonic() + self._start_timeout_s
        last = time.monotonic() + _RECOVERY_TIMEOUT_S
        pause_s = _FIRST_POLL_S
        while process.returncode is None and time.monotonic() < min(deadline, last):
            try:
                return await asyncpg.connect(self._dsn(_SUPERUSER, _SUPERUSER), timeout=_CONNECT_TIMEOUT_S)
            except asyncpg.CannotConnectNowError:
                deadline = time.monotonic() + self._start_timeout_s
            except _NOT_YET:
                pass
            except asyncpg.PostgresError as exc:
                raise self._failed(f"PostgreSQL does not let us in ({exc})", mark) from exc
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LAST_POLL_S)
        if process.returncode is None:
            raise self._failed("PostgreSQL did not answer in time", mark)
        raise self._failed("PostgreSQL could not be started", mark)

    async def _keep_running(self, binaries: Binaries, endpoint: Endpoint) -> None:
        """Start the server again whenever it ends, for as long as it takes."""
        pause_s = _FIRST_RESTART_S
        while True:
            started = time.monotonic()
            await self._ended()
            if time.monotonic() - started > _STABLE_S:
                pause_s = _FIRST_RESTART_S
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LAST_RESTART_S)
            try:
                await self._clear_away()
                await self._start(binaries, endpoint)
            except Exception:
                log.exception("PostgreSQL could not be started again; the next attempt is in %g s", pause_s)

    async def _ended(self) -> None:
        """Wait for the server's end, and keep its log short meanwhile."""
        process = self._process
        if process is None:
            return
        while process.returncode is None:
            try:
                async with asyncio.timeout(_LOG_CHECK_S):
                    await process.wait()
            except TimeoutError:
                await self._trim_log()
        log.error("PostgreSQL (process %d) ended unexpectedly with code %d", process.pid, process.returncode)
        self._process = None

    async def _trim_log(self) -> None:
        try:
            await asyncio.to_thread(self._log.trim)
        except OSError:
            log.exception("The log of PostgreSQL cannot be shortened")

    async def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            # A fast shutdown writes everything out; an immediate one leaves that to the next start.
            for number, share in ((signal.SIGINT, 0.75), (signal.SIGQUIT, 0.2)):
                if await _ends(process, number, timeout_s=self._stop_timeout_s * share):
                    return
            log.warning("PostgreSQL (process %d) is killed, since it does not stop", process.pid)
        finally:
            # Also when whoever waits for us gives up.
            await _kill(process)
        await stop_leftovers(self._folder.identity, self._folder.data.stat().st_uid)

    def _dsn(self, role: str, database: str) -> str:
        if self._endpoint is None:
            raise EmbeddedPostgresError(f"The embedded database in {self._folder.root} is not open.")
        return self._endpoint.dsn(role, self._password, database)

    def _failed(self, what: str, mark: int) -> EmbeddedPostgresError:
        tail = self._log.tail(mark) or "(nothing)"
        return EmbeddedPostgresError(
            f"{what} in {self._folder.root}.{self._folder.space_note()} It said last ({self._folder.log}):\n{tail}"
        )


async def _ends(process: asyncio.subprocess.Process, number: signal.Signals, *, timeout_s: float) -> bool:
    """Whether the process ends in time, after this signal."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.send_signal(number)
    try:
        async with asyncio.timeout(timeout_s):
            await process.wait()
    except TimeoutError:
        return False
    return True


async def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _make_database(connection: Any, password: str) -> None:
    """Make the role and the database where they are not there yet."""
    if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", _ROLE):
        await connection.execute(f"CREATE ROLE {_ROLE} LOGIN CREATEDB PASSWORD '{password}'")
    if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", _DATABASE):
        await connection.execute(f"CREATE DATABASE {_DATABASE} OWNER {_ROLE}")
