"""When venues are open. A venue is said to be closed only where its calendar is known to say so.

Calendars are built by a program of its own (`services.session_builder`), because the library brings pandas; they are
kept in a repository, and here in memory. From 1970 on as far as the library knows them, and a good year ahead; beyond
that, and while a calendar cannot be built, everything counts as open.
"""

import asyncio
import json
import logging
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple, Protocol
from zoneinfo import ZoneInfo

from domain.clock import Clock
from domain.errors import CandleryError
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import DAY_MS, MINUTE_MS, Timeframe

log = logging.getLogger(__name__)

#: Weekdays from 09:30 to 16:00 in New York without holidays, for the simulated market; needs no library.
NY_WEEKDAYS = "NY_WEEKDAYS"
#: Calendars are built this far ahead, and again when less is left: about once a month, as venues announce closings.
HORIZON_MS = 400 * DAY_MS
REBUILD_BELOW_MS = 370 * DAY_MS
#: After a failed build, and after one that did not reach as far as it should.
RETRY_AFTER_FAILURE_MS = 5 * MINUTE_MS
RETRY_AFTER_SHORT_BUILD_MS = DAY_MS

_BUILD_TIMEOUT_S = 60.0
_UNKNOWN_CALENDAR = 3  # As the builder exits.
_NEW_YORK = ZoneInfo("America/New_York")
_ROOT = Path(__file__).resolve().parents[1]


class UnknownCalendarError(CandleryError):
    """There is no such trading calendar."""


class SessionBuildError(CandleryError):
    """The trading calendar could not be built."""


class Session(NamedTuple):
    """A trading session: its date at 00:00 UTC, its regular hours and its extended hours; epoch milliseconds."""

    date_ms: int
    open_ms: int
    close_ms: int
    extended_open_ms: int
    extended_close_ms: int


class StoredSessions(NamedTuple):
    """Sessions, ascending, and the half-open range of dates in which there are no others."""

    sessions: Sequence[Session]
    first_ms: int
    last_ms: int


#: Makes the sessions of a calendar between two instants, or of as much of it as is known.
Build = Callable[[str, TimeRange], Awaitable[StoredSessions]]


class SessionRepository(Protocol):
    """Where calendars are kept between starts."""

    async def load(self, calendar: str) -> StoredSessions | None:
        """What was saved last; None where nothing was."""
        ...

    async def save(self, calendar: str, sessions: Sequence[Session], first_ms: int, last_ms: int) -> None:
        """Put this in the place of what was saved."""
        ...


class InMemorySessionRepository:
    """Keeps calendars as long as it lives."""

    def __init__(self) -> None:
        """Begin empty."""
        self._saved: dict[str, StoredSessions] = {}

    async def load(self, calendar: str) -> StoredSessions | None:
        """What was saved last."""
        return self._saved.get(calendar)

    async def save(self, calendar: str, sessions: Sequence[Session], first_ms: int, last_ms: int) -> None:
        """Put this in the place of what was saved."""
        self._saved[calendar] = StoredSessions(tuple(sessions), first_ms, last_ms)


class _Hours(Protocol):
    """The opening hours of one venue."""

    def hours(self, wanted: TimeRange) -> Iterable[tuple[int, int]]:
        """Opening hours that touch the range, ascending, and stretches in which they are unknown."""
        ...

    def days(self, wanted: TimeRange) -> Iterable[tuple[int, int]]:
        """Session dates in the range as days of UTC, ascending, and stretches in which they are unknown."""
        ...


class _StoredHours:
    """Sessions of a calendar that ends, as columns of numbers: a third of a megabyte for fifty years."""

    def __init__(self, stored: StoredSessions) -> None:
        self._dates = array("q", (session.date_ms for session in stored.sessions))
        self._opens = array("q", (session.extended_open_ms for session in stored.sessions))
        self._closes = array("q", (session.extended_close_ms for session in stored.sessions))
        self.last_ms = stored.last_ms
        self._dates_covered = RangeSet.of(stored.first_ms, stored.last_ms)
        # The hours of the dates just outside may reach into the first and the last day.
        self._hours_covered = RangeSet.of(stored.first_ms + DAY_MS, stored.last_ms - DAY_MS)

    def hours(self, wanted: TimeRange) -> Iterable[tuple[int, int]]:
        first, end = bisect_right(self._closes, wanted.start_ms), bisect_left(self._opens, wanted.end_ms)
        known = zip(self._opens[first:end], self._closes[first:end], strict=True)
        return chain(known, RangeSet((wanted,)) - self._hours_covered)

    def days(self, wanted: TimeRange) -> Iterable[tuple[int, int]]:
        first, end = bisect_left(self._dates, wanted.start_ms), bisect_left(self._dates, wanted.end_ms)
        known = ((day_ms, day_ms + DAY_MS) for day_ms in self._dates[first:end])
        return chain(known, RangeSet((wanted,)) - self._dates_covered)


