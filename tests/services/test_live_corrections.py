"""Minutes that are altered while bars are being read: what clients have in the end is what the store holds."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from domain.bar import Bar, fold
from domain.errors import CandleryError
from domain.series import Series
from domain.time_range import TimeRange
from domain.timeframe import MINUTE_MS, Timeframe
from services import live_timeframe
from services.live import FeedState, Forming, Settled
from services.live_channel import LiveChannel
from services.live_reader import Part
from services.live_store import FeedRow, Revision
from services.live_timeframe import FoldedFeed
from tests.support.clock import ManualClock
from tests.support.live_client import LiveClient
from tests.support.market import START_MS

M5 = Timeframe.M5
SERIES = Series("test", "scripted", "A/B")
PATIENCE_S = 10.0


class SlowReader:
    """Reads at once, and hands over what it has read when it is let."""

    def __init__(self, minutes: Sequence[Bar]) -> None:
        self.store = {bar.ts: bar for bar in minutes}
        #: Reads that were begun and not handed over.
        self.waiting: list[asyncio.Future[None]] = []
        self.failures = 0

    async def part(self, timeframe: Timeframe, wanted: TimeRange) -> Part:
        if self.failures:
            self.failures -= 1
            raise CandleryError("the store is out of reach")
        return Part(fold(await self._read(wanted), timeframe), [], wanted.end_ms)

    async def partial(self, timeframe: Timeframe, wanted: TimeRange) -> tuple[Bar | None, bool]:
        found = fold(await self._read(wanted), timeframe)
        return (found[-1] if found else None), True

    async def _read(self, wanted: TimeRange) -> list[Bar]:
        found = [self.store[ts] for ts in sorted(self.store) if wanted.start_ms <= ts < wanted.end_ms]
        gate = asyncio.get_running_loop().create_future()
        self.waiting.append(gate)
        await gate
        return found

    async def asked(self, count: int = 1) -> None:
        """Wait until so many reads wait."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.waiting) < count:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.001)

    async def hand_over(self, nth: int = 0) -> None:
        await self.asked(nth + 1)
        self.waiting.pop(nth).set_result(None)
        for _ in range(3):
            await asyncio.sleep(0)


def minute(n: int, volume: float = 1.0) -> Bar:
    return Bar(START_MS + n * MINUTE_MS, 10, 10, 10, 10, volume)


def closed_volumes(client: LiveClient) -> list[float]:
    return [bar.volume for bar in client.closed]


@pytest.fixture
def reader() -> SlowReader:
    return SlowReader([minute(n) for n in range(5)])


@pytest.fixture
async def feed(reader: SlowReader) -> AsyncIterator[FoldedFeed]:
    feed = FoldedFeed(M5, reader, START_MS + 2 * MINUTE_MS)  # type: ignore[arg-type]
    yield feed
    feed.close()


@pytest.fixture
def client(feed: FoldedFeed) -> LiveClient:
    client = LiveClient()
    client.is_live = True
    feed.attach(client, client, closed_only=True)
    client.faults.clear()
    return client


def settle(feed: FoldedFeed, first: int, end: int, *bars: Bar, follows: bool = True) -> None:
    feed.settled(Settled(1, 1, START_MS + first * MINUTE_MS, START_MS + end * MINUTE_MS, bars), follows=follows)


async def test_a_minute_altered_while_the_present_bucket_is_read_is_in_the_bar_that_closes(
    feed: FoldedFeed, reader: SlowReader, client: LiveClient
):
    await reader.asked()
    reader.store[minute(1).ts] = minute(1, volume=100)
    feed.revised([minute(1, volume=100)])
    await reader.hand_over()
    await reader.hand_over()
    settle(feed, 2, 5, minute(2), minute(3), minute(4))
    assert closed_volumes(client) == [104]
    assert client.corrected == []


async def test_a_minute_altered_while_a_missed_bucket_is_read_is_in_the_bar_that_is_told(
    feed: FoldedFeed, reader: SlowReader, client: LiveClient
):
    await reader.hand_over()
    settle(feed, 3, 6, follows=False)
    await reader.asked()
    reader.store[minute(4).ts] = minute(4, volume=100)
    feed.revised([minute(4, volume=100)])
    await reader.hand_over()
    assert client.closed == []
    await reader.hand_over()
    assert closed_volumes(client) == [104]


