"""The hot path past nats-py: what it cuts out of the wire and what it puts on it, held against nats-py itself."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any, cast

import pytest
import structlog.testing
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.errors import ProtocolError
from nats.protocol.command import hpub_cmd, pub_cmd
from nats.protocol.parser import Parser

from broker.bus.wire import LONG, MAX_LINE, MOST_TURNS, TURN, Heard, Inlet, Outlet, publish_command, read_headers

TAKEN, OTHERS = 1, 22  # subscription ids: ours, and one of nats-py's

Seen = list[tuple[Any, ...]]


class Library:
    """What a parser tells nats-py's client."""

    def __init__(self) -> None:
        self.seen: Seen = []
        self.on_ping: Callable[[], None] = lambda: None

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, head: bytes | None) -> None:
        self.seen.append((sid, subject.decode(), reply.decode(), bytes(data), bytes(head or b"")))

    async def _process_ping(self) -> None:
        self.seen.append(("ping",))
        self.on_ping()

    async def _process_pong(self) -> None:
        self.seen.append(("pong",))

    async def _process_err(self, error: str) -> None:
        self.seen.append(("error", error))


def inlet(library: Library) -> Inlet:
    made = Inlet(cast(Client, library))

    def take(heard: Heard) -> None:
        library.seen.append((TAKEN, heard.subject, heard.reply, heard.data, heard._head))

    made.takers[b"%d" % TAKEN] = take
    return made


WORDS = st.text("abcXYZ019.-_$>", min_size=1, max_size=12)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    sid, subject, reply = draw(st.sampled_from([TAKEN, OTHERS])), draw(WORDS), draw(WORDS | st.just(""))
    data = draw(st.binary(max_size=40) | st.just(b"\r\nMSG x 1 1\r\n"))
    answer_to = f" {reply}" if reply else ""
    if draw(st.booleans()):
        head = b"NATS/1.0\r\nA: %b\r\n\r\n" % draw(WORDS).encode()
        return (
            f"HMSG {subject} {sid}{answer_to} {len(head)} {len(head) + len(data)}\r\n".encode() + head + data + b"\r\n"
        )
    return f"MSG {subject} {sid}{answer_to} {len(data)}\r\n".encode() + data + b"\r\n"


OTHER_LINES = st.sampled_from([b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b"-ERR 'Stale Connection'\r\n"])


@given(
    st.lists(messages() | OTHER_LINES, max_size=12),
    st.lists(st.integers(0, 600), max_size=8),
    st.sampled_from([1, 50, TURN]),
)
def test_everything_comes_as_nats_py_would_have_it_wherever_it_is_cut(
    lines: list[bytes], at: list[int], turn: int
) -> None:
    stream = b"".join(lines)
    ours, theirs = Library(), Library()
    mine, oracle = inlet(ours), Parser(theirs)
    places = sorted({min(place, len(stream)) for place in at} | {0, len(stream)})

    async def play() -> None:
        for first, last in itertools.pairwise(places):
            await mine.parse(stream[first:last])
            await oracle.parse(stream[first:last])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("broker.bus.wire.TURN", turn)
        asyncio.run(play())
    assert ours.seen == theirs.seen
    assert len(ours.seen) == len(lines) - lines.count(b"+OK\r\n")


async def test_what_a_taker_raises_is_logged_and_the_next_message_comes() -> None:
    library = Library()
    mine = inlet(library)
    taken: list[bytes] = []

    def take(heard: Heard) -> None:
        taken.append(heard.data)
        if heard.data == b"bad":
            raise ZeroDivisionError

    mine.takers[b"7"] = take
    with structlog.testing.capture_logs() as logs:
        await mine.parse(b"MSG a 7 3\r\nbad\r\nMSG a 7 4\r\ngood\r\n")
    assert taken == [b"bad", b"good"]
    assert [entry["event"] for entry in logs] == ["bus.callback_failed"]


async def test_what_was_read_of_a_connection_that_is_gone_is_dropped() -> None:
    library = Library()
    mine = inlet(library)
    library.on_ping = mine.reset  # as nats-py does when it reconnects
    await mine.parse(b"MSG a 1 1\r\nx\r\nPING\r\nMSG a 1 1\r\ny\r\nMSG a 1 5\r\nhalf")
    await mine.parse(b"MSG a 1 1\r\nz\r\n")
    assert [seen[3] for seen in library.seen if seen[0] == TAKEN] == [b"x", b"z"]


