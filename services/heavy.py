"""Work that would hold up the event loop is done in a thread; what is small is not worth the way there."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

#: Bars or stretches of time that are worked through one by one in a millisecond or two.
MOST_ON_LOOP = 1_000


async def aside(size: int, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """What the work comes to; it is of so many parts, and touches nothing that others change."""
    if size <= MOST_ON_LOOP:
        return work(*args, **options)
    return await asyncio.to_thread(work, *args, **options)
