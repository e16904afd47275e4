"""Many streams on one connection: each is what it would be on its own, and none holds up another."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from broker.bus import mux
from broker.bus.health import Send
from broker.bus.mux import WINDOW, Kind
from broker.node import metrics
from broker.node.app import App
from broker.node.mux import UNSENT, Mux
from broker.node.mux_stream import MuxStream
from ingress.mux import NodeMux, NoMux
from ingress.mux_stream import MuxedStream
from ingress.upstream import NodeLost
from tests.broker.node.shared_door import DEADLINE, Rude, joined, member
from tests.control.okome import until
from tests.fixtures.node import RunningNode


@pytest.fixture
async def shared(node: RunningNode) -> AsyncIterator[NodeMux]:
    async with joined(node) as connection:
        yield connection


class Viewer:
    """Whoever takes one stream's bytes."""

    def __init__(self, stream: MuxedStream) -> None:
        self.stream = stream
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.ended: list[NodeLost | None] = []
        self._grown = asyncio.Event()

    @classmethod
    async def at(
        cls, node: RunningNode, shared: NodeMux, sid: str, query: str = "after=0", *, auth: str = ""
    ) -> Viewer:
        viewer = cls(shared.stream())
        bearer = auth or node.bearer(sid)["authorization"]
        request = f"GET /v1/sessions/{sid}/events?{query} HTTP/1.1\r\nhost: x\r\nauthorization: {bearer}\r\n\r\n"
        head = await viewer.stream.ask(request.encode(), DEADLINE)
        viewer.status, viewer.headers = head.status, dict(head.fields)
        return viewer

    def take(self) -> Viewer:
        self.stream.take(self._take, self._end)
        return self

    def _take(self, data: bytes) -> None:
        self.body += data
        self._grown.set()

    def _end(self, error: NodeLost | None) -> None:
        self.ended.append(error)
        self._grown.set()

    async def until(self, text: str, count: int = 1) -> None:
        """Until so many events with this text are whole: what credit is left may end in the middle of one."""
        async with asyncio.timeout(DEADLINE):
            while self.body.rpartition(b"\n\n")[0].count(text.encode()) < count and not self.ended:
                self._grown.clear()
                await self._grown.wait()

    async def over(self) -> NodeLost | None:
        async with asyncio.timeout(DEADLINE):
            while not self.ended:
                self._grown.clear()
                await self._grown.wait()
        return self.ended[0]

    @property
    def data(self) -> list[str]:
        """Of the events that are stored."""
        blocks = [block for block in self.body.decode().split("\n\n") if block.startswith("id: ")]
        return [block.split("data: ", 1)[1] for block in blocks if "event: hello" not in block]


def viewers(node: RunningNode) -> int:
    return int(metrics.subscribers.labels("sse")._value.get())


async def test_each_of_many_streams_is_what_it_would_be_alone(node: RunningNode, shared: NodeMux) -> None:
    """Histories, live events and ends, of ten sessions at the same time, byte for byte."""
    authors = [await node.session(partition) for partition in ("00", "01") * 5]
    for author in authors[:5]:
        await author.answer(70)
    watching = [(await Viewer.at(node, shared, author.sid)).take() for author in authors]
    async with asyncio.TaskGroup() as tasks:
        for author in authors:
            tasks.create_task(author.answer(70))
    for author, viewer in zip(authors, watching, strict=True):
        await viewer.until("event: done", 2 if author in authors[:5] else 1)
        assert viewer.status == 200
        assert viewer.headers[b"content-type"].startswith(b"text/event-stream")
        assert viewer.data == author.data
        assert not viewer.ended


async def test_an_answer_that_is_no_stream_comes_whole(node: RunningNode, shared: NodeMux) -> None:
    author = await node.session()
    viewer = (await Viewer.at(node, shared, author.sid, auth="Bearer nobody")).take()
    assert await viewer.over() is None
    assert viewer.status == 401
    assert json.loads(viewer.body)["error"]["code"] == "unauthenticated"
    assert int(viewer.headers[b"content-length"]) == len(viewer.body)
    nothing = (await Viewer.at(node, shared, author.sid, "after=now&until=done")).take()
    assert await nothing.over() is None


