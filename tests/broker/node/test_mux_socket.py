"""A WebSocket among many streams on one connection. What it says is in `test_ws.py`; this is how it gets there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker.bus import mux
from broker.bus.mux import HEARD, PIECE, WINDOW, Kind
from broker.node import metrics
from broker.node.app import App
from broker.node.mux_socket import MAX_HEARD
from broker.node.ws import WebSocketStream
from ingress.mux import NodeMux
from ingress.mux_socket import MuxedSocket
from tests.broker.node.shared_door import DEADLINE, Rude, joined
from tests.control.okome import until
from tests.fixtures.node import RunningNode


@pytest.fixture
async def shared(node: RunningNode) -> AsyncIterator[NodeMux]:
    async with joined(node) as connection:
        yield connection


class Talker:
    """Whoever has one WebSocket."""

    def __init__(self, socket: MuxedSocket) -> None:
        self.socket = socket
        self.messages: list[bytes] = []
        self.cursors: list[str] = []
        self.closed: tuple[int, str] | None = None

    @classmethod
    async def at(cls, node: RunningNode, shared: NodeMux, sid: str, query: str = "after=0") -> Talker:
        talker = cls(shared.socket(f"/v1/sessions/{sid}/ws?{query}", ["okome.v1", f"bearer.{node.token(sid)}"]))
        head = await talker.socket.greet([(b"host", b"x")], DEADLINE)
        assert head.status == 101
        assert (b"sec-websocket-protocol", b"okome.v1") in head.fields
        return talker

    def listen(self) -> Talker:
        self.socket.listen(self._message, self._close, self._tokens)
        return self

    def _message(self, data: bytes, text: bool) -> None:
        self.messages.append(data)

    def _tokens(self, frames: bytes, cursor: bytes) -> None:
        self.cursors.append(cursor.decode())
        while frames:
            size, begin = (frames[1], 2) if frames[1] < 126 else (int.from_bytes(frames[2:4], "big"), 4)
            self.messages.append(frames[begin : begin + size])
            frames = frames[begin + size :]

    def _close(self, code: int, reason: str) -> None:
        self.closed = (code, reason)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(message) for message in self.messages]

    @property
    def data(self) -> list[Any]:
        """Of the events that are stored."""
        return [event["data"] for event in self.events if "id" in event and event["event"] != "hello"]

    async def until(self, event: str) -> None:
        await until(lambda: any(b'{"event":"%b"' % event.encode() in message for message in self.messages), event)

    async def over(self) -> int:
        await until(lambda: self.closed is not None, "it is closed")
        assert self.closed is not None
        return self.closed[0]


def sockets() -> int:
    return int(metrics.subscribers.labels("ws")._value.get())


async def test_tokens_come_framed_with_their_last_cursor(node: RunningNode, shared: NodeMux) -> None:
    author = await node.session()
    talker = (await Talker.at(node, shared, author.sid)).listen()
    await talker.until("caught_up")
    await author.start()
    await author.tokens(25)
    await until(lambda: bool(talker.cursors), "the first tokens")  # else all may come as one
    await author.tokens(25)
    await author.done()
    await talker.until("done")
    assert talker.data == [json.loads(data) for data in author.data]
    told = {event["id"]: event["event"] for event in talker.events if "id" in event}
    assert len(talker.cursors) > 1
    assert {told[cursor] for cursor in talker.cursors} == {"token"}


async def test_what_came_before_anybody_listens_is_kept_in_order(node: RunningNode, shared: NodeMux) -> None:
    author = await node.session()
    talker = await Talker.at(node, shared, author.sid)
    await author.answer(50)
    await asyncio.sleep(0.3)  # it is on its way, and nobody asks for it
    talker.listen()
    await talker.until("done")
    assert talker.data == [json.loads(data) for data in author.data]


async def test_who_does_not_read_holds_up_nobody_and_misses_nothing(node: RunningNode, shared: NodeMux) -> None:
    slow, quick = await node.session(), await node.session()
    stuck = (await Talker.at(node, shared, slow.sid)).listen()
    await stuck.until("caught_up")
    stuck.socket.pause()
    going = (await Talker.at(node, shared, quick.sid)).listen()
    await slow.start()
    for _ in range(40):
        await slow.tokens(1, "x" * 20_000)
    await slow.done()
    await quick.answer(100)
    await going.until("done")
    assert going.data == [json.loads(data) for data in quick.data]
    assert sum(map(len, stuck.messages)) <= WINDOW + PIECE + 20_000 * 2
    stuck.socket.resume()
    await stuck.until("done")
    assert stuck.data == [json.loads(data) for data in slow.data]


async def test_a_message_that_is_larger_than_the_window_comes_whole(node: RunningNode, shared: NodeMux) -> None:
    author = await node.session()
    await author.start("y" * (3 * WINDOW))
    await author.done()
    talker = (await Talker.at(node, shared, author.sid)).listen()
    await talker.until("done")
    assert talker.data == [json.loads(data) for data in author.data]


async def test_who_resumes_in_the_middle_of_a_message_gets_it_whole_and_then_what_he_asked_for(
    node: RunningNode, shared: NodeMux
) -> None:
    author = await node.session()
    await author.start("y" * (3 * WINDOW))
    await author.done()
    talker = (await Talker.at(node, shared, author.sid)).listen()
    talker.socket.pause()
    await asyncio.sleep(0.3)  # the message is on its way, as far as there is credit
    talker.socket.send(json.dumps({"event": "resume", "data": {"after": "now"}}).encode())
    await asyncio.sleep(0.3)
    talker.socket.resume()
    await until(lambda: len(talker.messages) >= 4, "what was asked for")
    assert [event["event"] for event in talker.events] == ["hello", "start", "hello", "caught_up"]
    assert talker.data[0] == json.loads(author.data[0])


async def test_a_burst_of_messages_is_heard(node: RunningNode, shared: NodeMux) -> None:
    author = await node.session()
    talker = (await Talker.at(node, shared, author.sid)).listen()
    for _ in range(200):
        talker.socket.send(b'{"event":"ping"}')
    await until(lambda: sum(b'"pong"' in message for message in talker.messages) == 200, "each is answered")
    assert talker.closed is None


async def test_who_leaves_before_he_was_accepted_is_no_error(
    node: RunningNode, shared: NodeMux, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left, admit = asyncio.Event(), App._admit

    async def slowly(*asked: Any) -> Any:
        await left.wait()
        return await admit(*asked)

    monkeypatch.setattr(App, "_admit", slowly)
    author = await node.session()
    socket = shared.socket(f"/v1/sessions/{author.sid}/ws", [f"bearer.{node.token(author.sid)}"])
    with pytest.raises(TimeoutError):
        await socket.greet([(b"host", b"x")], 0.1)
    await asyncio.sleep(0.1)
    left.set()
    beside = (await Talker.at(node, shared, author.sid)).listen()
    beside.socket.send(b'{"event":"ping"}')
    await asyncio.sleep(0.1)
    assert "mux_stream_failed" not in "".join(capsys.readouterr())


async def test_who_leaves_is_gone_at_the_node_and_nobody_else_is(node: RunningNode, shared: NodeMux) -> None:
    author = await node.session()
    before = sockets()
    one, other = [(await Talker.at(node, shared, author.sid)).listen() for _ in range(2)]
    await until(lambda: sockets() == before + 2, "both are there")
    one.socket.close(1000)
    await until(lambda: sockets() == before + 1, "one of two has gone")
    await author.answer(20)
    await other.until("done")
    assert one.closed is None, "who goes is not told"


async def test_a_connection_that_breaks_closes_all_of_them_1006(node: RunningNode, shared: NodeMux) -> None:
    author = await node.session()
    before = sockets()
    talkers = [(await Talker.at(node, shared, author.sid)).listen() for _ in range(3)]
    shared.fail("for a test")
    assert [await talker.over() for talker in talkers] == [1006] * 3
    await until(lambda: sockets() == before, "all have gone")


async def test_a_request_that_is_not_accepted_has_a_status(node: RunningNode, shared: NodeMux) -> None:
    socket = shared.socket("/v1/nothing", [])
    assert (await socket.greet([(b"host", b"x")], DEADLINE)).status == 403


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that looks at no message of a client."""

    async def never(self: WebSocketStream) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(WebSocketStream, "_read", never)


