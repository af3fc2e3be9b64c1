"""Which revision each series has, as far as this process hears of changes: what makes remembering safe.

Somebody tells of every change as it is committed, and vouches again and again that nothing was missed. As long as that
is so, what was read of a series holds until a change of it is told; when it is not, nothing that was read before holds.
"""

from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

#: A change that this process is about to commit is waited for so long; then it was rolled back.
_AWAITED_S = 60.0


class Stamp(NamedTuple):
    """What something was read under: a series' revision, in an era."""

    series_id: int
    revision: int
    era: int


class Revisions:
    """Tells whether what was read of a series still holds."""

    def __init__(self, *, now_s: Callable[[], float] = monotonic) -> None:
        """Begin with nobody to vouch for anything."""
        self._now_s = now_s
        self._vouched_until_s = float("-inf")
        self._told: dict[int, int] = {}
        self._awaited: dict[int, tuple[int, float]] = {}
        #: To be taken down before something is read, and kept with it.
        self.era = 0

    def holds(self, stamp: Stamp) -> bool:
        """Whether what was read under the stamp is still so."""
        series_id, revision, era = stamp
        if era != self.era or self._now_s() >= self._vouched_until_s:
            return False
        if self._told.get(series_id, revision) > revision:
            return False
        return not self._awaited or not self._is_awaited(series_id, revision)

    def changed(self, series_id: int, revision: int) -> None:
        """Take note that a series has a new revision."""
        self._told[series_id] = max(revision, self._told.get(series_id, revision))
        awaited = self._awaited.get(series_id)
        if awaited is not None and awaited[0] <= revision:
            del self._awaited[series_id]

    def expect(self, series_id: int, revision: int) -> None:
        """Take note that this process is about to commit a change: nothing older holds until it is told, or was not."""
        self._awaited[series_id] = (revision, self._now_s() + _AWAITED_S)

    def vouch(self, until_s: float) -> None:
        """Every change is told, or will have been by this time."""
        self._vouched_until_s = until_s

    def lost(self) -> None:
        """Changes may have been missed: whatever was read before does not hold."""
        self.era += 1
        self._vouched_until_s = float("-inf")
        self._told.clear()

    def _is_awaited(self, series_id: int, revision: int) -> bool:
        awaited = self._awaited.get(series_id)
        if awaited is None or revision >= awaited[0]:
            return False
        if self._now_s() < awaited[1]:
            return True
        del self._awaited[series_id]
        return False