async def test_who_does_not_read_holds_up_nobody_and_misses_nothing(node: RunningNode, shared: NodeMux) -> None:
    """A stream gets its window and no more until it is read on; the others on the same connection go on."""
    slow, quick = await node.session(), await node.session()
    stuck = (await Viewer.at(node, shared, slow.sid)).take()
    await stuck.until("caught_up")
    stuck.stream.pause()
    going = (await Viewer.at(node, shared, quick.sid)).take()
    await slow.start()
    for _ in range(40):
        await slow.tokens(1, "x" * 20_000)
    await slow.done()
    await quick.answer(100)
    await going.until("event: done")
    assert going.data == quick.data
    assert WINDOW / 2 < len(stuck.body) <= WINDOW + 20_000 * 2
    assert "event: done" not in stuck.body.decode()
    stuck.stream.resume()
    await stuck.until("event: done")
    assert stuck.data == slow.data


async def test_an_event_that_is_larger_than_the_window_comes_whole(node: RunningNode, shared: NodeMux) -> None:
    author = await node.session()
    await author.start("y" * (3 * WINDOW))
    await author.done()
    viewer = (await Viewer.at(node, shared, author.sid)).take()
    await viewer.until("event: done")
    assert viewer.data == author.data


async def test_who_leaves_is_gone_at_the_node_and_nobody_else_is(node: RunningNode, shared: NodeMux) -> None:
    author = await node.session()
    before = viewers(node)
    one, other = [(await Viewer.at(node, shared, author.sid)).take() for _ in range(2)]
    assert viewers(node) == before + 2
    one.stream.abort()
    await until(lambda: viewers(node) == before + 1, "one of two has gone")
    await author.answer(20)
    await other.until("event: done")
    assert other.data == author.data
    assert not one.ended, "who gives up is not told"


async def test_a_connection_that_breaks_is_the_end_of_all_its_streams(node: RunningNode, shared: NodeMux) -> None:
    author = await node.session()
    before = viewers(node)
    watching = [(await Viewer.at(node, shared, author.sid)).take() for _ in range(3)]
    asking = shared.stream()
    shared.fail("for a test")
    assert [str(await viewer.over()) for viewer in watching] == ["for a test"] * 3
    with pytest.raises(NodeLost):
        await asking.ask(b"", DEADLINE)
    with pytest.raises(NodeLost):
        shared.stream()
    await until(lambda: viewers(node) == before, "all have gone")


async def test_a_node_that_leaves_says_so_to_every_stream(node: RunningNode, shared: NodeMux) -> None:
    authors = [await node.session() for _ in range(5)]
    watching = [(await Viewer.at(node, shared, author.sid)).take() for author in authors]
    node.stop.set()
    for viewer in watching:
        assert await viewer.over() is None
        assert b"event: reconnect" in viewer.body


async def test_only_an_ingress_gets_such_a_connection(node: RunningNode) -> None:
    for fields in ([], [(b"x-okome-relay", b"forged")]):
        with pytest.raises(NoMux):
            await NodeMux(member(node), 0.8, lambda stream: None).connect(fields, DEADLINE)


async def test_text_is_no_record(node: RunningNode) -> None:
    rude = await Rude.at(node)
    rude.socket.send(b"{}", text=True)
    await until(lambda: rude.closed, "it is sent away")
    assert rude.closed == 1002


class Wire:
    """Of uvicorn's connection what streams write to, always ready for more."""

    close_sent = False

    def __init__(self) -> None:
        self.writable = asyncio.Event()
        self.writable.set()
        self.written: list[bytes] = []
        self.transport = self

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.written.append(data)


