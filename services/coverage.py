"""The coverage ledger: what is known about every bucket of a series, how it came to be known, and what is missing.

Stored are whole windows that were asked for, by state; verdicts are derived from them, the bars and the calendar.
An error never counts as an answer, and an empty answer is provisional until it was given again an hour later.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from domain.series import Verdict
from domain.time_range import NOWHERE, RangeSet, TimeRange
from domain.timeframe import DAY_MS, HOUR_MS, Timeframe
from services.database import Connection
from services.sql import load_queries, unpacked_ranges

#: An empty answer counts as "no trades" when it is given again at least this long after the first.
CONFIRM_AFTER_MS = HOUR_MS
#: When a second look at an empty answer fails, the next is so much later, doubled with each further failure.
RECHECK_PAUSE_MS = HOUR_MS
RECHECK_PAUSE_LIMIT_MS = DAY_MS
#: After a failure a range is left alone this long, doubled with each further failure up to the limit.
FAILURE_PAUSE_MS = 1_000
FAILURE_PAUSE_LIMIT_MS = 60_000


class Check(NamedTuple):
    """A stretch that was asked for: how often, when first answered (or first tried), and when last.

    `error` is that of the last ask, where it failed. From `recheck_ms` on, its buckets without a bar are to be asked
    for in the background; None: nothing in it is left to confirm, or nothing was answered. One with no attempts was
    not asked for yet, and is only to be.
    """

    range: TimeRange
    answered: bool
    attempts: int
    first_ms: int
    checked_ms: int
    error: str | None = None
    recheck_ms: int | None = None

    def rests_until_ms(self) -> int:
        """Before this time it is of no use to ask again."""
        if not self.attempts:
            return 0
        if self.answered:
            return max(self.first_ms, self.checked_ms) + CONFIRM_AFTER_MS
        pause = FAILURE_PAUSE_MS << min(self.attempts - 1, 16)
        return self.checked_ms + min(pause, FAILURE_PAUSE_LIMIT_MS)

    def is_confirmed_by(self, asked_ms: int) -> bool:
        """Whether an answer to a question put at this time confirms the emptiness that was answered before."""
        return self.answered and asked_ms - self.first_ms >= CONFIRM_AFTER_MS


class Knowledge(NamedTuple):
    """The ledger's entries of one series and timeframe, within a range."""

    answered: RangeSet = NOWHERE
    confirmed: RangeSet = NOWHERE
    not_listed: RangeSet = NOWHERE
    checks: Sequence[Check] = ()

    @property
    def size(self) -> int:
        """Stretches that it is made of."""
        return len(self.answered) + len(self.confirmed) + len(self.not_listed) + len(self.checks)

    def resting(self, now_ms: int) -> RangeSet:
        """What was asked for so recently that asking again is of no use yet."""
        return RangeSet(check.range for check in self.checks if check.rests_until_ms() > now_ms)


class Tile(NamedTuple):
    """A range with one verdict; `attempts` and `checked_ms` of the asks behind it, where there were any.

    `error`: what the last ask failed with, where the verdict is that it failed.
    """

    range: TimeRange
    verdict: Verdict
    attempts: int = 0
    checked_ms: int | None = None
    error: str | None = None


def settled(data: RangeSet, closed: RangeSet, knowledge: Knowledge) -> RangeSet:
    """Buckets whose verdict is final: a bar, or surely none."""
    return data | closed | knowledge.confirmed | knowledge.not_listed


def tile(wanted: RangeSet, *, data: RangeSet, closed: RangeSet, knowledge: Knowledge) -> list[Tile]:
    """Verdicts that tile `wanted`, ascending. A bar outranks the calendar, which outranks every answer."""
    checks = [check for check in knowledge.checks if check.attempts]
    failed = RangeSet(check.range for check in checks if not check.answered)
    layers = (
        (Verdict.DATA, data),
        (Verdict.CLOSED_SESSION, closed),
        (Verdict.NOT_LISTED, knowledge.not_listed),
        (Verdict.NO_TRADES, knowledge.confirmed),
        (Verdict.UNCONFIRMED_EMPTY, knowledge.answered),
        (Verdict.FETCH_FAILED, failed),
    )
    tiles: list[Tile] = []
    rest = wanted
    for verdict, layer in layers:
        tiles += (Tile(part, verdict) for part in rest & layer)
        rest -= layer
    tiles += (Tile(part, Verdict.NEVER_FETCHED) for part in rest)
    return list(_with_checks(sorted(tiles), checks))