async def test_a_minute_altered_while_missed_minutes_are_read_is_told_as_it_is_then(reader: SlowReader):
    feed, client = FoldedFeed(Timeframe.M1, reader, START_MS + 2 * MINUTE_MS), LiveClient()  # type: ignore[arg-type]
    client.is_live = True
    feed.attach(client, client, closed_only=True)
    settle(feed, 3, 5, follows=False)
    await reader.asked()
    reader.store[minute(3).ts] = minute(3, volume=100)
    feed.revised([minute(3, volume=100)])
    await reader.hand_over()
    assert client.closed == []
    await reader.hand_over()
    assert closed_volumes(client) == [1, 100, 1]
    assert client.corrected == []
    feed.close()


async def test_of_two_corrections_of_one_bar_the_last_one_told_is_the_last_one_made(
    feed: FoldedFeed, reader: SlowReader, client: LiveClient
):
    await reader.hand_over()
    settle(feed, 2, 5, minute(2), minute(3), minute(4))
    reader.store[minute(1).ts] = minute(1, volume=50)
    feed.revised([minute(1, volume=50)])
    await reader.asked()
    reader.store[minute(1).ts] = minute(1, volume=100)
    feed.revised([minute(1, volume=100)])
    await reader.hand_over()
    await reader.hand_over()
    assert [bar.volume for bar in client.corrected] == [104]
    assert reader.waiting == []


async def test_a_correction_that_cannot_be_read_is_told_when_it_can(
    feed: FoldedFeed, reader: SlowReader, client: LiveClient, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(live_timeframe, "RETRY_S", 0.01)
    await reader.hand_over()
    settle(feed, 2, 5, minute(2), minute(3), minute(4))
    reader.store[minute(1).ts] = minute(1, volume=100)
    reader.failures = 2
    feed.revised([minute(1, volume=100)])
    await reader.hand_over()
    assert [bar.volume for bar in client.corrected] == [104]


async def test_who_comes_after_the_minute_last_moved_is_shown_what_forms(feed: FoldedFeed, reader: SlowReader):
    feed.forming(Forming(1, 1, minute(2, volume=7)))
    await reader.hand_over()
    client, other = LiveClient(), LiveClient()
    for one in (client, other):
        feed.attach(one, one, closed_only=False)
        assert [bar.volume for bar in one.forming] == [9]
    quiet = LiveClient()
    feed.attach(quiet, quiet, closed_only=True)
    assert quiet.forming == []


async def test_who_waits_for_the_present_bucket_is_shown_what_forms_when_it_is_read(
    feed: FoldedFeed, reader: SlowReader
):
    client = LiveClient()
    feed.attach(client, client, closed_only=False)
    feed.forming(Forming(1, 1, minute(2, volume=7)))
    assert client.forming == []
    await reader.hand_over()
    assert [bar.volume for bar in client.forming] == [9]


async def test_a_minute_that_is_closed_by_now_is_not_shown_as_forming(feed: FoldedFeed, reader: SlowReader):
    feed.forming(Forming(1, 1, minute(2, volume=7)))
    await reader.hand_over()
    settle(feed, 2, 3, minute(2))
    client = LiveClient()
    feed.attach(client, client, closed_only=False)
    assert client.forming == []


async def test_a_minute_that_formed_before_anybody_was_ready_is_shown_to_the_first_client() -> None:
    channel = LiveChannel(1, SERIES, None, reader=SlowReader([]), revisions=no_revisions, clock=ManualClock(START_MS))  # type: ignore[arg-type]
    channel.hear(Forming(1, 3, minute(2, volume=7)))
    channel.learn(FeedRow(1, minute(2).ts, 0, 3, FeedState.UP, None, owned=True))
    client = LiveClient()
    channel.feed(Timeframe.M1).attach(client, client, closed_only=False)
    assert client.forming == [minute(2, volume=7)]
    channel.close()


async def test_what_a_follower_said_that_is_none_any_more_is_not_shown() -> None:
    channel = LiveChannel(1, SERIES, None, reader=SlowReader([]), revisions=no_revisions, clock=ManualClock(START_MS))  # type: ignore[arg-type]
    channel.hear(Forming(1, 3, minute(2, volume=7)))
    channel.learn(FeedRow(1, minute(2).ts, 0, 4, FeedState.UP, None, owned=True))
    client = LiveClient()
    channel.feed(Timeframe.M1).attach(client, client, closed_only=False)
    assert client.forming == []
    channel.close()


async def no_revisions(series_id: int, after_id: int) -> list[Revision]:
    return []