class _NewYorkWeekdays:
    """Weekdays from 09:30 to 16:00 in New York, of any year."""

    def hours(self, wanted: TimeRange) -> Iterable[tuple[int, int]]:
        return ((s.open_ms, s.close_ms) for s in self._sessions(wanted) if s.close_ms > wanted.start_ms)

    def days(self, wanted: TimeRange) -> Iterable[tuple[int, int]]:
        return ((s.date_ms, s.date_ms + DAY_MS) for s in self._sessions(wanted))

    def _sessions(self, wanted: TimeRange) -> Iterator[Session]:
        """Sessions of the dates that the range touches; in New York they do not leave their date's day of UTC."""
        first_ms = wanted.start_ms - wanted.start_ms % DAY_MS
        for year in range(_year(first_ms), _year(wanted.end_ms - 1) + 1):
            yield from (s for s in _weekdays(year) if first_ms <= s.date_ms < wanted.end_ms)


@lru_cache(maxsize=64)
def _weekdays(year: int) -> tuple[Session, ...]:
    first = date(year, 1, 1)
    days = (first + timedelta(n) for n in range((date(year + 1, 1, 1) - first).days))
    return tuple(_weekday_session(day) for day in days if day.isoweekday() < 6)  # noqa: PLR2004 - Saturday


def _weekday_session(day: date) -> Session:
    date_ms = int(datetime.combine(day, time(), UTC).timestamp()) * 1000
    opens, closes = (int(datetime.combine(day, at, _NEW_YORK).timestamp()) * 1000 for at in (time(9, 30), time(16)))
    return Session(date_ms, opens, closes, opens, closes)


def _year(ts_ms: int) -> int:
    return datetime.fromtimestamp(ts_ms / 1000, UTC).year


async def run_builder_subprocess(calendar: str, wanted: TimeRange) -> StoredSessions:
    """Build a calendar in a process of its own, which takes about a second.

    Raises:
        UnknownCalendarError: there is none by that name.
        SessionBuildError: it failed, took too long, or printed nonsense.
    """
    first, last = (datetime.fromtimestamp(ts_ms / 1000, UTC).date() for ts_ms in (wanted.start_ms, wanted.end_ms - 1))
    # Found by its place and not by the working directory, where anything may be called `services`.
    code = (
        f"import sys; sys.path.insert(0, {str(_ROOT)!r})\n"
        "from services.session_builder import main; sys.exit(main(sys.argv[1:]))"
    )
    output = await _output_of(
        [sys.executable, "-P", "-W", "ignore", "-c", code, calendar, first.isoformat(), last.isoformat()]
    )
    try:
        return _sound(json.loads(output))
    except (ValueError, TypeError, KeyError) as exc:
        raise SessionBuildError(f"The builder of trading calendars printed nonsense: {exc}") from exc


async def _output_of(command: Sequence[str]) -> bytes:
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    except OSError as exc:
        raise SessionBuildError(f"The builder of trading calendars does not start: {exc}") from exc
    try:
        async with asyncio.timeout(_BUILD_TIMEOUT_S):
            output, complaint = await process.communicate()
    except TimeoutError as exc:
        raise SessionBuildError(f"The builder of trading calendars took over {_BUILD_TIMEOUT_S:g} s") from exc
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    words = complaint.decode(errors="replace").strip()[-300:]
    if process.returncode == _UNKNOWN_CALENDAR:
        raise UnknownCalendarError(words)
    if process.returncode:
        raise SessionBuildError(f"The builder of trading calendars ended with {process.returncode}: {words}")
    return output