def _with_checks(tiles: Iterable[Tile], checks: Sequence[Check]) -> Iterable[Tile]:
    """Split ascending tiles where the asks behind them differ."""
    first = 0
    for whole in tiles:
        start, end = whole.range
        while first < len(checks) and checks[first].range.end_ms <= start:
            first += 1
        at = first
        while at < len(checks) and checks[at].range.start_ms < end:
            check = checks[at]
            if check.range.start_ms > start:
                yield whole._replace(range=TimeRange(start, check.range.start_ms))
                start = check.range.start_ms
            stop = min(end, check.range.end_ms)
            if start < stop:
                error = check.error if whole.verdict is Verdict.FETCH_FAILED else None
                yield Tile(TimeRange(start, stop), whole.verdict, check.attempts, check.checked_ms, error)
            start, at = max(start, stop), at + 1
        if start < end:
            yield whole._replace(range=TimeRange(start, end))


class AskOutcome(NamedTuple):
    """How one more ask went.

    `asked_ms`: when the question was put, `now_ms`: when that was written down. `proven`: nothing is left to confirm,
    since the provider vouches for it or every bucket has a bar.
    """

    answered: bool
    now_ms: int
    asked_ms: int
    error: str | None = None
    proven: bool = False


def with_ask(checks: Iterable[Check], asked: RangeSet, outcome: AskOutcome) -> list[Check]:
    """The asks after `asked` was asked for once more: disjoint, ascending, neighbours of one kind joined."""
    out: list[Check] = []
    fresh = asked
    for check in checks:
        own = RangeSet((check.range,))
        out += (check._replace(range=part) for part in own - asked)
        again = _asked_again(check, outcome)
        out += (again._replace(range=part) for part in own & asked)
        fresh -= own
    answered, now_ms = outcome.answered, outcome.now_ms
    due_ms = now_ms + CONFIRM_AFTER_MS if answered and not outcome.proven else None
    out += (Check(part, answered, 1, now_ms, now_ms, outcome.error, due_ms) for part in fresh)
    return _joined(sorted(out))


def with_recheck(checks: Iterable[Check], ranges: RangeSet, *, due_by_ms: int, recheck_ms: int | None) -> list[Check]:
    """The asks after those in `ranges` whose second look is due got another time for it; None: none is needed."""
    out: list[Check] = []
    for check in checks:
        if check.recheck_ms is None or check.recheck_ms > due_by_ms:
            out.append(check)
            continue
        own = RangeSet((check.range,))
        out += (check._replace(range=part) for part in own - ranges)
        out += (check._replace(range=part, recheck_ms=recheck_ms) for part in own & ranges)
    return _joined(sorted(out))


def with_wish(checks: Iterable[Check], ranges: RangeSet, now_ms: int, *, due_ms: int) -> list[Check]:
    """The asks, and marks on what of `ranges` was never answered that it is to be asked for in the background."""
    out: list[Check] = []
    fresh = ranges
    for check in checks:
        own = RangeSet((check.range,))
        fresh -= own
        if check.answered or check.recheck_ms is not None:
            out.append(check)
            continue
        out += (check._replace(range=part) for part in own - ranges)
        out += (check._replace(range=part, recheck_ms=now_ms + RECHECK_PAUSE_MS) for part in own & ranges)
    out += (Check(part, False, 0, now_ms, now_ms, None, due_ms) for part in fresh)
    return _joined(sorted(out))


def _asked_again(check: Check, outcome: AskOutcome) -> Check:
    first_answer = outcome.answered and not check.answered
    first_ms = outcome.now_ms if first_answer or not check.attempts else check.first_ms
    return check._replace(
        answered=check.answered or outcome.answered,
        attempts=check.attempts + 1,
        first_ms=first_ms,
        checked_ms=outcome.now_ms,
        error=outcome.error,
        recheck_ms=_recheck_after(check, outcome, first_ms),
    )


