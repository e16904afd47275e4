"""A link forwards every byte or hurts in exactly the way it says: seen from both of its ends, on real sockets."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from compose.chaos.link import LOOPBACK, Link
from compose.chaos.pair import HIGH_WATER
from tests.chaos.place import Loop, Stream, eventually, place, play

# -- forwarding --------------------------------------------------------------------------------------------------------

CHUNKS = st.lists(st.binary(min_size=1, max_size=3000), max_size=12)


@settings(max_examples=60, deadline=None)
@given(up=CHUNKS, down=CHUNKS, delay=st.sampled_from([0.0, 0.002]), throttle=st.sampled_from([None, 3e6]))
def test_bytes_come_out_as_they_went_in(
    up: list[bytes], down: list[bytes], delay: float, throttle: float | None
) -> None:
    """Whatever the chunks, in both directions at once, delayed, slowed or neither; and a FIN passes behind them."""

    async def scene() -> None:
        async with place() as at:
            at.link.delay, at.link.throttle = delay, throttle
            client, server = await at.both()

            async def say(stream: Stream, chunks: list[bytes]) -> None:
                for chunk in chunks:
                    await stream.send(chunk)
                    await asyncio.sleep(0)
                stream.finish()

            heard_up, heard_down, _, _ = await asyncio.gather(
                server.to_end(), client.to_end(), say(client, up), say(server, down)
            )
            assert (heard_up, heard_down) == (b"".join(up), b"".join(down))
            assert (at.link.counters.up, at.link.counters.down) == (len(heard_up), len(heard_down))

    play(uvloop.new_event_loop, scene)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_bytes_come_out_as_they_went_in_while_the_link_is_turned_about(data: st.DataObject) -> None:
    """Silence, delay and throttle go on and off in the middle of a stream: late or not, nothing is lost or swapped."""
    parts = data.draw(st.lists(st.binary(min_size=1, max_size=2000), min_size=1, max_size=8))
    moods = data.draw(
        st.lists(
            st.tuples(st.booleans(), st.sampled_from([0.0, 0.001, 0.004]), st.sampled_from([None, 5e5, 5e6])),
            min_size=len(parts),
            max_size=len(parts),
        )
    )

    async def scene() -> None:
        async with place() as at:
            client, server = await at.both()
            for part, (silent, delay, throttle) in zip(parts, moods, strict=True):
                (at.link.hush if silent else at.link.speak)()
                at.link.delay, at.link.throttle = delay, throttle
                await server.send(part)
                await asyncio.sleep(0.001)
            at.link.speak()
            server.finish()
            assert await client.to_end() == b"".join(parts)

    play(uvloop.new_event_loop, scene)


def test_one_side_may_end_and_still_hear_the_other(loop: Loop) -> None:
    """A half-closed connection is none that ended."""

    async def scene() -> None:
        async with place() as at:
            client, server = await at.both()
            await client.send(b"question")
            client.finish()
            assert await server.to_end() == b"question"
            await server.send(b"answer")
            server.finish()
            assert await client.to_end() == b"answer"

    play(loop, scene)


def test_a_connection_that_both_sides_ended_is_gone(loop: Loop) -> None:
    """Or it would be counted as struck by a fault that hit nobody, and its sockets would stay."""

    async def scene() -> None:
        async with place() as at:
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(5):
                client, server = await at.both()
                await client.send(b"x")
                client.close()
                assert await server.to_end() == b"x"
                server.close()
            await eventually(lambda: at.link.connections == 0)
            await eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)
            assert at.link.cut() == at.link.reset() == 0
            assert at.link.counters.opened == 5

    play(loop, scene)


def test_a_side_that_breaks_breaks_the_other(loop: Loop) -> None:
    async def scene() -> None:
        async with place() as at:
            client, server = await at.both()
            await client.send(b"x")  # unread when the server closes: its kernel sends RST
            await eventually(lambda: not server.silent())
            server.close()
            with pytest.raises(ConnectionResetError):
                await client.read()
            await eventually(lambda: at.link.connections == 0)

    play(loop, scene)


def test_who_does_not_read_is_not_read_for(loop: Loop) -> None:
    """The writer gets stuck once the kernel's buffers are full; the link keeps almost nothing. Then all arrives."""

    async def scene() -> None:
        async with place() as at:
            client, server = await at.both()
            sent = await server.fill()
            assert at.link.held - at.link.unread <= 2 * HIGH_WATER
            assert await client.exactly(sent) == b"x" * sent

    play(loop, scene)


def test_a_reader_that_stalls_on_a_delayed_link_gets_all_of_it_later(loop: Loop) -> None:
    """What waits in the link goes on although nothing new comes in."""

    async def scene() -> None:
        async with place() as at:
            at.link.delay = 0.02
            client, server = await at.both()
            sent = await server.fill()
            at.link.delay = 0.0
            assert await client.exactly(sent) == b"x" * sent

    play(loop, scene)


# -- ends --------------------------------------------------------------------------------------------------------------


