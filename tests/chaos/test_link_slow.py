"""A link that says nothing, says it later or says it slowly: nothing is lost, and nobody is told."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compose.chaos.pair import HIGH_WATER, SLICE, Bucket
from tests.chaos.place import Loop, eventually, place, play

# -- silence -----------------------------------------------------------------------------------------------------------


def test_in_silence_nothing_passes_and_nobody_is_told(loop: Loop) -> None:
    """Neither bytes nor a FIN; whoever comes is let in, and no further. Then all of it passes, in order."""

    async def scene() -> None:
        async with place() as at:
            client, server = await at.both()
            leaver, left = await at.both()
            at.link.hush()
            await client.send(b"up")
            await server.send(b"down")
            leaver.finish()
            late = await at.client()
            await late.send(b"late")
            await eventually(lambda: at.link.held == 10)
            for _ in range(20):
                await asyncio.sleep(0.002)
                assert all(stream.silent() for stream in (client, server, left, late))
            assert not at.reached()
            assert at.link.connections == 3
            assert at.link.unread >= 6  # in the kernel: of who was there before, nothing is read
            at.link.speak()
            assert at.link.counters.held == 10
            assert await server.exactly(2) == b"up"
            assert await client.exactly(4) == b"down"
            assert await left.read() == b""
            assert await (await at.server()).exactly(4) == b"late"
            assert at.link.held == 0

    play(loop, scene)


def test_silence_keeps_next_to_nothing_in_memory(loop: Loop) -> None:
    """Also of whoever comes while it is silent: what is written waits in the kernel, until that is full."""

    async def scene() -> None:
        async with place() as at:
            old, _ = await at.both()
            at.link.hush()
            new = await at.client()
            for stream in (old, new):
                await stream.fill()
            assert at.link.held > 0
            assert at.link.held - at.link.unread <= 4 * HIGH_WATER

    play(loop, scene)


@pytest.mark.parametrize("stuck", [False, True], ids=["idle", "stuck"])
def test_who_breaks_off_in_silence_is_missed_afterwards(loop: Loop, stuck: bool) -> None:
    """Also where the link has heard of it, because it had bytes for it: the other side is not told before."""

    async def scene() -> None:
        async with place() as at:
            client, server = await at.both()
            await server.send(b"unread")
            if stuck:
                await server.fill()
            await eventually(lambda: not client.silent())
            at.link.hush()
            client.close()  # with bytes unread: RST
            for _ in range(10):
                await asyncio.sleep(0.002)
                assert server.silent()
            at.link.speak()
            with pytest.raises(ConnectionResetError):
                await server.to_end()

    play(loop, scene)


# -- delay and throttle ------------------------------------------------------------------------------------------------


def test_a_delay_holds_in_both_directions_and_for_the_end_too(loop: Loop) -> None:
    """Never earlier; how much later is the machine's business."""

    async def scene() -> None:
        async with place() as at:
            client, server = await at.both()
            now = asyncio.get_running_loop().time
            at.link.delay = 0.08
            began = now()
            await client.send(b"question")
            assert await server.exactly(8) == b"question"
            assert now() - began >= 0.075
            began = now()
            await server.send(b"answer")
            server.finish()
            assert await client.exactly(6) == b"answer"
            assert now() - began >= 0.075
            assert await client.read() == b""
            began = now()
            client.finish()
            assert await server.read() == b""
            assert now() - began >= 0.075
            assert at.link.counters.delayed == 14

    play(loop, scene)


def test_a_delayed_link_keeps_so_much_and_no_more(loop: Loop) -> None:
    async def scene() -> None:
        async with place() as at:
            at.link.delay = 60.0
            client, _ = await at.both()
            await client.fill()

    play(loop, scene)


def test_a_throttle_never_lets_more_through_than_its_rate(loop: Loop) -> None:
    """In messages much smaller than what may pass at once, as token streams are; the other direction is free."""

    async def scene() -> None:
        async with place() as at:
            client, server = await at.both()
            at.link.throttle = rate = 2000.0
            now = asyncio.get_running_loop().time
            began = now()

            async def say() -> None:
                for _ in range(80):
                    await server.send(b"10 bytes. ")
                    await asyncio.sleep(0)

            saying = asyncio.create_task(say())
            heard = 0
            while heard < 800:
                heard += len(await client.read())
                assert heard <= rate * (now() - began + 2 * SLICE) + 1
            await saying
            before = at.link.counters.throttled
            await server.send(b"x" * 600)
            assert len(await client.exactly(600)) == 600
            assert at.link.counters.throttled - before >= 600 - rate * 2 * SLICE  # only a burst need not wait
            await client.send(b"u" * 50_000)
            assert len(await server.exactly(50_000)) == 50_000

    play(loop, scene)


def test_a_throttle_that_is_lifted_lets_the_rest_go(loop: Loop) -> None:
    """Waiting for it at the old rate would take hours."""

    async def scene() -> None:
        async with place() as at:
            at.link.throttle = 10.0
            client, server = await at.both()
            await server.send(b"x" * 40_000)
            await client.exactly(1)
            at.link.throttle = None
            assert await client.exactly(39_999) == b"x" * 39_999

    play(loop, scene)


@settings(max_examples=300, deadline=None)
@given(
    rate=st.floats(1.0, 1e7),
    asked=st.lists(st.tuples(st.floats(0.0, 0.5), st.integers(1, 100_000)), min_size=1, max_size=60),
)
def test_a_bucket_never_gives_more_than_its_rate_and_one_burst(rate: float, asked: list[tuple[float, int]]) -> None:
    """Over every stretch of time, not just from the start; and who waits a slice at 1 000 B/s always gets something."""
    bucket = Bucket()
    given: list[tuple[float, int]] = []
    now = 100.0
    for pause, wanted in asked:
        now += pause
        got = bucket.take(wanted, rate, now)
        assert 0 <= got <= wanted
        if pause >= SLICE and rate >= 1 / SLICE + 1:
            assert got > 0
        given.append((now, got))
    for first in range(len(given)):
        for last, total in enumerate(itertools.accumulate(got for _, got in given[first:]), first):
            span = given[last][0] - given[first][0]
            assert total <= rate * span + max(1.0, rate * 2 * SLICE) + 1e-3