def _recheck_after(check: Check, outcome: AskOutcome, first_ms: int) -> int | None:
    if check.recheck_ms is None and (check.answered or not outcome.answered):
        return None
    if outcome.answered:
        sure = outcome.proven or check.is_confirmed_by(outcome.asked_ms)
        return None if sure else first_ms + CONFIRM_AFTER_MS
    pause = RECHECK_PAUSE_MS
    if check.error is not None and check.recheck_ms is not None:
        pause = min(max(pause, 2 * (check.recheck_ms - check.checked_ms)), RECHECK_PAUSE_LIMIT_MS)
    return outcome.now_ms + pause


def _joined(checks: Iterable[Check]) -> list[Check]:
    """Join touching asks that differ only in minutes; the later times stand, so that nothing is confirmed early."""
    out: list[Check] = []
    for check in checks:
        if out and _alike(out[-1], check):
            last = out.pop()
            check = check._replace(  # noqa: PLW2901 - the joined one takes its place
                range=TimeRange(last.range.start_ms, check.range.end_ms),
                first_ms=max(last.first_ms, check.first_ms),
                checked_ms=max(last.checked_ms, check.checked_ms),
                recheck_ms=_later(last.recheck_ms, check.recheck_ms),
            )
        out.append(check)
    return out


def _alike(a: Check, b: Check) -> bool:
    return (
        a.range.end_ms == b.range.start_ms
        and (a.answered, a.attempts, a.error) == (b.answered, b.attempts, b.error)
        and a.first_ms // HOUR_MS == b.first_ms // HOUR_MS
        and a.checked_ms // HOUR_MS == b.checked_ms // HOUR_MS
        and _hour(a.recheck_ms) == _hour(b.recheck_ms)
    )


def _hour(ts_ms: int | None) -> int | None:
    return None if ts_ms is None else ts_ms // HOUR_MS


def _later(a_ms: int | None, b_ms: int | None) -> int | None:
    return b_ms if a_ms is None or b_ms is None else max(a_ms, b_ms)