def test_a_cut_is_a_fin_to_both(loop: Loop) -> None:
    async def scene() -> None:
        async with place() as at:
            ends = [await at.both() for _ in range(3)]
            assert at.link.connections == 3
            assert at.link.cut() == at.link.counters.cut == 3
            for client, server in ends:
                assert await client.read() == await server.read() == b""
            assert at.link.cut() == at.link.connections == 0

    play(loop, scene)


def test_a_cut_is_a_fin_even_with_bytes_that_nobody_had_read(loop: Loop) -> None:
    """A socket closed with unread bytes would send RST instead."""

    async def scene() -> None:
        async with place() as at:
            client, server = await at.both()
            at.link.hush()
            await client.send(b"unread")
            await server.send(b"unread")
            await eventually(lambda: at.link.held == 12)
            assert at.link.cut() == 1
            client.push(b"and more before the socket is closed")
            assert await client.read() == await server.read() == b""

    play(loop, scene)


def test_a_cut_does_not_wait_for_a_side_that_does_not_read(loop: Loop) -> None:
    async def scene() -> None:
        async with place() as at:
            client, server = await at.both()
            await server.fill()
            at.link.hush()
            await client.send(b"unread")
            await eventually(lambda: at.link.unread > 0)
            assert at.link.cut() == 1
            await eventually(lambda: not at.link.ending)
            await client.to_end()  # what the kernel had, and then FIN, not RST

    play(loop, scene)


def test_a_reset_is_an_rst_to_both(loop: Loop) -> None:
    async def scene() -> None:
        async with place() as at:
            ends = [await at.both() for _ in range(3)]
            assert at.link.reset() == at.link.counters.reset == 3
            for client, server in ends:
                with pytest.raises(ConnectionResetError):
                    await client.read()
                with pytest.raises(ConnectionResetError):
                    await server.read()
            assert at.link.reset() == 0

    play(loop, scene)


def test_a_reset_in_the_middle_of_a_dialling_leaves_nothing(loop: Loop) -> None:
    """Whichever step it was at: if the upstream had been reached, it is told too."""

    async def scene() -> None:
        async with place() as at:
            for steps in range(12):
                client = await at.client()
                while at.link.counters.opened == steps:  # noqa: ASYNC110  # each turn of the loop counts
                    await asyncio.sleep(0)
                for _ in range(steps):  # turns of the loop since it began to dial
                    await asyncio.sleep(0)
                assert at.link.reset() == 1
                await eventually(lambda: at.link.connections == at.link.ending == 0)
                with pytest.raises(ConnectionResetError):
                    await client.read()
                while at.reached():
                    with pytest.raises(ConnectionResetError):
                        await (await at.server()).read()

    play(loop, scene)


def test_who_comes_while_the_link_refuses_gets_rst(loop: Loop) -> None:
    """And those who were there stay."""

    async def scene() -> None:
        async with place() as at:
            client, server = await at.both()
            at.link.refusing = True
            with pytest.raises(ConnectionResetError):
                await (await at.client()).read()
            assert (at.link.counters.refused, at.link.counters.opened) == (1, 1)
            await client.send(b"still here")
            assert await server.exactly(10) == b"still here"
            at.link.refusing = False
            second, behind = await at.both()
            await behind.send(b"back")
            assert await second.exactly(4) == b"back"

    play(loop, scene)


def test_a_link_that_leads_nowhere_yet_or_to_nobody_answers_with_rst(loop: Loop) -> None:
    async def scene() -> None:
        async with Link("nowhere") as link:
            for _ in range(2):
                stream = await Stream.to(link.port)
                with pytest.raises(ConnectionResetError):
                    await stream.read()
                stream.close()
                with socket.socket() as nobody:  # bound, and not listened on
                    nobody.bind((LOOPBACK, 0))
                    link.aim(*nobody.getsockname())
            assert link.connections == 0
            assert link.counters.refused == 2

    play(loop, scene)


def test_a_link_closes_twice_leaves_nothing_and_opens_again_where_it_was(loop: Loop) -> None:
    async def scene() -> None:
        async with place():
            pass  # what a loop opens with its first sockets, it keeps
        before = len(os.listdir("/proc/self/fd"))
        others = asyncio.all_tasks()
        async with place() as at:
            port = at.link.port
            client, server = await at.both()
            at.link.cut()  # its end was the first: the address is in TIME_WAIT
            assert await client.read() == await server.read() == b""
            client, server = await at.both()
            await at.link.close()
            assert at.link.ending == 0
            await at.link.close()
            for end in (client, server):
                with pytest.raises(ConnectionResetError):
                    await end.read()
            with pytest.raises(ConnectionRefusedError):
                await Stream.to(port)
            assert at.link.connections == 0
            await at.link.open(port)
            assert at.link.port == port
            client, server = await at.both()
            await client.send(b"again")
            assert await server.exactly(5) == b"again"
        assert asyncio.all_tasks() == others
        await eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)

    play(loop, scene)
