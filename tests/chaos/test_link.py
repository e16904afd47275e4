"""A link forwards every byte or hurts in exactly the way it says: seen from both of its ends, on real sockets."""

from __future__ import annotations

import asyncio
import itertools
import os
import select
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from compose.chaos.link import LOOPBACK, Link
from compose.chaos.pair import HIGH_WATER, SLICE, Bucket

DEADLINE = 20.0
Loop = Callable[[], asyncio.AbstractEventLoop]
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.fixture(params=LOOPS, ids=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> Loop:
    made: Loop = request.param
    return made


def play(loop: Loop, scene: Callable[[], object]) -> None:
    """Run a coroutine function on such a loop, all of it before one deadline."""

    async def timed() -> None:
        async with asyncio.timeout(DEADLINE):
            await scene()  # type: ignore[misc]

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(timed())


async def eventually(holds: Callable[[], object]) -> None:
    """For what announces itself by no event; the deadline is the scene's."""
    while not holds():  # noqa: ASYNC110  # there is no event to wait for
        await asyncio.sleep(0.002)


class Stream:
    """One end of a TCP connection over a bare socket, so that nothing is read before the test reads it."""

    def __init__(self, raw: socket.socket) -> None:
        raw.setblocking(False)
        self._raw = raw
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def to(cls, port: int) -> Stream:
        stream = cls(socket.socket())
        try:
            await stream._loop.sock_connect(stream._raw, (LOOPBACK, port))
        except OSError:
            stream.close()
            raise
        return stream

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._raw, data)

    async def read(self, size: int = 1 << 16) -> bytes:
        """b"" at FIN; raises ConnectionResetError at RST."""
        return await self._loop.sock_recv(self._raw, size)

    async def exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = await self.read(min(1 << 16, size - len(data)))
            assert part, "it ended early"
            data += part
        return bytes(data)

    async def to_end(self) -> bytes:
        data = bytearray()
        while part := await self.read():
            data += part
        return bytes(data)

    def push(self, data: bytes) -> None:
        """Send without giving the loop a turn."""
        assert self._raw.send(data) == len(data)

    def silent(self) -> bool:
        """Nothing has come: no byte, no end."""
        try:
            self._raw.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def stuff(self) -> int:
        """Write until the kernel takes no more; how many bytes it took."""
        taken = 0
        try:
            while True:
                taken += self._raw.send(b"x" * 65536)
        except BlockingIOError:
            return taken

    async def fill(self) -> int:
        """Write until nothing between here and the reader takes any more; how many bytes it took."""
        sent = quiet = 0
        while quiet < 20:  # stuck for twenty rounds of the loop in which others could move
            taken = self.stuff()
            sent += taken
            quiet = 0 if taken else quiet + 1
            assert sent < 64 << 20, "something buffers without bound"
            await asyncio.sleep(0.005)
        return sent

    def finish(self) -> None:
        self._raw.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._raw.close()


class Place:
    """A link, and the upstream behind it that hands every connection to the test."""

    def __init__(self, link: Link, listener: socket.socket) -> None:
        self.link = link
        self._listener = listener
        self._streams: list[Stream] = []

    @property
    def upstream_port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    async def client(self) -> Stream:
        stream = await Stream.to(self.link.port)
        self._streams.append(stream)
        return stream

    async def server(self) -> Stream:
        raw, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        stream = Stream(raw)
        self._streams.append(stream)
        return stream

    def reached(self) -> bool:
        """Somebody waits at the upstream to be accepted."""
        return bool(select.select([self._listener], [], [], 0)[0])

    async def both(self) -> tuple[Stream, Stream]:
        client = await self.client()
        return client, await self.server()

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
        self._listener.close()


@asynccontextmanager
async def place(**options: object) -> AsyncIterator[Place]:
    with socket.create_server((LOOPBACK, 0)) as listener:
        listener.setblocking(False)
        async with Link("test", **options) as link:  # type: ignore[arg-type]
            found = Place(link, listener)
            link.aim(LOOPBACK, found.upstream_port)
            try:
                yield found
            finally:
                found.close()


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
