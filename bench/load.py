"""Requests from many connections at once, each sent when the one before it was answered: `python -m bench.load FILE`.

A process of its own. It reads a `Plan` from stdin, and writes a `Load` to the file. It looks at no more of an answer
than status and length, so that it is never what is measured; a few are kept whole, for whoever wants to check them.
"""

import asyncio
import contextlib
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import cast

import msgspec
import uvloop

CONNECTIONS = 32
#: Answers that are kept: the first of the time that counts, and then one after each such part of it.
KEPT = 6
#: One buffer for all connections: what is in it is looked at before anything else is read.
_BUFFER_BYTES = 1 << 18
_JOIN_S = 10.0
_HEAD_END, _LENGTH = b"\r\n\r\n", b"content-length:"
_CLOSE = b"connection: close"
_STATUS_AT, _OK = slice(9, 12), b"200"


class Plan(msgspec.Struct, frozen=True):
    """What to do.

    Attributes:
        address: of the server.
        targets: a file with a request target a line, which are gone through in turn.
        again: they are gone through again and again; else none is asked for twice.
        least, most: bytes of the body of a good answer.
        seconds: that count.
        warm_up_s: before them.
        connections: kept open.
    """

    address: tuple[str, int]
    targets: str
    least: int
    most: int
    again: bool
    seconds: float
    warm_up_s: float = 1.0
    connections: int = CONNECTIONS


class Load(msgspec.Struct, frozen=True):
    """What came of it.

    Attributes:
        answers: good ones.
        seconds: that they took.
        p50_ms, p99_ms: from sending a request to the last byte of its answer.
        busy: share of a core that this process took: near 1 it would itself be what was measured.
        kept: some targets, with the bodies of their answers, in the order in which they came.
        faults: what was wrong with answers; empty where all were good.
    """

    answers: int
    seconds: float
    p50_ms: float
    p99_ms: float
    busy: float
    kept: list[tuple[str, str]]
    faults: list[str]

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answers / self.seconds


