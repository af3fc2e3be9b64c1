import asyncio

from services.turns import Turns


async def test_one_at_a_time_for_a_key_and_others_do_not_wait() -> None:
    turns = Turns()
    inside: list[str] = []
    release = asyncio.Event()

    async def enter(key: str, name: str) -> None:
        async with turns.of(key):
            inside.append(name)
            await release.wait()

    tasks = [asyncio.create_task(enter(*who)) for who in (("a", "first"), ("a", "second"), ("b", "other"))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert inside == ["first", "other"]
    release.set()
    await asyncio.gather(*tasks)
    assert inside == ["first", "other", "second"]
    assert not turns._locks


async def test_one_that_gives_up_waiting_leaves_the_turn_to_the_next() -> None:
    turns = Turns()
    async with turns.of("a"):
        waiting = asyncio.create_task(turns.of("a").__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
    async with asyncio.timeout(1), turns.of("a"):
        pass
    assert not turns._locks


async def test_past_his_patience_one_goes_on_and_leaves_the_turn_to_its_holder() -> None:
    turns, order = Turns(), []
    async with turns.of("key"):
        async with turns.of("key", patience_s=0.01):
            order.append("impatient")
        third = asyncio.create_task(_takes(turns, order))
        await asyncio.sleep(0.01)
        order.append("holder")
    await asyncio.wait_for(third, 5)
    assert order == ["impatient", "holder", "third"]


async def _takes(turns: Turns, order: list[str]) -> None:
    async with turns.of("key", patience_s=5):
        order.append("third")
