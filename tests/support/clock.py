"""A clock that stands still until it is told to move."""


class ManualClock:
    def __init__(self, now_ms: int) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        return self._now_ms

    def advance(self, *, minutes: float = 0, hours: float = 0, days: float = 0) -> None:
        self._now_ms += int((minutes + hours * 60 + days * 1440) * 60_000)
