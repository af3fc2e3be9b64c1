"""What all loopback exchanges share: the market, the server, the log of calls and the faults. It knows only HTTP."""

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from email.utils import formatdate
from typing import NamedTuple, Self

import msgspec
from aiohttp import web

from domain.bar import Bar, fold
from domain.clock import Clock, SystemClock
from domain.timeframe import MINUTE_MS, Timeframe
from tests.loopback.faults import FaultScript, RowFault, Rows, WireFault


class Call(NamedTuple):
    """One request as it came in; `at_ms` by the exchange's clock."""

    path: str
    query: dict[str, str]
    at_ms: int


class Listed(NamedTuple):
    """One symbol of the exchange."""

    id: str
    base: str
    quote: str

    @property
    def unified(self) -> str:
        """CCXT's name of it."""
        return f"{self.base}/{self.quote}"


class RefusalError(Exception):
    """The answer to a wrong question."""

    def __init__(self, status: int, body: object) -> None:
        super().__init__(str(body))
        self.status = status
        self.body = body


class LoopbackExchange(ABC):
    """An exchange on 127.0.0.1. `symbols` are its ids; minutes are set by id, and folded for coarser timeframes."""

    def __init__(
        self, bars: Mapping[str, Sequence[Bar]], *, symbols: Sequence[Listed], clock: Clock | None = None
    ) -> None:
        self.listed = {one.id: one for one in symbols}
        self._bars = {(id_, Timeframe.M1): list(minutes) for id_, minutes in bars.items()}
        self.clock: Clock = clock or SystemClock()
        self.calls: list[Call] = []
        #: Faults of calls for bars, and of calls for the list of symbols.
        self.faults = FaultScript()
        self.listing_faults = FaultScript()
        self._held_from_ms: dict[str, int] = {}
        self._runner: web.AppRunner | None = None
        self.url = ""

    @property
    @abstractmethod
    def provider(self) -> str:
        """CCXT's id of the exchange."""

    @property
    @abstractmethod
    def ccxt_urls(self) -> dict[str, object]:
        """What CCXT's constructor must be told to come here, besides what all need."""

    @abstractmethod
    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Set the paths."""

    @property
    def ccxt_options(self) -> dict[str, object]:
        """Options for CCXT's constructor. It need not wait for TLS connections to close."""
        return {"enableRateLimit": False, "timeout_on_exit": 0, **self.ccxt_urls}

    async def start(self, port: int = 0) -> None:
        app = web.Application(middlewares=[self._middleware])
        self.add_routes(app.router)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        host, bound = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{bound}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def set_bars(self, id_: str, bars: Sequence[Bar], timeframe: Timeframe = Timeframe.M1) -> None:
        """Native bars of a timeframe; without them, they are folded from the minutes."""
        self._bars[id_, timeframe] = list(bars)

    def hold_back(self, id_: str, from_ms: int) -> None:
        """Bars from the instant on are late: they are not answered until `release()`."""
        self._held_from_ms[id_] = from_ms

    def release(self, id_: str) -> None:
        del self._held_from_ms[id_]

    def bars(self, id_: str, timeframe: Timeframe) -> list[Bar]:
        """All bars up to now, ascending; the last one may still be forming."""
        now_ms = self.clock.now_ms()
        held_ms = self._held_from_ms.get(id_, now_ms + 1)
        native = self._bars.get((id_, timeframe))
        if native is not None and timeframe is not Timeframe.M1:
            return [bar for bar in native if bar.ts <= now_ms and bar.ts < held_ms]
        minutes = [bar for bar in self._bars.get((id_, Timeframe.M1), ()) if bar.ts <= now_ms and bar.ts < held_ms]
        if minutes and minutes[-1].ts + MINUTE_MS > now_ms:
            minutes[-1] = forming(minutes[-1])
        return minutes if timeframe is Timeframe.M1 else fold(minutes, timeframe)

    def calls_to(self, path: str) -> list[Call]:
        """Calls whose path contains `path`."""
        return [call for call in self.calls if path in call.path]

    async def answer_bars(
        self, request: web.Request, bars: Sequence[Bar], encode: Callable[[Rows], object]
    ) -> web.StreamResponse:
        """Answer with the bars in the order given, or as the script of faults has it."""
        rows: Rows = [[bar.ts, bar.open, bar.high, bar.low, bar.close, bar.volume] for bar in bars]
        fault = self.faults.pick()
        if isinstance(fault, RowFault):
            rows = fault.apply(copy.deepcopy(rows))
        body = _json(encode(rows))
        if isinstance(fault, WireFault):
            return await fault.answer(request, body)
        return web.Response(text=body, content_type="application/json")

    async def answer_listing(self, request: web.Request, listing: object) -> web.StreamResponse:
        body = _json(listing)
        fault = self.listing_faults.pick()
        if isinstance(fault, WireFault):
            return await fault.answer(request, body)
        return web.Response(text=body, content_type="application/json")

    @web.middleware
    async def _middleware(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        self.calls.append(Call(request.path, dict(request.query), self.clock.now_ms()))
        try:
            response = await handler(request)
        except RefusalError as exc:
            response = web.Response(status=exc.status, text=_json(exc.body), content_type="application/json")
        if not response.prepared:
            response.headers["Date"] = formatdate(self.clock.now_ms() / 1000, usegmt=True)
        return response


def forming(bar: Bar) -> Bar:
    """The bar as it may look before its end: not what it will be."""
    return msgspec.structs.replace(bar, high=max(bar.open, bar.close), low=min(bar.open, bar.close), volume=0.0)


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def decimal(value: object) -> object:
    """A number as venues write it, exactly; nonsense stays what it is."""
    return repr(value) if isinstance(value, float) else value


def listed(*pairs: str, separator: str = "") -> list[Listed]:
    """Symbols from `BASE/QUOTE`, with ids that join them."""
    split = [pair.split("/") for pair in pairs]
    return [Listed(f"{base}{separator}{quote}", base, quote) for base, quote in split]