@pytest.mark.usefixtures("deaf")
@pytest.mark.parametrize(
    ("said", "code"),
    [
        ([b"{}"] * (HEARD + 1), 4429),
        ([b"x" * (MAX_HEARD // 3)] * 4, 4429),
        ([b"x" * (MAX_HEARD + 1)], 1009),
        ([b"\xff"], 1007),
    ],
    ids=["many", "much", "one-too-long", "no-text"],
)
async def test_a_client_is_not_listened_to_without_bound(
    node: RunningNode, shared: NodeMux, said: list[bytes], code: int
) -> None:
    author = await node.session()
    talker = (await Talker.at(node, shared, author.sid)).listen()
    beside = (await Talker.at(node, shared, author.sid)).listen()
    for message in said:
        talker.socket.send(message)
    assert await talker.over() == code
    await author.answer(5)
    await beside.until("done")
    assert beside.closed is None


async def test_a_message_for_a_stream_that_is_none_breaks_the_rules(node: RunningNode) -> None:
    rude = await Rude.at(node)
    opening = mux.record(Kind.OPEN, 1, b"GET /v1/models HTTP/1.1\r\n\r\n")
    rude.socket.send(opening + mux.record(Kind.TEXT, 1, b"{}"), text=False)
    await until(lambda: rude.closed, "it is sent away")
    assert rude.closed == 1002