def _sound(built: dict[str, object]) -> StoredSessions:
    """What a builder printed, checked: from false sessions a venue would be called closed that is not."""
    first_ms, last_ms, rows = built["first_ms"], built["last_ms"], built["sessions"]
    if not (isinstance(first_ms, int) and isinstance(last_ms, int) and isinstance(rows, list) and rows):
        raise ValueError("no sessions")
    sessions = [Session(*row) for row in rows]
    for session in sessions:
        if not all(isinstance(value, int) for value in session):
            raise TypeError(f"{session} is not made of whole numbers")
        if not session.extended_open_ms <= session.open_ms < session.close_ms <= session.extended_close_ms:
            raise ValueError(f"{session} is out of order")
        if session.date_ms % DAY_MS or not first_ms <= session.date_ms < last_ms:
            raise ValueError(f"{session} has no date between {first_ms} and {last_ms}")
    for before, after in pairwise(sessions):
        if before.date_ms >= after.date_ms or before.extended_close_ms > after.extended_open_ms:
            raise ValueError(f"{after} does not come after {before}")
    return StoredSessions(tuple(sessions), first_ms, last_ms)


class SessionService:
    """Answers when venues are open. Calendars are loaded when they are first asked for, and renewed in time."""

    def __init__(self, repository: SessionRepository, *, clock: Clock, build: Build = run_builder_subprocess) -> None:
        """Take where calendars are kept and how they are built; do no I/O."""
        self._repository = repository
        self._clock = clock
        self._build = build
        self._held: dict[str, _StoredHours] = {}
        self._unknown: dict[str, str] = {}
        self._build_again_ms: dict[str, int] = {}
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._weekdays = _NewYorkWeekdays()

    async def open_ranges(self, calendar: str | None, timeframe: Timeframe, wanted: TimeRange) -> RangeSet:
        """Buckets of the range in which the venue is open, or may be: whole ones, but for the ends of the range.

        Below a day a bucket is open when it touches the (extended) hours of a session, from a day on when it holds the
        date of a session. No calendar: always open.

        Raises:
            UnknownCalendarError: there is no such calendar.
            DatabaseUnavailableError: calendars cannot be read now.
        """
        everything = RangeSet((wanted,))
        if calendar is None or not everything:
            return everything
        hours = await self._hours(calendar)
        if hours is None:
            return everything
        reach = TimeRange(timeframe.floor(wanted.start_ms), timeframe.ceil(wanted.end_ms))
        found = hours.hours(reach) if timeframe.nominal_ms < DAY_MS else hours.days(reach)
        return RangeSet(_outward(found, timeframe)) & everything

    async def _hours(self, calendar: str) -> _Hours | None:
        """The calendar's hours; None where they are not to be had for now."""
        if calendar == NY_WEEKDAYS:
            return self._weekdays
        held = self._held.get(calendar)
        if held is None or self._is_due(calendar, held):
            turn = self._turns[calendar]
            if held is not None and turn.locked():
                return held  # It is being renewed, and good for a while.
            async with turn:
                return await self._load(calendar)
        return held

    async def _load(self, calendar: str) -> _Hours | None:
        if calendar in self._unknown:
            raise UnknownCalendarError(self._unknown[calendar])
        if calendar not in self._held and (stored := await self._repository.load(calendar)) is not None:
            self._held[calendar] = _StoredHours(stored)
        held = self._held.get(calendar)
        if self._is_due(calendar, held):
            await self._renew(calendar)
        return self._held.get(calendar)

    def _is_due(self, calendar: str, held: _StoredHours | None) -> bool:
        now_ms = self._clock.now_ms()
        short = held is None or held.last_ms - now_ms < REBUILD_BELOW_MS
        return short and now_ms >= self._build_again_ms.get(calendar, now_ms)

    async def _renew(self, calendar: str) -> None:
        now_ms = self._clock.now_ms()
        try:
            built = await self._build(calendar, TimeRange(0, now_ms + HORIZON_MS))
        except UnknownCalendarError as exc:
            self._unknown[calendar] = exc.detail
            raise
        except SessionBuildError as exc:
            self._build_again_ms[calendar] = now_ms + RETRY_AFTER_FAILURE_MS
            log.warning("Calendar %s could not be built; hours that are not known count as open: %s", calendar, exc)
            return
        self._build_again_ms[calendar] = now_ms + RETRY_AFTER_SHORT_BUILD_MS
        self._held[calendar] = _StoredHours(built)
        await self._repository.save(calendar, *built)
        log.info("Calendar %s: %d sessions", calendar, len(built.sessions))


def _outward(ranges: Iterable[tuple[int, int]], timeframe: Timeframe) -> Iterator[tuple[int, int]]:
    return ((timeframe.floor(start_ms), timeframe.ceil(end_ms)) for start_ms, end_ms in ranges)
