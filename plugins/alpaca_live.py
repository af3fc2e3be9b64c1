"""The stream of Alpaca: one connection for all symbols of a plugin, for most accounts may have only one to an address.

A second one is refused with 406 (https://docs.alpaca.markets/docs/streaming-market-data).
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from plugins.alpaca_line import Access, Line
from plugins.base import LiveBars, NetworkPluginError, PluginError

if TYPE_CHECKING:
    from types import SimpleNamespace

    import aiohttp

#: Between one failed attempt to connect and the next, seconds.
PACE_S = 1.0
#: So many symbols found mute, without a bar of any in between, and the connection is taken for mute.
MOST_DOUBTS = 2


class AlpacaStream:
    """The stream of one plugin: at most one connection at a time, from the first symbol to the last."""

    def __init__(self, access: Access) -> None:
        """Take how it is reached."""
        self._access = access
        self._session: aiohttp.ClientSession | None = None
        #: The line that new symbols join, or the last one, which has failed.
        self._line: Line | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Make the HTTP session; nothing is asked."""
        import aiohttp  # noqa: PLC0415 - see AlpacaPlugin.open()

        if self._session is None:
            trace = aiohttp.TraceConfig()
            trace.on_request_redirect.append(_refuse_redirect)
            self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), trace_configs=[trace])

    async def close(self) -> None:
        """End the connection; whoever listens gets an error. Takes little more than a second; safe to call twice."""
        session, self._session = self._session, None
        self._end("the stream of Alpaca is closed")
        while self._tasks:
            await asyncio.wait(self._tasks)
        if session is not None:
            await session.close()

    async def minutes(self, symbol: str) -> AsyncGenerator[LiveBars, None]:
        """The minutes of a symbol as Alpaca tells them.

        Raises:
            PluginError: the stream has ended.
        """
        line = self._usable_line()
        feed = line.add(symbol)
        try:
            while True:
                yield await feed.hear()
        finally:
            line.remove(symbol)
            if not line.feeds and line is self._line and line.fault is None:
                self._end("nobody listens to the stream of Alpaca")

    def doubt(self, symbol: str) -> None:
        """A symbol's bars were kept back; when others' are too, the connection is ended for all."""
        line = self._line
        if line is not None and line.fault is None and symbol in line.feeds:
            line.doubts += 1
            if line.doubts >= MOST_DOUBTS:
                self._end("the stream of Alpaca tells nothing any more")

    def _usable_line(self) -> Line:
        if self._session is None:
            raise PluginError("the Alpaca plugin is not open")
        failed = self._line
        if failed is not None and failed.fault is None:
            return failed
        not_before_s = _next_attempt_s(failed) if failed is not None else 0.0
        line = self._line = Line(self._access)
        task = asyncio.create_task(
            _run(line, self._session, after=list(self._tasks), not_before_s=not_before_s), name="stream of Alpaca"
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        line.task = task
        return line

    def _end(self, reason: str) -> None:
        """End the line in the background; the next one waits until it is gone."""
        line, self._line = self._line, None
        if line is not None and line.fault is None and line.task is not None:
            line.end(NetworkPluginError(reason))
            line.task.cancel()


def _next_attempt_s(failed: Line) -> float:
    """When to connect again after a failure, by the event loop's clock.

    Raises:
        PluginError: what Alpaca said last time still holds; who asks now need not find out anew.
    """
    fault, now_s = failed.fault, asyncio.get_running_loop().time()
    if fault is not None and fault.retry_after_s is not None and now_s < failed.ended_s + fault.retry_after_s:
        raise type(fault)(fault.detail, retry_after_s=failed.ended_s + fault.retry_after_s - now_s)
    return 0.0 if failed.authenticated.is_set() else failed.ended_s + PACE_S


async def _run(
    line: Line, session: "aiohttp.ClientSession", *, after: list[asyncio.Task[None]], not_before_s: float
) -> None:
    """Run a line when those before it are gone, for Alpaca allows no two at once."""
    if after:
        await asyncio.wait(after)
    await asyncio.sleep(not_before_s - asyncio.get_running_loop().time())
    await line.run(session)


async def _refuse_redirect(*_: "aiohttp.ClientSession | SimpleNamespace | aiohttp.TraceRequestRedirectParams") -> None:
    # Elsewhere the keys have no business.
    raise PluginError("Alpaca's stream answered with a redirect; it is not followed")