async def test_thousands_that_are_ready_at_once_are_not_one_write() -> None:
    """Each has credit for all that it wants to send; together they take turns of about UNSENT bytes."""
    wire = Wire()
    mux = Mux(failing, {}, cast(WebSocketsSansIOProtocol, wire))
    streams = [MuxStream(mux, id) for id in range(1, 1001)]

    async def send(stream: MuxStream) -> None:
        await stream.send({"type": "http.response.start", "status": 200})
        await stream.send({"type": "http.response.body", "body": b"x" * (WINDOW - 1)})

    async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as tasks:
        for stream in streams:
            tasks.create_task(send(stream))
    await asyncio.sleep(0)
    assert sum(map(len, wire.written)) > 1000 * (WINDOW - 1)
    assert max(map(len, wire.written)) < UNSENT + 2 * WINDOW


async def test_a_request_that_is_none_is_refused_and_the_others_live(node: RunningNode) -> None:
    rude = await Rude.at(node)
    for id, request in enumerate([b"", b"POST / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n"], 1):
        rude.socket.send(mux.record(Kind.OPEN, id, request), text=False)
    rude.socket.send(mux.record(Kind.OPEN, 9, b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"), text=False)
    await until(lambda: (Kind.END, 9, b"") in rude.records, "the good one is answered")
    heads = {id: data[:3] for kind, id, data in rude.records if kind == Kind.HEAD}
    assert heads == {1: b"400", 2: b"400", 3: b"400", 9: b"200"}
    assert (Kind.DATA, 9, b"ok\n") in rude.records
    rude.socket.abort()


@pytest.mark.parametrize(
    "said",
    [
        b"\1",
        mux.record(Kind.DATA, 1, b"x"),
        mux.record(Kind.OPEN, 1, b"GET /v1/sessions/00aaaaaaaa/ HTTP/1.1\r\n\r\n") * 2,
        mux.record(Kind.OPEN, 1, b"GET /v1/models HTTP/1.1\r\n\r\n") + mux.record(Kind.CREDIT, 1, b"x"),
        mux.record(Kind.OPEN, 1, b"GET /v1/models HTTP/1.1\r\n\r\n") + mux.credit(1, 1),
    ],
    ids=["no-record", "not-for-a-node", "twice", "no-credit", "more-than-the-window"],
)
async def test_an_ingress_that_breaks_the_rules_is_sent_away(node: RunningNode, said: bytes) -> None:
    rude = await Rude.at(node)
    rude.socket.send(said, text=False)
    await until(lambda: rude.closed, "it is sent away")
    assert rude.closed == 1002


async def failing(*args: Any) -> None:
    raise ValueError("a mistake of ours")


async def answering_twice(self: Any, sid: str, caller: Any, scope: Any, receive: Any, send: Send, pipe: Any) -> None:
    for _ in range(2):
        await send({"type": "http.response.start", "status": 200, "headers": []})


async def answering_without_a_head(
    self: Any, sid: str, caller: Any, scope: Any, receive: Any, send: Send, _: Any
) -> None:
    await send({"type": "http.response.body", "body": b"x"})


@pytest.mark.parametrize("mistake", [failing, answering_twice, answering_without_a_head])
async def test_what_fails_in_one_stream_breaks_that_one(
    node: RunningNode, shared: NodeMux, monkeypatch: pytest.MonkeyPatch, mistake: Any
) -> None:
    author = await node.session()
    other = (await Viewer.at(node, shared, author.sid)).take()
    monkeypatch.setattr(App, "_events", mistake)
    broken = Viewer(shared.stream())
    asking = asyncio.create_task(
        broken.stream.ask(b"GET /v1/sessions/%b/events HTTP/1.1\r\n\r\n" % author.sid.encode(), 5)
    )
    await asyncio.wait([asking])
    if asking.exception() is None:  # its head had come
        assert isinstance(await broken.take().over(), NodeLost)
    else:
        assert isinstance(asking.exception(), NodeLost)
    await author.answer(5)
    await other.until("event: done")
    assert other.data == author.data
