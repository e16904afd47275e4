"""The wire takes out of a NATS connection what a rule names, and nothing else, however the bytes are split."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.bus import log
from broker.bus.errors import BusUnavailable
from broker.bus.nats import Bus
from broker.bus.subjects import random_id
from compose.chaos.link import Link
from compose.chaos.nats_wire import LINE_LIMIT, Direction, Message, NatsTap, NatsWire
from tests.fixtures.nats_server import NatsServer

TO_CLIENT, TO_SERVER = Direction.TO_CLIENT, Direction.TO_SERVER
NOT_FOUND = b"NATS/1.0 404 Message Not Found\r\n\r\n"


class Sent(NamedTuple):
    """What is on the wire, and what it means where it is a message."""

    raw: bytes
    message: Message | None = None


def message(
    direction: Direction, subject: str, reply: str = "", headers: bytes = b"", payload: bytes = b"", sid: str = "7"
) -> Sent:
    verb = "MSG" if direction is TO_CLIENT else "PUB"
    sizes = [str(len(headers)), str(len(headers) + len(payload))] if headers else [str(len(payload))]
    whose = [subject, *([sid] if direction is TO_CLIENT else []), *([reply] if reply else [])]
    line = " ".join(["H" + verb if headers else verb, *whose, *sizes])
    raw = line.encode() + b"\r\n" + headers + payload + b"\r\n"
    return Sent(raw, Message(direction, subject, reply, headers, payload))


def bare(line: bytes) -> Sent:
    return Sent(line + b"\r\n")


TRAPS = st.sampled_from(
    [b"", b"\r\n", b"PING\r\n", b"MSG a 1 5\r\nhello\r\n", b"\r", b"\n", b"INFO {}\r\n", b"MSG a 1 99\r\n"]
)
PAYLOADS = st.one_of(TRAPS, st.binary(max_size=60), st.lists(TRAPS, max_size=4).map(b"".join))
SUBJECTS = st.sampled_from(["a", "tok.07.abc", "_INBOX.x.y", "MSG", "PING"])
REPLIES = st.sampled_from(["", "r.1", "PING"])
HEADERS = st.sampled_from([b"", b"NATS/1.0\r\n\r\n", b"NATS/1.0 100 Idle\r\nA: PING\r\n\r\n"])
PLAIN = {
    TO_CLIENT: [b"PING", b"PONG", b"+OK", b"-ERR 'Permissions Violation'", b'INFO {"a":1} ', b"ping"],
    TO_SERVER: [b"PING", b"PONG", b'CONNECT {"verbose":false}', b"SUB a.* 1", b"UNSUB 1 5", b"SUB a q 2"],
}


def dialogues(direction: Direction) -> st.SearchStrategy[list[Sent]]:
    messages = st.builds(lambda s, r, h, p: message(direction, s, r, h, p), SUBJECTS, REPLIES, HEADERS, PAYLOADS)
    return st.lists(st.one_of(messages, st.sampled_from(PLAIN[direction]).map(bare)), max_size=10)


DIALOGUES = st.sampled_from([TO_CLIENT, TO_SERVER]).flatmap(lambda way: st.tuples(st.just(way), dialogues(way)))
CUTS = st.lists(st.integers(0, 400), max_size=40)


def split(raw: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    return [raw[a:b] for a, b in itertools.pairwise(edges)]


def through(wire: NatsWire, direction: Direction, chunks: list[bytes]) -> bytes:
    read = wire.to_client if direction is TO_CLIENT else wire.to_server
    return b"".join(read(chunk) for chunk in chunks)


# -- reading -----------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(dialogue=DIALOGUES, cuts=CUTS, ruled=st.booleans())
def test_what_no_rule_takes_passes_byte_for_byte(
    dialogue: tuple[Direction, list[Sent]], cuts: list[int], ruled: bool
) -> None:
    """With a rule, every message is seen by it exactly once, whole, in order, and as what it was."""
    direction, sent = dialogue
    tap = NatsTap()
    seen: list[Message] = []

    def look(message: Message) -> bool:
        seen.append(message)
        return False

    if ruled:
        tap.lose(look, direction=direction)
    raw = b"".join(one.raw for one in sent)
    assert through(tap(), direction, split(raw, cuts)) == raw
    assert seen == [one.message for one in sent if one.message and ruled]


@settings(max_examples=300, deadline=None)
@given(dialogue=DIALOGUES, cuts=CUTS, data=st.data())
def test_exactly_the_messages_that_a_rule_names_are_missing(
    dialogue: tuple[Direction, list[Sent]], cuts: list[int], data: st.DataObject
) -> None:
    """The first `times` of them; what comes behind is what it was."""
    direction, sent = dialogue
    subject = data.draw(SUBJECTS)
    times = data.draw(st.integers(1, 3))
    tap = NatsTap()
    rule = tap.lose(lambda message: message.subject == subject, times=times, direction=direction)
    other = TO_SERVER if direction is TO_CLIENT else TO_CLIENT
    idle = tap.lose(lambda message: True, direction=other)
    named = [index for index, one in enumerate(sent) if one.message and one.message.subject == subject][:times]
    out = through(tap(), direction, split(b"".join(one.raw for one in sent), cuts))
    assert out == b"".join(one.raw for index, one in enumerate(sent) if index not in named)
    assert rule.lost == [sent[index].message for index in named]
    assert rule.happened.is_set() == bool(named)
    assert (rule in tap.rules) == (len(named) < times)
    assert idle.lost == []


@settings(max_examples=200, deadline=None)
@given(dialogue=DIALOGUES, cuts=CUTS, data=st.data())
@example(dialogue=(TO_CLIENT, [message(TO_CLIENT, "a", payload=b"MSG a 1 5\r\nhello\r\n")]), cuts=[12], data=None)
def test_a_rule_may_come_and_go_in_the_middle_of_a_message(
    dialogue: tuple[Direction, list[Sent]], cuts: list[int], data: st.DataObject | None
) -> None:
    """A message that had begun to pass is not seen; whatever looks like one inside of it is none."""
    direction, sent = dialogue
    raw = b"".join(one.raw for one in sent)
    chunks = split(raw, cuts)
    tap = NatsTap()
    wire = tap()
    seen: list[Message] = []
    out = b""
    for chunk in chunks:
        wanted = chunk is not chunks[0] if data is None else data.draw(st.booleans())
        for rule in list(tap.rules):
            tap.forget(rule)
        if wanted:
            tap.lose(lambda message: seen.append(message) or False, direction=direction)  # type: ignore[func-returns-value]
        out += through(wire, direction, [chunk])
    for rule in list(tap.rules):
        tap.forget(rule)
    assert out == raw
    real = iter(one.message for one in sent)
    assert all(message in real for message in seen)  # some of those that were sent, in their order


@given(cuts=CUTS)
def test_a_message_may_be_replaced_by_another_on_its_subject(cuts: list[int]) -> None:
    """A direct get that is answered by a replica without the message: headers, and nothing behind them."""
    tap = NatsTap()
    tap.lose(lambda message: message.subject == "_INBOX.a", instead=NOT_FOUND)
    tap.lose(lambda message: message.subject == "_INBOX.b", instead=b"", payload=b"other")
    tap.lose(lambda message: message.subject == "_INBOX.c", instead=b"NATS/1.0\r\nA: b\r\n\r\n", payload=b"hello")
    raw = b"".join(
        [
            b"PING\r\n",
            message(TO_CLIENT, "_INBOX.a", "reply", b"NATS/1.0\r\nNats-Sequence: 4\r\n\r\n", b"token", sid="3").raw,
            message(TO_CLIENT, "_INBOX.b", payload=b"token").raw,
            message(TO_CLIENT, "_INBOX.c", payload=b"token").raw,
            b"PONG\r\n",
        ]
    )
    assert through(tap(), TO_CLIENT, split(raw, cuts)) == b"".join(
        [
            b"PING\r\n",
            message(TO_CLIENT, "_INBOX.a", "reply", NOT_FOUND, sid="3").raw,
            message(TO_CLIENT, "_INBOX.b", payload=b"other").raw,
            message(TO_CLIENT, "_INBOX.c", "", b"NATS/1.0\r\nA: b\r\n\r\n", b"hello").raw,
            b"PONG\r\n",
        ]
    )


def test_a_published_message_may_be_replaced_too() -> None:
    tap = NatsTap()
    tap.lose(lambda message: message.payload == b"1", direction=TO_SERVER, instead=b"", payload=b"22")
    tap.lose(lambda message: message.payload == b"3", direction=TO_SERVER, instead=b"NATS/1.0\r\n\r\n")
    raw = b"PUB a r  1\r\n1\r\nHPUB b r 12 13\r\nNATS/1.0\r\n\r\n3\r\n"
    assert through(tap(), TO_SERVER, [raw]) == b"PUB a r 2\r\n22\r\nHPUB b r 12 12\r\nNATS/1.0\r\n\r\n\r\n"


@given(cuts=CUTS)
def test_a_client_is_not_told_of_servers_past_the_link(cuts: list[int]) -> None:
    told = {"server_id": "x", "headers": True, "max_payload": 1048576}
    raw = (
        "INFO "
        + json.dumps({**told, "connect_urls": ["1.2.3.4:5"], "ws_connect_urls": ["1.2.3.4:6"]})
        + " \r\nPING\r\n"
    )
    out = through(NatsTap()(), TO_CLIENT, split(raw.encode(), cuts))
    assert out.startswith(b"INFO ")
    assert out.endswith(b"\r\nPING\r\n")
    assert json.loads(out[5 : out.index(b"\r\n")]) == told


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\nMSG a 1 1\r\nx\r\n",  # TLS
        b"\x16\x03\x01\x02",
        b"RMSG $G a 1\r\nx\r\n",  # a route
        b"MSG a 1 nothing\r\n",
        b"PUB a -5\r\nx\r\n",
        b"MSG\r\n",
        b"\r\n",
        b"INFO {no json}\r\n",
        b"PUB " + b"a" * (LINE_LIMIT + 1),
    ],
)
def test_what_is_not_the_protocol_passes_unread(direction: Direction, raw: bytes) -> None:
    """At once, too: a TLS handshake that waits for a line's end would never come to one."""
    tap = NatsTap()
    tap.lose(lambda message: True, direction=direction)
    wire = tap()
    assert through(wire, direction, [b"PING\r\n"]) == b"PING\r\n"
    assert through(wire, direction, [raw]) == raw


