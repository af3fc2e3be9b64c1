"""How often a series has a bar, and from that, how long a silence is normal."""

from collections.abc import Iterable, Sequence
from math import ceil, log

from domain.series import Verdict
from domain.timeframe import MINUTE_MS
from services.coverage import Tile

#: So many minutes are remembered.
MEMORY = 120
#: A silence is suspicious where it has a chance below this.
UNLIKELY = 0.01
#: No series is taken for busier, and none is left alone for longer, in minutes.
MOST_BUSY = 0.99
LONGEST = 60
#: What is assumed of a series that nothing is known of, and for how many minutes' worth.
_GUESS, _GUESS_WEIGHT = 0.6, 5
_MASK = (1 << MEMORY) - 1


class Rhythm:
    """The share of the last minutes that had a bar, of those in which the venue was open. Pure."""

    __slots__ = ("_known", "_minutes")

    def __init__(self) -> None:
        """Nothing is known yet."""
        #: One bit a minute, the newest one lowest; set where it had a bar.
        self._minutes = 0
        self._known = 0

    def note(self, minutes: Iterable[bool]) -> None:
        """Take the next minutes: whether each had a bar."""
        for had_bar in minutes:
            self._minutes = (self._minutes << 1 | had_bar) & _MASK
            self._known = min(self._known + 1, MEMORY)

    @property
    def share(self) -> float:
        """The share of minutes with a bar."""
        seen = self._minutes.bit_count() + _GUESS * _GUESS_WEIGHT
        return min(seen / (self._known + _GUESS_WEIGHT), MOST_BUSY)

    @property
    def patience(self) -> int:
        """After so many silent minutes in a row it is time to ask."""
        silent = log(1 - self.share)
        return min(ceil(log(UNLIKELY) / silent + 1e-9), LONGEST) if silent < 0 else LONGEST

    def is_suspicious(self, silent_minutes: int) -> bool:
        """Whether so long a silence is too unlikely to be taken for granted."""
        return silent_minutes >= self.patience


def learn(tiles: Sequence[Tile]) -> tuple[Rhythm, int | None]:
    """The rhythm of what is known of minutes, and the newest bar among them."""
    minutes: list[bool] = []
    last_bar_ms: int | None = None
    for tile in reversed(tiles):
        count = tile.range.length_ms // MINUTE_MS
        if tile.verdict is Verdict.DATA:
            last_bar_ms = tile.range.end_ms - MINUTE_MS if last_bar_ms is None else last_bar_ms
            minutes += [True] * count
        elif tile.verdict in {Verdict.NO_TRADES, Verdict.UNCONFIRMED_EMPTY}:
            minutes += [False] * count
        if len(minutes) >= MEMORY:
            break
    rhythm = Rhythm()
    rhythm.note(reversed(minutes[:MEMORY]))
    return rhythm, last_bar_ms
