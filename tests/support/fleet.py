"""Several real servers on one database and one Redis, their clients, and a venue whose minutes pass as a test says."""

import asyncio
import json
import os
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

from domain.bar import Bar, fold
from domain.series import Series
from domain.timeframe import MINUTE_MS, Timeframe
from tests.loopback.alpaca import AlpacaLoopback
from tests.loopback.alpaca_stream import AlpacaStreamLoopback
from tests.loopback.binance import BinanceLoopback
from tests.loopback.exchange import forming
from tests.support.fleet_child import FileClock
from tests.support.servers import chosen_server

ROOT = Path(__file__).resolve().parents[2]
START_S = 60.0
SOON_S = 30.0
#: Where in a minute its first word comes, and how long after its end its last one.
_WORD_MS, _CLOSE_MS = 5_000, 200


class Member:
    """A server process of the fleet."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.process = process
        self.url = ""
        self._log = log

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self._log.read_text("utf-8", "replace")

    async def ready(self) -> None:
        assert self.process.stdout is not None
        async with asyncio.timeout(START_S):
            line = (await self.process.stdout.readline()).decode()
        assert line.startswith("Candlery is ready: "), (line, self.log)
        self.url = line.split()[-1]

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self) -> None:
        async with asyncio.timeout(SOON_S):
            await self.process.wait()

    async def gone(self) -> None:
        """Leave nothing behind."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
                self.process.kill()
        await self.process.communicate()


class Fleet:
    """Servers with the same settings, by the same clock."""

    def __init__(self, folder: Path, clock: FileClock, http: aiohttp.ClientSession, **settings: str) -> None:
        self.clock = clock
        self.http = http
        self.members: list[Member] = []
        self._folder = folder
        self._settings = settings

    async def start(self, *names: str) -> list[Member]:
        """Start servers, all at once."""
        made = [await self._launch(name) for name in names]
        self.members += made
        await asyncio.gather(*(member.ready() for member in made))
        return made

    async def _launch(self, name: str) -> Member:
        environ = {key: value for key, value in os.environ.items() if not key.startswith("CANDLERY_")}
        environ |= {f"CANDLERY_{key.upper()}": value for key, value in self._settings.items()}
        environ |= {"CANDLERY_PORT": "0", "CANDLERY_SERVER": chosen_server(), "PYTHONPATH": str(ROOT)}
        path = self._folder / f"{name}.log"
        with path.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.support.fleet_child",
                str(self._folder / "clock"),
                cwd=self._folder,
                env=environ,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        return Member(name, process, path)

    async def live_in(self, member: Member) -> dict[str, bool]:
        """The symbols that are live in a server, and whether it has their upstream."""
        async with self.http.get(f"{member.url}/api/v1/stream/subscriptions") as response:
            shown = await response.json()
        return {one["symbol"]: one["owner"] for one in shown["series"]}

    async def followed_by(self, member: Member) -> set[str]:
        """The symbols whose upstream the server has, for its own clients or those of others."""
        return {symbol for symbol, owned in (await self.live_in(member)).items() if owned}


@asynccontextmanager
async def a_fleet(folder: Path, clock: FileClock, **settings: str) -> AsyncIterator[Fleet]:
    """An empty fleet; its servers end with the block."""
    async with aiohttp.ClientSession() as http:
        fleet = Fleet(folder, clock, http, **settings)
        try:
            yield fleet
        finally:
            await asyncio.gather(*(member.gone() for member in fleet.members))


class Viewer:
    """A client with one subscription; it remembers what it was told, and comes back with its last closed bar."""

    def __init__(
        self, fleet: Fleet, series: Series, timeframe: Timeframe = Timeframe.M1, *, last: int | None = None
    ) -> None:
        self.series, self.timeframe, self.last = series, timeframe, last
        #: Closed bars in the order in which they were told.
        self.closed: list[Bar] = []
        self.forming: list[Bar] = []
        self.faults: list[str] = []
        self.close_code: int | None = None
        self._http = fleet.http
        self._live = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    async def watch(self, member: Member) -> "Viewer":
        """Subscribe, from the last closed bar on where there is one; returns when the bars are live."""
        await self.leave()
        socket = await self._http.ws_connect(f"{member.url}/api/v1/stream")
        self._live.clear()
        self.close_code = None
        self._reading = asyncio.create_task(self._read(socket), name=f"a client of {member.name}")
        wish: dict[str, Any] = {"since": self.closed[-1].ts} if self.closed else {"last": self.last}
        question = {"op": "subscribe", "id": "v", **self.series._asdict(), "timeframe": self.timeframe.value, **wish}
        await socket.send_str(json.dumps(question))
        async with asyncio.timeout(SOON_S):
            await self._live.wait()
        return self

    async def leave(self) -> None:
        """Be cut off, as a client whose line breaks."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})

    async def parted(self) -> int | None:
        """Wait for the server's end; the code it gave."""
        assert self._reading is not None
        async with asyncio.timeout(SOON_S):
            await self._reading
        return self.close_code

    @property
    def newest_ms(self) -> int:
        """The last closed bar's."""
        return self.closed[-1].ts if self.closed else 0

    def expected(self, minutes: Sequence[Bar], end_ms: int) -> list[Bar]:
        """Its bars, if these are the minutes, and all of them are closed before `end_ms`."""
        bars = fold(minutes, self.timeframe)
        return [
            bar for bar in bars if self.closed and self.closed[0].ts <= bar.ts and self.timeframe.next(bar.ts) <= end_ms
        ]

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        resumed = bool(self.closed)
        try:
            async for message in socket:
                resumed = self._take(json.loads(message.data), resumed=resumed)
            self.close_code = socket.close_code
        finally:
            await socket.close()

    def _take(self, message: dict[str, Any], *, resumed: bool) -> bool:
        """Whether the bar that it resumed with is still to come."""
        kind = message["type"]
        if kind in {"subscribed", "heartbeat", "status"}:
            return resumed
        if kind == "live":
            self._live.set()
        elif kind == "snapshot":
            bars = [_bar(row) for row in message["bars"]]
            if resumed:
                if bars[0] != self.closed[-1]:
                    self.faults.append(f"resumed with {self.closed[-1]}, told {bars[0]}")
                bars, resumed = bars[1:], False
            for bar in bars:
                self._close(bar)
        elif kind == "bar" and message["state"] == "closed":
            self._close(_bar(message["bar"]))
        elif kind == "bar" and message["state"] == "forming":
            self._form(_bar(message["bar"]))
        else:
            self.faults.append(str(message))
        return resumed

    def _close(self, bar: Bar) -> None:
        if self.closed and bar.ts <= self.closed[-1].ts:
            self.faults.append(f"{bar.ts} was closed after {self.closed[-1].ts}")
        self.closed.append(bar)

    def _form(self, bar: Bar) -> None:
        if self.closed and bar.ts <= self.closed[-1].ts:
            self.faults.append(f"{bar.ts} forms after {self.closed[-1].ts} was closed")
        self.forming.append(bar)


