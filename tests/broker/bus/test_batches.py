"""Many fenced messages, stored together: all or none, in their order, each where its writer thinks it is."""

from __future__ import annotations

import asyncio

import pytest

from broker.bus import log
from broker.bus.errors import BusError, BusUnavailable, StoreRejected, WrongLastSequence
from broker.bus.log import BATCH_MOST, Fenced
from broker.bus.nats import Bus
from tests.broker.bus.conftest import DEADLINE, make_stream


async def publish(bus: Bus, batch: str, messages: list[Fenced]) -> int | BusError:
    answer: asyncio.Future[int | BusError] = asyncio.get_running_loop().create_future()
    log.store_batch(bus, batch, messages, answer.set_result)
    async with asyncio.timeout(DEADLINE):
        return await answer


async def everything(bus: Bus, stream: str) -> list[tuple[int, str, bytes]]:
    end = (await log.stream_info(bus, stream)).last_seq
    found = [await log.get(bus, stream, seq) for seq in range(1, end + 1)]
    return [(one.seq, one.subject, one.data) for one in found if one is not None]


async def test_all_are_stored_one_behind_the_other_whoever_else_writes(bus: Bus) -> None:
    """By the one sequence that is answered, every writer knows his own."""
    stream = await make_stream(bus, allow_atomic=True)
    assert (await log.stream_info(bus, stream)).batches
    ends = dict.fromkeys(range(50), 0)

    async def disturb() -> None:
        number = 0
        while True:
            number += 1
            await log.store(bus, f"{stream}.other", b"%d" % number, timeout=DEADLINE)

    disturbing = [asyncio.create_task(disturb()) for _ in range(3)]
    for batch in range(10):
        messages = [Fenced(f"{stream}.{key}", b"%d %d" % (key, batch), fence) for key, fence in ends.items()]
        newest = await publish(bus, f"b{batch}", messages)
        assert isinstance(newest, int)
        ends = {key: newest - len(ends) + 1 + key for key in ends}
    for task in disturbing:
        task.cancel()
    await asyncio.gather(*disturbing, return_exceptions=True)
    stored = await everything(bus, stream)
    assert sum(subject.endswith(".other") for _, subject, _ in stored) > 10
    of_all = {seq: (subject, data) for seq, subject, data in stored}
    for key, seq in ends.items():
        assert of_all[seq] == (f"{stream}.{key}", b"%d 9" % key)
        mine = [data for _, subject, data in stored if subject == f"{stream}.{key}"]
        assert mine == [b"%d %d" % (key, batch) for batch in range(10)]


async def test_one_fence_that_does_not_hold_stores_none(bus: Bus) -> None:
    stream = await make_stream(bus, allow_atomic=True)
    seq = await log.store(bus, f"{stream}.taken", b"other", timeout=DEADLINE)
    messages = [Fenced(f"{stream}.{name}", b"mine", 0) for name in ("one", "taken", "two")]
    assert isinstance(await publish(bus, "b1", messages), WrongLastSequence)
    assert await everything(bus, stream) == [(seq, f"{stream}.taken", b"other")]
    messages[1] = Fenced(f"{stream}.taken", b"mine", seq)
    assert await publish(bus, "b2", messages) == seq + 3


@pytest.mark.parametrize("count", [1, 2, BATCH_MOST])
async def test_as_many_as_may_be_and_one_alone(bus: Bus, count: int) -> None:
    stream = await make_stream(bus, allow_atomic=True)
    messages = [Fenced(f"{stream}.{number}", b"x", 0) for number in range(count)]
    assert await publish(bus, "b1", messages) == count
    assert (await log.stream_info(bus, stream)).messages == count


async def test_a_stream_that_does_not_allow_it_says_so_and_stores_none(bus: Bus) -> None:
    stream = await make_stream(bus)
    assert not (await log.stream_info(bus, stream)).batches
    messages = [Fenced(f"{stream}.{number}", b"x", 0) for number in range(3)]
    for when in (0.0, 10.0):
        bus.storing.failed(messages[-1].subject, when, "no answer")
    assert isinstance(await publish(bus, "b1", messages), StoreRejected)
    assert await everything(bus, stream) == []
    assert bus.storing.trouble(10.0) is not None, "it says nothing of what is stored"


async def test_a_stream_that_becomes_full_in_the_middle_stores_none(bus: Bus) -> None:
    stream = await make_stream(bus, allow_atomic=True, max_bytes=4096, discard="new")
    messages = [Fenced(f"{stream}.{number}", b"x" * 512, 0) for number in range(20)]
    assert isinstance(await publish(bus, "b1", messages), BusError)
    assert await everything(bus, stream) == []


async def test_who_is_not_connected_sends_nothing(bus: Bus) -> None:
    stream = await make_stream(bus, allow_atomic=True)
    await bus.close()
    with pytest.raises(BusUnavailable):
        log.store_batch(bus, "b1", [Fenced(f"{stream}.a", b"x", 0)], lambda answer: None)
