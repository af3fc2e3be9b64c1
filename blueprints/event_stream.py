"""Server-sent events: an answer that goes on until its source, the client or the server ends."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, TypeVar

from quart import Response, request

T = TypeVar("T")

#: A comment after so long without an event, so that nobody on the way takes the connection for dead.
KEEP_ALIVE_S = 15.0
#: How long a client is to wait before it comes back after the stream broke off.
RETRY_MS = 2000

OPENING = b"retry: %d\n\n" % RETRY_MS
KEEP_ALIVE = b": keep-alive\n\n"


def event(name: str, number: int, data: bytes) -> bytes:
    """One event; the data must be a single line, as JSON is."""
    return b"event: %s\nid: %d\ndata: %s\n\n" % (name.encode(), number, data)


def stream_answer(events: AsyncGenerator[bytes, None]) -> Response:
    """The events as they come. HEAD gets the headers alone; elsewhere the answer may take for ever."""
    response = Response(b"" if request.method == "HEAD" else events, mimetype="text/event-stream")
    response.timeout = None
    response.headers["Cache-Control"] = "no-store"
    # Proxies of the nginx kind would collect the events otherwise.
    response.headers["X-Accel-Buffering"] = "no"
    return response


async def until_stopped(
    source: AsyncGenerator[T, None], stopping: asyncio.Event, *, silence_s: float
) -> AsyncGenerator[T | None, None]:
    """What the source yields, and None after each silence of so long; nothing more once the server is stopping.

    The source is asked for one thing at a time, and only when the last one was taken. It is closed at the end.
    """
    stopped = asyncio.create_task(stopping.wait(), name="wait for the server's end")
    coming = asyncio.create_task(_next(source), name="wait for an event")
    try:
        while not stopping.is_set():
            await asyncio.wait({coming, stopped}, timeout=silence_s, return_when=asyncio.FIRST_COMPLETED)
            if stopping.is_set():
                return
            if not coming.done():
                yield None
                continue
            item = coming.result()
            if item is None:
                return
            yield item
            coming = asyncio.create_task(_next(source), name="wait for an event")
    finally:
        await _ended(stopped)
        await _ended(coming)
        await source.aclose()


async def _next(source: AsyncGenerator[T, None]) -> T | None:
    return await anext(source, None)


async def _ended(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end, whatever that is."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
