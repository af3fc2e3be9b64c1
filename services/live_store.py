"""What processes share of live series in the database: who wants and who follows each, and how far it is closed.

A series is followed by the one process that holds its claim, and whatever a follower writes is fenced: it counts only
while the claim is still its own. A process that was frozen, and comes back when its series were given to another,
changes nothing. Leases go by the database's clock.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from domain.bar import Bar
from domain.packed import runs_of
from domain.series import Series
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import HOUR_MS, Timeframe
from services.bar_store import BarStore, Written
from services.database import Connection, FencedError
from services.live import FeedState
from services.sql import load_queries

_CLAIM_TURN = 0x0CA_2D21
#: A process not heard of for so long is dead: others take what it followed.
LEASE_S = 5.0
#: How many minutes are written at once: those of all series close in the same second, and others need connections too.
_WRITERS = 5
#: Every so many signs of life, the processes that are dead for long are cleared away.
_FORGET_EVERY = 60


class Want(NamedTuple):
    """A series that clients of this process want.

    `line`: series of one line are followed by one process together, since their venue allows an account one connection.
    """

    series_id: int
    line: str | None


class FeedClaim(NamedTuple):
    """A series that this process is to follow.

    `settled_ms`: how far whoever followed it before had closed it; None: nobody ever did.
    """

    series_id: int
    series: Series
    fence: int
    settled_ms: int | None


class FeedRow(NamedTuple):
    """How a series stands.

    Attributes:
        settled_ms: every minute before is closed, from when it was first followed on; None: it never was.
        revision: the newest entry of its minutes in the revision log; 0: there is none.
        fence: of the last claim.
        owned: a process alive follows it.
    """

    series_id: int
    settled_ms: int | None
    revision: int
    fence: int
    state: FeedState
    detail: str | None
    owned: bool


class Tick(NamedTuple):
    """What a sign of life brought.

    Attributes:
        claims: series that this process follows from now on.
        kept: of those that it followed, the ones that are still its own.
        wanted: of those, the ones that some process alive still wants.
        feeds: how each series stands that it wants or followed.
    """

    claims: list[FeedClaim]
    kept: set[int]
    wanted: set[int]
    feeds: dict[int, FeedRow]


class Revision(NamedTuple):
    """An entry of the revision log: what a closed minute became."""

    id: int
    bar: Bar


class Settlement(NamedTuple):
    """What closing minutes wrote.

    Attributes:
        written: what changed in the store.
        revision: the series' revision after it.
        bars: all bars of the minutes, ascending: also those that another way of fetching had stored before.
    """

    written: Written
    revision: int
    bars: list[Bar]


class LiveStore:
    """The live series of the database, in the name of one owner: a process."""

    def __init__(self, store: BarStore, owner: str, *, lease_s: float = LEASE_S) -> None:
        """Take the store of bars, and how long the owner holds its claims without a sign of life."""
        self.store = store
        self.owner = owner
        self.lease_s = lease_s
        self._database = store.database
        self._sql = load_queries("live")
        self._series_sql = load_queries("series")
        self._ticks = 0
        self._writing = asyncio.Semaphore(_WRITERS)

    async def tick(self, wants: Sequence[Want], owned: Sequence[int]) -> Tick:
        """Sign of life: say what is wanted here (exactly that) and followed, keep that, and claim what is free."""
        works = set(owned)
        async with self._database.connection() as db:
            rows = await db.fetch(self._sql["tick"], self.owner, self.lease_s, *_columns(dict(wants), works))
        claims = await self._claim(owned) if any(_is_free(row) for row in rows) else []
        tick = Tick(
            claims,
            {row["series_id"] for row in rows if row["kept"]},
            {row["series_id"] for row in rows if row["wanted"]} & works,
            {row["series_id"]: _feed(row) for row in rows},
        )
        for claim in claims:
            _enter(tick.feeds, claim)
        await self._forget_dead()
        return tick

    async def begin(self, claim: FeedClaim, settled_ms: int) -> None:
        """Start afresh: the minutes from `settled_ms` on will be closed, and none before it was."""
        async with self._database.transaction() as db:
            await self._hold(db, claim)
            # Whoever writes bars right now does not know yet that they are to be logged.
            await db.fetchval(self._series_sql["lock"], claim.series_id)
            await db.execute(self._sql["begin"], claim.series_id, settled_ms)

    async def settle(
        self,
        claim: FeedClaim,
        *,
        start_ms: int,
        end_ms: int,
        bars: Sequence[Bar] = (),
        answered: RangeSet = RangeSet(),  # noqa: B008 - it is immutable
        asked_ms: int | None = None,
        unhealed: RangeSet = RangeSet(),  # noqa: B008
        why: str = "",
    ) -> Settlement:
        """Close the minutes of `[start_ms, end_ms)`: bars, coverage and frontier, all or nothing.

        Args:
            claim: under which it is done.
            start_ms: where the minutes closed before ended.
            end_ms: every minute before it is closed.
            bars: ascending.
            answered: the minutes that the venue accounted for.
            asked_ms: when it was asked for them; None: it told of them by itself.
            unhealed: minutes that could not be had; they are asked for in the background.
            why: they could not.

        Raises:
            FencedError: the claim is another's by now, or the frontier is elsewhere.
            DatabaseUnavailableError: nothing is known of how far it came.
        """
        async with self._writing, self._database.transaction() as db:
            frontier_ms = await self._hold(db, claim)
            if frontier_ms not in {start_ms, end_ms}:
                raise FencedError(f"the minutes of {claim.series} are not closed up to where these begin")
            # Where they are closed already, only the answer to this claim's own commit was lost.
            is_new = frontier_ms == start_ms
            written = await self._record(db, claim, bars, answered, asked_ms) if is_new else Written()
            if unhealed and is_new:
                await self.store.record_failure_in(db, claim.series_id, Timeframe.M1, unhealed, why)
                await self.store.wish_in(db, claim.series_id, unhealed, after_ms=HOUR_MS)
            row = await db.fetchrow(self._sql["advance"], claim.series_id, start_ms, end_ms)
        self.store.count(written)
        stands = list(bars)
        if row["bars"] != len(stands):
            stands = list(await self.store.read(claim.series_id, Timeframe.M1, TimeRange(start_ms, end_ms)))
        return Settlement(written, row["revision"], stands)

    async def correct(self, claim: FeedClaim, bars: Sequence[Bar]) -> bool:
        """Write minutes before the frontier that the venue changed or gave late. Whether anything changed.

        Raises:
            FencedError: the claim is another's by now, or the minutes are not closed.
        """
        async with self._writing, self._database.transaction() as db:
            settled_ms = await self._hold(db, claim)
            if bars and (settled_ms is None or bars[-1].ts >= settled_ms):
                raise FencedError(f"minutes of {claim.series} to be corrected are not closed")
            written = await self._record(db, claim, bars, runs_of(bars, Timeframe.M1), None)
        self.store.count(written)
        return written.written > 0

    async def say(self, claim: FeedClaim, state: FeedState, detail: str | None) -> None:
        """Say how the upstream fares. Raises `FencedError` where the claim is another's by now."""
        async with self._database.connection() as db:
            args = (claim.series_id, claim.fence, self.owner, state.value, detail)
            if not await db.fetchval(self._sql["say"], *args):
                raise _fenced(claim)

    async def release(self, series_ids: Sequence[int]) -> None:
        """Let others follow these at once; those that are another's by now stay so."""
        async with self._database.connection() as db:
            await db.execute(self._sql["release"], self.owner, list(series_ids))

    async def sign_off(self) -> None:
        """This process wants and follows nothing more: others take over at once."""
        async with self._database.transaction() as db:
            await db.execute(self._sql["release_all"], self.owner)
            await db.execute(self._sql["gone"], self.owner)

    async def revisions(self, series_id: int, after_id: int, limit: int = 1000) -> list[Revision]:
        """What closed minutes became since the entry `after_id` of the log, in the order it happened."""
        async with self._database.connection() as db:
            rows = await db.fetch(self._sql["revisions"], series_id, after_id, limit)
        return [Revision(row["id"], Bar(row["ts"], *row["new_bar"])) for row in rows]

    async def _claim(self, owned: Sequence[int]) -> list[FeedClaim]:
        async with self._database.transaction() as db:
            await db.fetchrow(self._sql["claim_turn"], _CLAIM_TURN)
            rows = await db.fetch(self._sql["claim"], self.owner, list(owned))
        return [FeedClaim(row[0], Series(*row[1:4]), row[4], row[5]) for row in rows]

    async def _forget_dead(self) -> None:
        self._ticks += 1
        if self._ticks % _FORGET_EVERY == 0:
            async with self._database.connection() as db:
                await db.execute(self._sql["forget_dead"])

    async def _hold(self, db: Connection, claim: FeedClaim) -> int | None:
        """Keep the series this claim's until the transaction ends; its frontier."""
        row = await db.fetchrow(self._sql["hold"], claim.series_id, claim.fence, self.owner)
        if row is None:
            raise _fenced(claim)
        settled_ms: int | None = row["settled"]
        return settled_ms

    async def _record(
        self, db: Connection, claim: FeedClaim, bars: Sequence[Bar], answered: RangeSet, asked_ms: int | None
    ) -> Written:
        # What the venue told by itself was not asked for; but where it told of no bar, a second look is due.
        told = asked_ms is None and len(bars) == sum(Timeframe.M1.buckets_between(*part) for part in answered)
        return await self.store.record_in(
            db,
            claim.series_id,
            Timeframe.M1,
            bars=bars,
            answered=answered,
            was_asked=not told,
            asked_ms=asked_ms,
        )


