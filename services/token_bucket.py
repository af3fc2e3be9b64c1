"""How much somebody may do at once, and in the long run."""

import time
from collections.abc import Callable


class TokenBucket:
    """Holds `burst` tokens, and is filled up with `per_s` of them a second."""

    __slots__ = ("_at", "_burst", "_monotonic", "_per_s", "_tokens")

    def __init__(self, per_s: float, burst: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Begin with a full bucket."""
        self._per_s = per_s
        self._burst = burst
        self._monotonic = monotonic
        self._tokens = burst
        self._at = monotonic()

    def take(self) -> bool:
        """Take a token; False where there is none."""
        now = self._monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