class Crowd:
    """What the connections share."""

    def __init__(self, plan: Plan) -> None:
        """Nothing is asked yet."""
        host, port = plan.address
        lines = Path(plan.targets).read_text(encoding="ascii").splitlines()
        self.plan = plan
        self.tail = f" HTTP/1.1\r\nHost: {host}:{port}\r\nAccept: application/json\r\n\r\n".encode()
        self.buffer = bytearray(_BUFFER_BYTES)
        self.view = memoryview(self.buffer)
        targets = [b"GET " + line.encode() for line in lines]
        self.targets: Iterator[bytes] = cycle(targets) if plan.again else iter(targets)
        self.times_s: list[float] = []
        #: When the next answer is to be kept; None: the time that counts has not begun.
        self.keep_from_s: float | None = None
        self.kept: list[tuple[str, str]] = []
        self.faults: list[str] = []
        self.over = asyncio.Event()
        self.renewals: set[asyncio.Task[None]] = set()

    async def connect(self) -> None:
        """One connection more, that asks from now on."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_JOIN_S):
            _, connection = await loop.create_connection(lambda: Connection(self), *self.plan.address)
        connection.ask()

    def renew(self) -> None:
        """A server closes a connection after so many answers, and says so: another takes its place."""
        task = asyncio.create_task(self.connect(), name="connect again")
        self.renewals.add(task)
        task.add_done_callback(self._renewed)

    def _renewed(self, task: asyncio.Task[None]) -> None:
        self.renewals.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            self.failed(repr(fault))

    def failed(self, fault: str) -> None:
        """Something was wrong: there is no use in going on."""
        self.faults.append(fault)
        self.over.set()


class Connection(asyncio.BufferedProtocol):
    """One connection: it asks, and when it was answered asks again."""

    def __init__(self, crowd: Crowd) -> None:
        """Nothing is asked yet."""
        self._crowd = crowd
        self._transport: asyncio.Transport | None = None
        self._head = b""
        #: Bytes of the body that are still to come; None: the head is not here in full.
        self._missing: int | None = None
        self._asked_s = 0.0
        self._target = b""
        self._is_last = False
        self._kept: list[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way to send."""
        # uvloop's own is none of asyncio's by class.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """No server may close a connection without a word."""
        if not (self._is_last or self._crowd.over.is_set()):
            self._crowd.failed(f"a connection was lost: {exc!r}")

    def ask(self) -> None:
        """Send the next request."""
        crowd = self._crowd
        target = next(crowd.targets, None)
        if target is None:
            crowd.failed("there were not enough targets")
            return
        assert self._transport is not None
        self._target, self._head, self._missing = target, b"", None
        self._kept = None
        self._asked_s = time.perf_counter()
        if crowd.keep_from_s is not None and self._asked_s >= crowd.keep_from_s:
            self._kept = []
            crowd.keep_from_s += crowd.plan.seconds / KEPT
        self._transport.write(target + crowd.tail)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - as the protocol has it
        """The buffer of all."""
        return self._crowd.view

    def buffer_updated(self, nbytes: int) -> None:
        """Count what came."""
        came = nbytes
        if self._missing is None:
            came = self._take_head(nbytes)
            if self._missing is None:
                return
        if self._kept is not None and came:
            self._kept.append(bytes(self._crowd.view[nbytes - came : nbytes]))
        self._missing -= came
        if self._missing < 0:
            self._crowd.failed("an answer was longer than it said")
        elif self._missing == 0:
            self._answered()

    def _take_head(self, nbytes: int) -> int:
        """Read the head, where it is here in full; bytes that came behind it."""
        crowd = self._crowd
        at = crowd.buffer.find(_HEAD_END, 0, nbytes) if not self._head else -1
        if at < 0:
            # It came in pieces, which is rare.
            self._head += bytes(crowd.view[:nbytes])
            at = self._head.find(_HEAD_END)
            if at < 0:
                return 0
            head, behind = self._head[:at], len(self._head) - at - len(_HEAD_END)
        else:
            head, behind = bytes(crowd.view[:at]), nbytes - at - len(_HEAD_END)
        self._missing = self._length(head)
        return behind

    def _length(self, head: bytes) -> int:
        lower = head.lower()
        at = lower.find(_LENGTH)
        if head[_STATUS_AT] != _OK or at < 0:
            self._crowd.failed(f"{self._target!r} was answered with {head[:400]!r}")
            return 1 << 60
        self._is_last = _CLOSE in lower
        length = int(lower[at + len(_LENGTH) :].partition(b"\r")[0])
        if not self._crowd.plan.least <= length <= self._crowd.plan.most:
            self._crowd.failed(f"{self._target!r} was answered with {length} bytes")
        return length

    def _answered(self) -> None:
        crowd = self._crowd
        if crowd.over.is_set():
            return
        if crowd.keep_from_s is not None:
            crowd.times_s.append(time.perf_counter() - self._asked_s)
            if self._kept is not None:
                crowd.kept.append((self._target.decode().partition(" ")[2], b"".join(self._kept).decode()))
        if self._is_last:
            assert self._transport is not None
            self._transport.close()
            crowd.renew()
        else:
            self.ask()


async def load(plan: Plan) -> Load:
    """Go through with it."""
    crowd = Crowd(plan)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: crowd.failed(str(context)))
    await asyncio.gather(*(crowd.connect() for _ in range(plan.connections)))
    await _pass(crowd, plan.warm_up_s)
    began_s, busy_s = time.perf_counter(), processor_s()
    crowd.keep_from_s = began_s
    await _pass(crowd, plan.seconds)
    took_s, busy_s = time.perf_counter() - began_s, processor_s() - busy_s
    crowd.over.set()
    return summary(crowd.times_s, took_s, busy_s / took_s, crowd.kept, crowd.faults)


def summary(
    times_s: Sequence[float], seconds: float, busy: float, kept: list[tuple[str, str]], faults: list[str]
) -> Load:
    """A `Load` of answers that took so long each."""
    if not times_s:
        return Load(0, seconds, 0.0, 0.0, busy, kept, faults or ["nothing was answered"])
    ordered = sorted(times_s)
    p50, p99 = (1_000 * ordered[int(len(ordered) * share)] for share in (0.5, 0.99))
    return Load(len(ordered), seconds, p50, p99, busy, kept, faults)


async def _pass(crowd: Crowd, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await crowd.over.wait()


def processor_s(who: int = resource.RUSAGE_SELF) -> float:
    """Seconds of the processor that this process has taken, or its children that have ended."""
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    done = uvloop.run(load(msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)))
    Path(sys.argv[1]).write_bytes(msgspec.json.encode(done))