def test_a_message_passes_as_it_comes_while_there_is_no_rule() -> None:
    """And a rule that is made in the middle of it sees the next one, though nothing was read of this one."""
    tap = NatsTap()
    wire = tap()
    begun = b"MSG a 1 1200\r\n" + b"x" * 500
    assert through(wire, TO_CLIENT, [begun]) == begun
    assert through(wire, TO_CLIENT, [b"y" * 690]) == b"y" * 690
    rule = tap.lose(lambda message: True)
    rest = b"MSG a 1 1\r\n"[:10]
    assert through(wire, TO_CLIENT, [rest, b"\r\nMSG b 1 1\r\nz\r\nPING\r\n"]) == rest + b"\r\nPING\r\n"
    assert [message.subject for message in rule.lost] == ["b"]


def test_a_large_message_costs_no_more_per_byte_than_a_small_one() -> None:
    """32 times the bytes in as small pieces, with a rule that has to see it whole: not 1 024 times the work."""

    def spent(size: int) -> float:
        tap = NatsTap()
        rule = tap.lose(lambda message: True)
        raw = message(TO_CLIENT, "a", payload=b"x" * size).raw
        pieces = [raw[at : at + 256] for at in range(0, len(raw), 256)]
        began = time.thread_time()
        assert through(tap(), TO_CLIENT, pieces) == b""
        assert len(rule.lost) == 1
        return time.thread_time() - began

    small, large = min(spent(1 << 17) for _ in range(5)), min(spent(1 << 22) for _ in range(3))
    assert large < 200 * small