class CoverageLedger:
    """Reads and writes the ledger on a connection; writers hold the series' row lock."""

    def __init__(self) -> None:
        """Read the queries; do no I/O on the database."""
        self._sql = load_queries("coverage")

    async def read(self, db: Connection, series_id: int, timeframe: Timeframe, wanted: TimeRange) -> Knowledge:
        """What the ledger holds within `wanted`."""
        found = await self.states(db, series_id, timeframe, wanted)
        checks = await self._checks(db, series_id, timeframe, wanted) if wanted.length_ms > 0 else []
        return found._replace(checks=checks)

    async def states(self, db: Connection, series_id: int, timeframe: Timeframe, wanted: TimeRange) -> Knowledge:
        """As `read`, without the asks behind it."""
        rows = await db.fetch(self._sql["read"], series_id, timeframe.value, *wanted)
        states: dict[str, RangeSet] = {}
        for row in rows:
            states[row["state"]] = states.get(row["state"], NOWHERE) | unpacked_ranges(row["ranges"])
        answered, confirmed, not_listed = (states.get(one, NOWHERE) for one in ("answered", "confirmed", "not_listed"))
        return Knowledge(answered, confirmed, not_listed)

    async def answered(
        self,
        db: Connection,
        series_id: int,
        timeframe: Timeframe,
        asked: RangeSet,
        *,
        now_ms: int,
        vouched: bool = False,
        was_asked: bool = True,
        asked_ms: int | None = None,
        complete: bool = False,
    ) -> None:
        """Record that a provider accounted for `asked`.

        `vouched`: its silence about a bucket is proof. `was_asked=False`: the bars came from a file; no ask is counted.
        `asked_ms`: when the question was put, where that was not just now. A first answer counts as given now, a second
        as given when it was asked for, so that the hour between them is a whole one. `complete`: every bucket of
        `asked` has a bar.
        """
        if not asked:
            return
        await self._add(db, series_id, timeframe, "answered", asked)
        confirmed = asked if vouched else RangeSet()
        if was_asked:
            outcome = AskOutcome(
                True, now_ms, now_ms if asked_ms is None else min(asked_ms, now_ms), proven=vouched or complete
            )
            old = await self._ask(db, series_id, timeframe, asked, outcome)
            confirmed |= asked & RangeSet(check.range for check in old if check.is_confirmed_by(outcome.asked_ms))
        if confirmed:
            await self._add(db, series_id, timeframe, "confirmed", confirmed)

    async def failed(
        self, db: Connection, series_id: int, timeframe: Timeframe, asked: RangeSet, *, now_ms: int, error: str
    ) -> None:
        """Record that asking for `asked` failed. Nothing becomes known by it."""
        if asked:
            await self._ask(db, series_id, timeframe, asked, AskOutcome(False, now_ms, now_ms, error))

    async def put_off(
        self,
        db: Connection,
        series_id: int,
        timeframe: Timeframe,
        ranges: RangeSet,
        *,
        due_by_ms: int,
        recheck_ms: int | None,
    ) -> None:
        """Give what is due for a second look by `due_by_ms` another time for it; None: none is needed any more."""
        span = ranges.span
        if span is not None:
            old = await self._checks(db, series_id, timeframe, span)
            new = with_recheck(old, ranges, due_by_ms=due_by_ms, recheck_ms=recheck_ms)
            await self._replace(db, series_id, timeframe, old, new)

    async def wish(
        self,
        db: Connection,
        series_id: int,
        timeframe: Timeframe,
        ranges: RangeSet,
        *,
        now_ms: int,
        due_ms: int | None = None,
    ) -> None:
        """Have what of `ranges` was never answered asked for in the background, from `due_ms` (now) on."""
        span = ranges.span
        if span is not None:
            old = await self._checks(db, series_id, timeframe, span)
            due_ms = now_ms if due_ms is None else due_ms
            await self._replace(db, series_id, timeframe, old, with_wish(old, ranges, now_ms, due_ms=due_ms))

    async def not_listed(self, db: Connection, series_id: int, timeframe: Timeframe, ranges: RangeSet) -> None:
        """Record that the symbol did not trade yet."""
        if ranges:
            await self._add(db, series_id, timeframe, "not_listed", ranges)

    async def touches_known(self, db: Connection, series_id: int, span: TimeRange) -> bool:
        """Whether anything in `span` was answered before, in any timeframe."""
        return bool(await db.fetchval(self._sql["touches_known"], series_id, *span))

    async def _add(self, db: Connection, series_id: int, timeframe: Timeframe, state: str, ranges: RangeSet) -> None:
        # As two columns: the driver takes a pair for a range that includes its end.
        starts, ends = [r.start_ms for r in ranges], [r.end_ms for r in ranges]
        await db.execute(self._sql["add"], series_id, timeframe.value, state, starts, ends)

    async def _checks(self, db: Connection, series_id: int, timeframe: Timeframe, touching: TimeRange) -> list[Check]:
        rows = await db.fetch(self._sql["read_checks"], series_id, timeframe.value, *touching)
        return [_check(row) for row in rows]

    async def _ask(
        self, db: Connection, series_id: int, timeframe: Timeframe, asked: RangeSet, outcome: AskOutcome
    ) -> list[Check]:
        """Count one more ask; return the asks that stood there before."""
        span = asked.span
        assert span is not None
        old = await self._checks(db, series_id, timeframe, span)
        await self._replace(db, series_id, timeframe, old, with_ask(old, asked, outcome))
        return old

    async def _replace(
        self, db: Connection, series_id: int, timeframe: Timeframe, old: Sequence[Check], new: Sequence[Check]
    ) -> None:
        gone = [check.range.start_ms for check in old]
        if gone:
            await db.execute(self._sql["drop_checks"], series_id, timeframe.value, gone)
        rows = ((*c.range, *c[1:]) for c in new)
        columns = [list(column) for column in zip(*rows, strict=True)]
        if columns:
            await db.execute(self._sql["put_checks"], series_id, timeframe.value, *columns)


def _check(row: Any) -> Check:
    return Check(
        TimeRange(row["starts"], row["ends"]),
        row["answered"],
        row["attempts"],
        row["first_checked_at"],
        row["checked_at"],
        row["error"],
        row["recheck_at"],
    )