@pytest.mark.parametrize("line", [b"MSG a\r\n", b"MSG a 1 x\r\n", b"HMSG a 1 2\r\n", b"HMSG a 1 b x 3\r\n"])
async def test_nonsense_ends_the_connection(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        await inlet(Library()).parse(line)


async def test_a_line_without_end_is_bounded() -> None:
    mine = inlet(Library())
    await mine.parse(b"x" * MAX_LINE)
    with pytest.raises(ProtocolError):
        await mine.parse(b"x")


@given(WORDS, WORDS | st.just(""), st.binary(max_size=30), st.none() | WORDS)
def test_a_publish_reads_as_nats_py_s(subject: str, reply: str, payload: bytes, value: str | None) -> None:
    ours = publish_command(subject, reply, None if value is None else {"Name": value}, payload)
    theirs = (
        pub_cmd(subject, reply, payload)
        if value is None
        else hpub_cmd(subject, reply, f"NATS/1.0\r\nName: {value}\r\n\r\n".encode(), payload)
    )
    assert ours == theirs


def test_the_size_of_a_header_is_in_bytes() -> None:
    assert publish_command("a", "", {"N": "é"}, b"x") == "HPUB a  19 20\r\nNATS/1.0\r\nN: é\r\n\r\nx\r\n".encode()


@pytest.mark.parametrize(
    ("subject", "reply", "headers"),
    [
        ("", "", None),
        ("a b", "", None),
        ("a\r\nPUB b 0", "", None),
        ("a", "b c", None),
        ("a", "b\t", None),
        ("a", "", {"N": "x\r\nM: y"}),
        ("a", "", {"N\n": "x"}),
    ],
)
def test_what_would_be_read_as_something_else_is_not_written(
    subject: str, reply: str, headers: dict[str, str] | None
) -> None:
    with pytest.raises(ValueError, match="not a"):
        publish_command(subject, reply, headers, b"")


@pytest.mark.parametrize(
    "head",
    [
        b"NATS/1.0\r\nA: b\r\nC:d\r\n\r\n",
        b"NATS/1.0 404\r\n\r\n",
        b"NATS/1.0 503\r\n\r\n",
        b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 1\r\nNats-Pending-Bytes: 0\r\n\r\n",
        b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1016\r\nNats-Last-Stream: 1024\r\n\r\n",
    ],
)
async def test_headers_read_as_nats_py_s(head: bytes) -> None:
    client = Client()
    assert read_headers(head) == await client._process_headers(head)
    assert Heard("a", "", b"", head).headers == read_headers(head)
    assert Heard("a", "", b"x").headers is None


MUCH = b"MSG a 1 1000\r\n" + b"x" * 1000 + b"\r\n"
IN_A_TURN = 1 + TURN // len(MUCH)


class Turns:
    """What was taken in each turn of the loop; the others' turns take `long` seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inlet = Inlet(Client())
        self.inlet.takers[b"1"] = lambda heard: self._take()
        self.long = 0.0
        self.taken = [0]
        self._clock = 0.0
        monkeypatch.setattr("broker.bus.wire.time.monotonic", lambda: self._clock)
        asyncio.get_running_loop().call_soon(self._other)

    def _take(self) -> None:
        self.taken[-1] += 1

    def _other(self) -> None:
        self._clock += self.long
        if self.taken[-1]:
            self.taken.append(0)
        asyncio.get_running_loop().call_soon(self._other)


async def test_between_much_that_was_read_others_have_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(monkeypatch)
    for count in (1, 3 * IN_A_TURN, 2):
        await turns.inlet.parse(MUCH * count)
    assert turns.taken == [IN_A_TURN] * 3 + [3]


async def test_where_the_others_turn_is_long_so_is_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(monkeypatch)
    turns.long = 3.5 * LONG
    await turns.inlet.parse(MUCH * 100)
    in_a_long_turn = 1 + 4 * TURN // len(MUCH)
    assert turns.taken[:3] == [IN_A_TURN, in_a_long_turn, in_a_long_turn]
    turns.long = 1000 * LONG
    await turns.inlet.parse(MUCH * 300)
    assert max(turns.taken) == 1 + MOST_TURNS * TURN // len(MUCH)


async def test_what_a_reset_leaves_of_a_read_is_not_gone_through(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(monkeypatch)
    parsing = asyncio.create_task(turns.inlet.parse(MUCH * (3 * IN_A_TURN)))
    for _ in range(2):
        await asyncio.sleep(0)
    assert sum(turns.taken) == 2 * IN_A_TURN
    turns.inlet.reset()  # another connection: what is left was said on the one before
    await parsing
    assert sum(turns.taken) == 2 * IN_A_TURN
    await turns.inlet.parse(MUCH)
    assert sum(turns.taken) == 2 * IN_A_TURN + 1


class Written:
    """A client whose transport remembers, and may be gone."""

    is_connected = True

    def __init__(self) -> None:
        self._pending: list[bytes] = []
        self._pending_data_size = 0
        self.writes: list[list[bytes]] = []
        self.gone = False
        self._transport = self

    def writelines(self, lines: list[bytes]) -> None:
        if self.gone:
            raise RuntimeError("the handle is closed")
        self.writes.append(lines)


async def test_publishes_of_one_turn_are_written_together_behind_what_nats_py_has_to_write() -> None:
    client = Written()
    client._pending.append(b"SUB x  9\r\n")
    outlet = Outlet(cast(Client, client))
    for number in range(3):
        outlet.publish("a", b"%d" % number, "", None)
    assert client.writes == []
    await asyncio.sleep(0)
    (written,) = client.writes
    assert b"".join(written) == b"SUB x  9\r\nPUB a  1\r\n0\r\nPUB a  1\r\n1\r\nPUB a  1\r\n2\r\n"
    assert (client._pending, client._pending_data_size) == ([], 0)


async def test_what_is_written_to_a_connection_that_is_gone_is_lost_and_harms_nobody() -> None:
    client = Written()
    outlet = Outlet(cast(Client, client))
    client.gone = True
    outlet.publish("a", b"lost", "", None)
    await asyncio.sleep(0)
    client.gone = False
    outlet.publish("a", b"x", "", None)
    await asyncio.sleep(0)
    assert client.writes == [[b"PUB a  1\r\nx\r\n"]]