# -- a real server -----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def tapped(nats: NatsServer) -> AsyncIterator[tuple[Bus, NatsTap, Link]]:
    """A bus whose way to the server is a link."""
    where = urlsplit(nats.url)
    tap = NatsTap()
    async with Link("nats", wire=tap) as link:
        link.aim(where.hostname or "", where.port or 0)
        bus = await Bus.connect(f"nats://{link.host}:{link.port}", "through-a-link")
        try:
            yield bus, tap, link
        finally:
            await bus.close()


async def stream_of(bus: Bus) -> str:
    name = f"T{random_id(10)}"
    await bus.api(
        f"STREAM.CREATE.{name}", {"name": name, "subjects": [f"{name}.>"], "allow_direct": True}, timeout=10.0
    )
    return name


async def test_a_publish_whose_ack_is_lost_is_stored_and_unanswered(nats: NatsServer) -> None:
    """Nothing else is lost with it: the connection stays, and the next publish is told of what was stored."""
    async with tapped(nats) as (bus, tap, link):
        stream = await stream_of(bus)
        rule = tap.lose(lambda message: b'"seq":' in message.payload and stream.encode() in message.payload)
        with pytest.raises(BusUnavailable):
            await log.store(bus, f"{stream}.a", b"token", expect_last=0)
        async with asyncio.timeout(5.0):
            await rule.happened.wait()
        assert len(rule.lost) == 1
        assert json.loads(rule.lost[0].payload)["seq"] == 1
        assert await log.store(bus, f"{stream}.a", b"next", expect_last=1) == 2
        stored = await log.read_all(bus, stream, f"{stream}.a")
        assert [one.data for one in stored] == [b"token", b"next"]
        assert link.counters.opened == 1


