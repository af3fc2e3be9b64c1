"""An event loop whose time jumps to the next timer instead of passing: long waits are tested at once, and exactly."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Jumping(selectors.SelectSelector):
    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise AssertionError("every task waits for something that never comes")
        self.now_s += timeout
        return super().select(0)


class InstantLoop(asyncio.SelectorEventLoop):
    """For code that waits for nothing but other tasks and time."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run the coroutine in a loop of its own where time jumps."""
    with asyncio.Runner(loop_factory=InstantLoop) as runner:
        return runner.run(coroutine)


def now_s() -> float:
    """Seconds of the running loop."""
    return asyncio.get_running_loop().time()