def _fenced(claim: FeedClaim) -> FencedError:
    return FencedError(f"{claim.series} is followed by another process, or was released")


def _columns(
    wants: dict[int, str | None], works: set[int]
) -> tuple[list[int], list[int], list[bool], list[bool], list[str]]:
    """What a process wants and works on, as the query takes it: the place of no line is 0."""
    ids = [*wants, *(works - wants.keys())]
    lines = sorted({line for line in wants.values() if line is not None})
    places: dict[str | None, int] = {None: 0, **{line: place for place, line in enumerate(lines, 1)}}
    return (
        ids,
        [places[wants.get(at)] for at in ids],
        [at in wants for at in ids],
        [at in works for at in ids],
        lines,
    )


def _is_free(row: Any) -> bool:
    return row["others_wish"] or (row["claimable"] and not row["kept"] and not row["others_have"])


def _feed(row: Any) -> FeedRow:
    return FeedRow(
        row["series_id"],
        row["settled"],
        row["revision"],
        row["fence"],
        FeedState(row["state"]),
        row["detail"],
        row["kept"] or row["others_have"],
    )


def _enter(feeds: dict[int, FeedRow], claim: FeedClaim) -> None:
    """Show a claim among the feeds, where its series is one of them."""
    row = feeds.get(claim.series_id)
    if row is not None:
        feeds[claim.series_id] = row._replace(
            settled_ms=claim.settled_ms, fence=claim.fence, state=FeedState.RECOVERING, detail=None, owned=True
        )