async def test_a_publish_that_is_lost_is_not_stored(nats: NatsServer) -> None:
    async with tapped(nats) as (bus, tap, _):
        stream = await stream_of(bus)
        rule = tap.lose(lambda message: message.subject == f"{stream}.a", direction=TO_SERVER)
        with pytest.raises(BusUnavailable):
            await log.store(bus, f"{stream}.a", b"token", expect_last=0)
        assert [one.payload for one in rule.lost] == [b"token"]
        assert await log.last(bus, stream, f"{stream}.a") is None


async def test_a_direct_get_may_be_answered_as_by_a_replica_that_lags(nats: NatsServer) -> None:
    """The client takes the answer for a real one: nothing is there. Asked again, it is."""
    async with tapped(nats) as (bus, tap, _):
        stream = await stream_of(bus)
        await log.store(bus, f"{stream}.a", b"token")
        rule = tap.lose(lambda message: b"Nats-Stream: " + stream.encode() in message.headers, instead=NOT_FOUND)
        end = tap.lose(lambda message: message.headers.startswith(b"NATS/1.0 204"))
        assert await log.page(bus, stream, f"{stream}.a", 0) == []
        tap.forget(end)
        assert [one.data for one in await log.page(bus, stream, f"{stream}.a", 0)] == [b"token"]
        assert [one.payload for one in rule.lost] == [b"token"]


async def test_a_bus_outlives_what_a_link_does_to_it(nats: NatsServer) -> None:
    """Cut, reset, and half open for longer than its watchdog believes: each time it comes back and stores on."""
    async with tapped(nats) as (bus, _, link):
        stream = await stream_of(bus)

        async def stored(seq: int) -> None:
            async with asyncio.timeout(20.0):
                while True:
                    try:
                        assert await log.store(bus, f"{stream}.a", b"x", msg_id=f"{stream}-{seq}") == seq
                        return
                    except BusUnavailable:
                        await asyncio.sleep(0.02)

        await stored(1)
        assert link.cut() == 1
        await stored(2)
        assert link.reset() == 1
        await stored(3)
        link.hush()
        async with asyncio.timeout(20.0):
            while bus.round_trip_ok:  # noqa: ASYNC110  # there is no event to wait for
                await asyncio.sleep(0.02)
        assert link.held > 0
        link.speak()
        await stored(4)
