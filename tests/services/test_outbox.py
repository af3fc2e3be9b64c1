"""What waits for a client: bounded, in order, forming bars only as the newest."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.bar import Bar
from services.live import BarEvent, BarState, CaughtUpEvent, LiveEvent
from services.outbox import Mailbox, Outbox
from services.token_bucket import TokenBucket


def bar(ts: int, state: BarState, value: float = 1.0) -> BarEvent:
    event = BarEvent(Bar(ts, value, value, value, value, value), state)
    event.wire = f"{state.value} {ts} {value}"
    return event


def forming(ts: int, value: float = 1.0) -> BarEvent:
    return bar(ts, BarState.FORMING, value)


def closed(ts: int) -> BarEvent:
    return bar(ts, BarState.CLOSED)


def words(text: str) -> LiveEvent:
    event = CaughtUpEvent()
    event.wire = text
    return event


def an_outbox(*, items: int = 1000, size: int = 1 << 20, low: int = 100) -> Outbox:
    return Outbox(max_items=items, max_bytes=size, low_bytes=low)


def all_of(outbox: Outbox) -> list[str]:
    taken = []
    while outbox:
        taken += [box.prefix + (event.wire or "") for box, event in outbox.take(50)]
    return taken


def test_what_is_put_in_comes_out_in_order():
    outbox, one, other = an_outbox(), Mailbox("1:"), Mailbox("2:")
    for box, event in [(one, closed(0)), (other, closed(0)), (one, words("x")), (one, closed(1))]:
        assert outbox.put(box, event)
    assert all_of(outbox) == ["1:closed 0 1.0", "2:closed 0 1.0", "1:x", "1:closed 1 1.0"]
    assert (outbox.items, outbox.bytes, outbox.conflated) == (0, 0, 0)


def test_only_the_newest_forming_bar_of_each_subscription_waits():
    outbox, one, other = an_outbox(), Mailbox("1:"), Mailbox("2:")
    for value in (1.0, 2.0, 3.0):
        outbox.put(one, forming(0, value))
        outbox.put(other, forming(0, value + 10))
    assert outbox.items == 2
    assert all_of(outbox) == ["1:forming 0 3.0", "2:forming 0 13.0"]
    assert outbox.conflated == 4


def test_a_closed_bar_overtakes_the_forming_one_of_its_bucket_and_of_those_before():
    outbox, box = an_outbox(), Mailbox("")
    for event in (forming(0), closed(0), forming(1), closed(5), forming(6)):
        outbox.put(box, event)
    assert all_of(outbox) == ["closed 0 1.0", "closed 5 1.0", "forming 6 1.0"]
    assert outbox.conflated == 2


def test_a_forming_bar_of_a_later_bucket_stays():
    outbox, box = an_outbox(), Mailbox("")
    for event in (forming(1), closed(0)):
        outbox.put(box, event)
    assert all_of(outbox) == ["forming 1 1.0", "closed 0 1.0"]


def test_a_correction_overtakes_nothing():
    outbox, box = an_outbox(), Mailbox("")
    for event in (forming(5), bar(2, BarState.CORRECTED), forming(5, 2.0)):
        outbox.put(box, event)
    assert all_of(outbox) == ["forming 5 2.0", "corrected 2 1.0"]


def test_more_items_than_the_bound_are_refused():
    outbox, box = an_outbox(items=3), Mailbox("")
    assert [outbox.put(box, closed(ts)) for ts in range(4)] == [True, True, True, False]


def test_more_bytes_than_the_bound_are_refused():
    outbox, box = an_outbox(size=100), Mailbox("12345")
    assert outbox.put(box, words("x" * 95))
    assert not outbox.put(box, words(""))


def test_forming_bars_are_never_too_much():
    outbox, box = an_outbox(items=1), Mailbox("")
    outbox.put(box, closed(0))
    assert all(outbox.put(box, forming(1, value)) for value in range(100))


def test_what_waits_for_a_closed_subscription_is_left_out():
    outbox, one, other = an_outbox(), Mailbox("1:"), Mailbox("2:")
    for event in (closed(0), forming(1)):
        outbox.put(one, event)
        outbox.put(other, event)
    one.closed = True
    outbox.put(one, closed(1))
    assert all_of(outbox) == ["2:closed 0 1.0", "2:forming 1 1.0"]
    assert (outbox.items, outbox.bytes) == (0, 0)


def test_once_shut_it_is_empty_and_takes_nothing():
    outbox, box = an_outbox(items=1), Mailbox("")
    outbox.put(box, closed(0))
    outbox.shut()
    assert outbox.put(box, closed(1))
    assert outbox.put(box, closed(2))
    assert (all_of(outbox), outbox.bytes) == ([], 0)


def test_a_batch_is_as_large_as_was_asked_for_and_has_one_event_at_least():
    outbox, box = an_outbox(), Mailbox("")
    for _ in range(5):
        outbox.put(box, words("x" * 40))
    assert [len(outbox.take(1)), len(outbox.take(80)), len(outbox.take(81))] == [1, 2, 2]


async def test_there_is_room_when_little_waits():
    outbox, box = an_outbox(low=100), Mailbox("")
    outbox.put(box, words("x" * 100))
    await asyncio.wait_for(outbox.room(), 1)
    outbox.put(box, words("y"))
    waiting = [asyncio.create_task(outbox.room()) for _ in range(2)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    waiting.pop().cancel()
    outbox.take(1)
    await asyncio.wait_for(waiting[0], 1)


async def test_who_waits_for_room_is_let_go_when_it_is_shut():
    outbox, box = an_outbox(low=0), Mailbox("")
    outbox.put(box, words("x"))
    waiting = asyncio.create_task(outbox.room())
    await asyncio.sleep(0)
    outbox.shut()
    await asyncio.wait_for(waiting, 1)


STEPS = st.lists(st.tuples(st.sampled_from(["forming", "close", "correct", "take"]), st.integers(0, 1)), max_size=60)


@settings(max_examples=200, deadline=None)
@given(steps=STEPS)
def test_whatever_happens_closed_bars_come_once_in_order_and_no_forming_one_after_its_own(steps: list[tuple[str, int]]):
    outbox, boxes = an_outbox(), (Mailbox("a "), Mailbox("b "))
    at, said, heard = [0, 0], ([], []), ([], [])  # type: ignore[var-annotated]
    latest: list[str | None] = [None, None]
    for number, (step, which) in enumerate(steps):
        if step == "take":
            for box, event in outbox.take(30):
                heard[boxes.index(box)].append(event)
            continue
        kind = {"forming": BarState.FORMING, "close": BarState.CLOSED, "correct": BarState.CORRECTED}[step]
        event = bar(at[which] - (step == "correct"), kind, float(number))
        at[which] += step == "close"
        outbox.put(boxes[which], event)
        if step == "forming":
            latest[which] = event.wire
        else:
            said[which].append(event)
            latest[which] = None if step == "close" else latest[which]
    for box, event in outbox.take(1 << 20):
        heard[boxes.index(box)].append(event)
    for which in (0, 1):
        assert [event for event in heard[which] if event.state is not BarState.FORMING] == said[which]
        over = -1
        for event in heard[which]:
            if event.state is BarState.CLOSED:
                over = event.bar.ts
            elif event.state is BarState.FORMING:
                assert event.bar.ts > over
        # The newest forming bar is known in the end.
        told = [event.wire for event in heard[which] if event.state is BarState.FORMING]
        assert latest[which] is None or told[-1] == latest[which]
    assert (outbox.items, outbox.bytes, bool(outbox)) == (0, 0, False)


def test_a_bucket_of_tokens_is_emptied_and_filled_again():
    now = [0.0]
    bucket = TokenBucket(2, 3, lambda: now[0])
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    now[0] = 0.5
    assert [bucket.take(), bucket.take()] == [True, False]
    now[0] = 1000
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]


@pytest.mark.parametrize("count", [1, 10])
def test_an_event_is_counted_by_the_length_of_the_whole_message(count: int):
    outbox, box = an_outbox(), Mailbox("abc")
    for _ in range(count):
        outbox.put(box, words("defg"))
    assert (outbox.items, outbox.bytes) == (count, 7 * count)