def _bar(row: list[Any]) -> Bar:
    return Bar(int(row[0]), *row[1:])


class Script(ABC):
    """Minutes of a venue pass; `markets` are all its bars by symbol, those of the future included."""

    def __init__(self, clock: FileClock, markets: Mapping[str, Sequence[Bar]]) -> None:
        self.clock = clock
        #: Every minute before is over.
        self.at_ms = Timeframe.M1.floor(clock.now_ms())
        self._bars = {symbol: {bar.ts: bar for bar in bars} for symbol, bars in markets.items()}

    async def minute(self, *, pause_s: float = 0.0) -> None:
        """One minute forms, and is closed."""
        bars = {symbol: known[self.at_ms] for symbol, known in self._bars.items() if self.at_ms in known}
        self.clock.set(self.at_ms + _WORD_MS)
        await self.form(bars)
        await asyncio.sleep(pause_s / 2)
        self.at_ms += MINUTE_MS
        self.clock.set(self.at_ms + _CLOSE_MS)
        await self.close(bars)
        await asyncio.sleep(pause_s / 2)

    @asynccontextmanager
    async def running(self, *, every_s: float = 0.25) -> AsyncIterator[None]:
        """Minute after minute passes during the block."""

        async def pass_by() -> None:
            while True:
                await self.minute(pause_s=every_s)

        task = asyncio.create_task(pass_by(), name="minutes pass")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.result()

    def minutes(self, symbol: str, start_ms: int = 0) -> list[Bar]:
        """What the venue has closed so far, from an instant on."""
        return [bar for ts, bar in self._bars[symbol].items() if start_ms <= ts < self.at_ms]

    def told_ms(self, symbol: str) -> int:
        """The end of the last minute that had a bar: of silent ones after it nobody knows yet."""
        minutes = self.minutes(symbol)
        return minutes[-1].ts + MINUTE_MS if minutes else 0

    @abstractmethod
    async def form(self, bars: Mapping[str, Bar]) -> None:
        """Tell of the minute as it forms."""

    @abstractmethod
    async def close(self, bars: Mapping[str, Bar]) -> None:
        """Tell of the minute that is over."""


class BinanceScript(Script):
    """The minutes of a Binance, whose clock is the script's."""

    def __init__(self, venue: BinanceLoopback, clock: FileClock, markets: Mapping[str, Sequence[Bar]]) -> None:
        super().__init__(clock, markets)
        self._venue = venue

    async def form(self, bars: Mapping[str, Bar]) -> None:
        for symbol, bar in bars.items():
            await self._venue.stream.say(symbol.replace("/", ""), forming(bar))

    async def close(self, bars: Mapping[str, Bar]) -> None:
        for symbol, bar in bars.items():
            await self._venue.stream.say(symbol.replace("/", ""), bar, closed=True)


class AlpacaScript(Script):
    """The minutes of an Alpaca's crypto pairs; nothing is told of one that forms."""

    def __init__(
        self,
        venue: AlpacaLoopback,
        stream: AlpacaStreamLoopback,
        clock: FileClock,
        markets: Mapping[str, Sequence[Bar]],
    ) -> None:
        super().__init__(clock, markets)
        self._venue, self._stream = venue, stream
        self._publish()

    async def form(self, bars: Mapping[str, Bar]) -> None:
        self._venue.now_ms = self.clock.now_ms()

    async def close(self, bars: Mapping[str, Bar]) -> None:
        self._publish()
        for symbol, bar in bars.items():
            await self._stream.say(symbol, bar)

    def _publish(self) -> None:
        self._venue.now_ms = self.clock.now_ms()
        self._venue.crypto = {symbol: self.minutes(symbol) for symbol in self._bars}


async def until(
    holds: Callable[[], bool], *, within_s: float = SOON_S, or_say: Callable[[], object] = lambda: "it took too long"
) -> float:
    """Wait for a condition; how long it took, in seconds."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < within_s, or_say()
        await asyncio.sleep(0.01)
    return time.monotonic() - began
