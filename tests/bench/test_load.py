"""The load generators ask for each target, connect again where they are told to, and say what is wrong with answers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from bench import wrk
from bench.load import Load, Plan, load

#: Ours, and wrk where it is installed.
GENERATORS = [load, wrk.load] if wrk.found() else [load]
each_generator = pytest.mark.parametrize("generator", GENERATORS, ids=lambda generator: generator.__module__)

Answer = Callable[[bytes, int], bytes]
Generator = Callable[[Plan], Awaitable[Load]]


def good(target: bytes, number: int) -> bytes:
    body = b'{"of":"%s"}' % target
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[tuple[tuple[str, int], list[bytes]]]:
    """A server that answers the n-th request of a connection as told, in pieces; its address and all targets."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = 0
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                asked.append(head.split()[1])
                said = answer(asked[-1], number)
                number += 1
                for at in range(0, len(said), 25):
                    writer.write(said[at : at + 25])
                    await writer.drain()
                    await asyncio.sleep(0)
                if b"connection: close" in said:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[:2], asked
    finally:
        server.close()


async def loaded(
    tmp_path: Path,
    answer: Answer,
    generator: Generator = load,
    *,
    again: bool = True,
    least: int = 1,
) -> tuple[Load, list[bytes]]:
    path = tmp_path / "targets"
    path.write_text("\n".join(f"/{number}" for number in range(50)))
    async with serving(answer) as (address, asked):
        plan = Plan(address, str(path), least, 100, again, seconds=0.3, warm_up_s=0.1, connections=4)
        async with asyncio.timeout(30):
            return await generator(plan), asked


@each_generator
async def test_every_target_is_asked_for_and_some_answers_are_kept_whole(tmp_path: Path, generator: Generator):
    done, asked = await loaded(tmp_path, good, generator)
    assert done.faults == []
    assert done.answers > 0
    assert done.rate == done.answers / done.seconds
    assert 0 < done.p50_ms <= done.p99_ms
    assert set(asked) == {b"/%d" % number for number in range(50)}
    assert done.kept
    assert [body for _, body in done.kept] == [f'{{"of":"{target}"}}' for target, _ in done.kept]


async def test_targets_are_asked_for_in_their_order(tmp_path: Path):
    _, asked = await loaded(tmp_path, good)
    assert asked[:4] == [b"/0", b"/1", b"/2", b"/3"]


async def test_no_target_is_asked_for_twice_unless_that_is_wanted(tmp_path: Path):
    _, asked = await loaded(tmp_path, good, again=False)
    assert sorted(asked) == sorted(b"/%d" % number for number in range(50))


@each_generator
async def test_to_be_short_of_targets_is_a_fault(tmp_path: Path, generator: Generator):
    done, _ = await loaded(tmp_path, good, generator, again=False)
    assert done.faults[:1] == ["there were not enough targets"]


async def test_a_connection_that_the_server_closes_after_an_answer_is_made_again(tmp_path: Path):
    def closing(target: bytes, number: int) -> bytes:
        said = good(target, number)
        return said.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1) if number == 2 else said

    done, asked = await loaded(tmp_path, closing)
    assert done.faults == []
    assert len(asked) > 4 * 3


async def test_an_answer_of_another_status_is_a_fault(tmp_path: Path):
    def failing(target: bytes, number: int) -> bytes:
        return b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno"

    done, _ = await loaded(tmp_path, failing)
    assert "was answered with b'HTTP/1.1 503 No" in done.faults[0]


@each_generator
async def test_an_answer_of_another_length_is_a_fault(tmp_path: Path, generator: Generator):
    done, _ = await loaded(tmp_path, good, generator, least=90)
    assert "bytes" in done.faults[0]


@pytest.mark.parametrize("kind", ["connect", "read", "write", "status", "timeout"])
def test_whatever_wrk_counts_as_a_fault_is_one(kind: str):
    plan = Plan(("127.0.0.1", 1), "targets", 10, 20, again=True, seconds=1.0)
    counts = dict.fromkeys(("connect", "read", "write", "status", "timeout"), 0)
    told = wrk.Told(10, 1_500, 1.0, 1.0, 2.0, exhausted=False, errors=counts)
    assert wrk.faults(plan, told) == []
    assert wrk.faults(plan, replace(told, errors=counts | {kind: 3})) == [f"wrk counted 3 faults of {kind}"]
    assert wrk.faults(plan, replace(told, answers=0)) == ["nothing was answered"]


async def test_a_connection_that_is_lost_without_a_word_is_a_fault(tmp_path: Path):
    def cutting(target: bytes, number: int) -> bytes:
        # Its length is not told, so that it is no answer; the server goes all the same.
        return b"HTTP/1.1 200 OK\r\nconnection: close"

    done, _ = await loaded(tmp_path, cutting)
    assert done.faults[0].startswith("a connection was lost")
