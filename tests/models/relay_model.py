"""The ingress's side of one event stream over real nodes: the real relay, and legs that end wherever the model says.

A leg is what a real node writes for a real subscriber, byte by byte; the relay gets of it what the model lets flow, and
the browser what it lets arrive. Only sockets and the choice of a node are played.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, MutableMapping
from typing import Any, cast

from prometheus_client import CollectorRegistry

from broker.bus.errors import CursorInvalid
from broker.bus.subjects import Cursor, parse_cursor
from broker.node import sse
from broker.node.events import Event
from broker.node.start import Start
from broker.node.subscriber import Subscriber
from ingress.client import ClientConnection
from ingress.headers import value
from ingress.judgement import Health
from ingress.leg import Leg
from ingress.membership import Member, Nodes
from ingress.metrics import Metrics
from ingress.request import Request
from ingress.settings import IngressSettings
from ingress.stream import End, EventStream
from ingress.trust import Trust
from ingress.upstream import Head, NodeConnection, NodeLost
from tests.models.node_model import NodeModel
from tests.models.session_model import SessionModel
from tests.models.viewer_model import Told

SETTINGS = IngressSettings.model_construct(leg_timeout=5.0, silence_timeout=6.0, connect_timeout=1.0)
METRICS = Metrics(CollectorRegistry())

_TOKEN = re.compile(rb"(id: ([^\n]+)\nevent: token\ndata: [^\n]*\n\n)")


class LegModel:
    """What one node writes, as a connection that the relay reads."""

    def __init__(self, node: NodeModel, session: SessionModel, start: Start, *, until_done: bool) -> None:
        self.id = node.name  # this and the next two as of a member of the table of nodes
        self.health = Health.UP
        self.streams: set[Callable[[], None]] = set()
        self.written = bytearray()
        self.subscriber: Subscriber | None = None
        self._whole = False
        self._given_up = asyncio.Event()
        self._on_body: Callable[[bytes], None] = lambda data: None
        self._on_end: Callable[[NodeLost | None], None] = lambda error: None
        self._on_tokens: Callable[[bytes, bytes], None] = lambda data, cursor: None
        self._partial = b""  # of an event, as it has reached the relay
        self.task = asyncio.create_task(self._serve(node, session, start, until_done))

    async def _serve(self, node: NodeModel, session: SessionModel, start: Start, until_done: bool) -> None:
        tail = await node.serving()
        self.subscriber = Subscriber(tail, node.history, "t", session.sid, start, node.name, until_done=until_done)
        await sse.stream(self.subscriber, self._receive, self._send, [])

    async def _receive(self) -> MutableMapping[str, Any]:
        await self._given_up.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.body":
            self.written += message["body"]
            self._whole = not message.get("more_body")

    # -- what the relay asks of a connection -------------------------------------------------------------------------

    def take(
        self,
        on_body: Callable[[bytes], None],
        on_end: Callable[[NodeLost | None], None],
        on_tokens: Callable[[bytes, bytes], None],
    ) -> None:
        self._on_body, self._on_end, self._on_tokens = on_body, on_end, on_tokens

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def abort(self) -> None:
        self._given_up.set()

    # -- what happens to it ------------------------------------------------------------------------------------------

    def flow(self, count: int) -> None:
        """So many bytes reach the relay; behind the last one the response's end does. Where they are whole tokens, as
        those that a node knows to be such."""
        data = bytes(self.written[:count])
        del self.written[:count]
        begins = not self._partial
        self._partial = (self._partial + data).rpartition(b"\n\n")[2]
        tokens = _TOKEN.findall(data)
        if begins and data and sum(len(raw) for raw, _ in tokens) == len(data):
            self._on_tokens(data, tokens[-1][1])
        elif data:
            self._on_body(data)
        if self._whole and not self.written:
            self._on_end(None)

    def end(self, *, broken: bool) -> None:
        """The node dies, or stops without a word: what it had written is lost."""
        self.written.clear()
        self._given_up.set()
        self._on_end(NodeLost("the model says so") if broken else None)


class _Relay(EventStream):
    """Opens its legs on the nodes of the model."""

    browser: BrowserModel

    async def _open(self, deadline: float, tried: set[str]) -> Leg | None:
        return self.browser.leg_for(self._leg_request(), tried)


class _Nodes:
    """As the relay asks the table of nodes: whether there is another one."""

    def __init__(self, nodes: list[NodeModel]) -> None:
        self._nodes = nodes

    def choose(self, partition: str, tried: set[str]) -> NodeModel | None:
        return next((node for node in self._nodes if node.name not in tried), None)


class BrowserModel:
    """A client of one session over as many relays as it takes. It keeps whole events only, as EventSource does."""

    def __init__(self, session: SessionModel, nodes: list[NodeModel], start: Start, *, until_done: bool) -> None:
        self.told = Told(session)
        self.finished = False
        self.leg: LegModel | None = None
        self.legs = 0
        self.congested = False  # as of a client's connection
        self.on_pause = self.on_resume = None
        self._nodes = nodes
        self._session = session
        self._start = start
        self.until_done = until_done
        self._asked: Cursor | None = None
        self._pipe = bytearray()
        self._partial = b""
        self._moved = asyncio.Event()
        self._relay: _Relay | None = None
        self.task = nodes[0].loop.create_task(self._run())

    async def _run(self) -> None:
        while not self.finished:
            self._moved.clear()
            self._pipe.clear()
            self._partial = b""
            self.told.connected()
            self._asked = self.told.place if self.told.placed else self._start.cursor
            stream = asyncio.create_task(self._stream())
            moved = asyncio.create_task(self._moved.wait())
            await asyncio.wait({stream, moved}, return_when=asyncio.FIRST_COMPLETED)
            for task in (stream, moved):
                task.cancel()
            end, _ = await asyncio.gather(stream, moved, return_exceptions=True)
            if isinstance(end, Exception):
                raise end
            if isinstance(end, End):
                assert end in (End.FINISHED, End.LEAVING), f"its connection was ended: {end}"
                self.receive(len(self._pipe))
                self.finished = end is End.FINISHED
            await asyncio.sleep(0.01)

    async def _stream(self) -> End:
        after = str(self._asked) if self._asked else {"first": "0", "now": "now"}.get(self._start.word, "")
        query = "&".join([f"after={after}"] * bool(after) + ["until=done"] * self.until_done)
        path = f"/v1/sessions/{self._session.sid}/events"
        request = Request("GET", f"{path}?{query}", path, query, [], chunked_ok=False)
        self._relay = _Relay(
            request,
            cast(ClientConnection, self),
            ingress="i",
            nodes=cast(Nodes, _Nodes(self._nodes)),
            trust=cast(Trust, None),
            settings=SETTINGS,
            metrics=METRICS,
        )
        self._relay.browser = self
        return await self._relay.run()

    def leg_for(self, request: Request, tried: set[str]) -> Leg:
        nodes = [node for node in self._nodes if node.name not in tried] or self._nodes
        cursor = value(request.headers, b"last-event-id").decode() or request.after
        start = Start("cursor", parse_cursor(cursor)) if cursor else self._start
        assert not self.finished, "nothing is opened again after the end"
        self.leg = LegModel(nodes[0], self._session, start, until_done=self.until_done)
        self.legs += 1
        return Leg(cast(Member, self.leg), cast(NodeConnection, self.leg), Head(200, []))

    # -- as the relay asks of a client's connection ------------------------------------------------------------------

    def stream(self) -> None: ...
    def stream_over(self) -> None: ...
    def let_go(self, request: Request) -> None: ...

    def write(self, data: bytes) -> None:
        if not data.startswith(b"HTTP/1.1 "):  # the head is one write of its own
            self._pipe += data

    # -- what happens to it ------------------------------------------------------------------------------------------

    def receive(self, count: int) -> None:
        """So many bytes arrive at the browser. Judged whenever an event is whole."""
        data = bytes(self._pipe[:count])
        del self._pipe[:count]
        *events, self._partial = (self._partial + data).split(b"\n\n")
        for event in events:
            self._dispatch(event)

    def _dispatch(self, event: bytes) -> None:
        fields: dict[str, str] = {}
        for line in event.decode().split("\n"):
            name, colon, text = line.partition(":")
            if colon and name:
                fields[name] = text.removeprefix(" ")
        if "data" not in fields or fields.get("event") == "served_by":
            return
        try:
            self.told.take(Event(fields["event"], fields["data"].encode(), fields.get("id", "")), self._asked)
        except (KeyError, ValueError, CursorInvalid) as error:
            raise AssertionError(f"no whole event: {event!r}") from error

    def reconnect(self) -> None:
        """The connection breaks: what had not arrived is lost, and the browser comes back with the last id it has."""
        self._moved.set()

    def ingress_leaves(self) -> None:
        if self._relay is not None:
            self._relay.leave()
