"""A client that watches one session, over as many connections as it takes, and judges everything that it is told."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from broker.bus.errors import BusError
from broker.bus.frames import START, Frame
from broker.bus.subjects import Cursor, parse_cursor
from broker.node.events import Event
from broker.node.pacer import Pacer
from broker.node.start import Start
from broker.node.subscriber import Subscriber
from tests.models.node_model import NodeModel
from tests.models.session_model import SessionModel

WRONG = (  # the words in which `Told` says what is wrong, and a model what is missing in the end
    "was shown last|no turn is left out|comes once|ends once|honoured exactly|is not in the log|byte for byte"
    "|never a mixture|the place where it is said|has not ended|the end is missing"
)
RETRY = 0.05  # seconds until a client comes back whose connection ended


class Told:
    """What one client has been told. Every event must follow from the place where the one before it left off."""

    def __init__(self, session: SessionModel) -> None:
        self.session = session
        self.place = Cursor("", 0)  # everything up to here has been shown, or was known before
        self.placed = False  # it could come back there: a hello that says no place is of a stream that begins anew
        self.shown = 0
        self.resets = 0
        self.greeted = self.caught_up = False
        self.names: list[str] = []
        self._hello: Cursor | None = None

    def connected(self) -> None:
        """The client has another connection, which begins with `hello`."""
        self.greeted = self.caught_up = False

    def take(self, event: Event, asked: Cursor | None) -> None:
        """`asked`: the cursor with which this connection began."""
        self.names.append(event.name)
        data: dict[str, Any] = json.loads(event.data)
        match event.name:
            case "hello":
                assert not self.greeted, "hello comes once in a connection"
                self.greeted = True
                assert data.get("cursor", "") == event.cursor
                self.placed = bool(event.cursor)
                self.place = parse_cursor(event.cursor or data["earliest"])
                self._hello = self.place if self.placed else None
            case "reset":
                self.caught_up = False
                self.place = parse_cursor(data["earliest"])
                # Those of a node that has not noticed yet that the log is another one do not count.
                self.resets += self.place.incarnation == self.session.incarnation
            case "caught_up":
                assert not self.caught_up, "history ends once"
                self.caught_up = True
                said = parse_cursor(data["cursor"])
                assert said == self.place, f"history ends at {said}, and {self.place} was shown last"
            case "message":
                self._message(parse_cursor(event.cursor), data)
            case "reconnect":
                there = parse_cursor(data["cursor"]) if data["cursor"] else None
                assert there == (self.place if self.place.incarnation else asked), "the place where it is said"
            case "queued" | "closed":
                assert not event.cursor
            case _:
                self._frame(parse_cursor(event.cursor), event)
        if asked is not None and event.name not in ("hello", "reset") and self._hello is not None:
            assert self._hello == asked or self.names[-2] == "reset", "a cursor is honoured exactly, or `reset`"
        if event.name != "hello":
            self._hello = None
            placed = bool(event.cursor) or event.name in ("caught_up", "reset")
            self.placed = (self.placed or placed) and bool(self.place.incarnation)

    def _frame(self, cursor: Cursor, event: Event) -> None:
        frame = self.session.frames.get((cursor.incarnation, cursor.sequence))
        if cursor.incarnation != self.session.incarnation and not self._follows(frame, event):
            # Its node has not noticed yet that the log is another one, perhaps not the first since. What it shows has
            # the old log's name, so a `reset` takes it back; and it is no invention.
            since = self._stored_since(cursor)
            assert since, f"{cursor} is not in the log"
            assert (event.name, event.data) in [(frame.type, frame.data) for frame in since]
        else:
            assert frame is not None, f"{cursor} is not in the log"
            assert (event.name, event.data) == (frame.type, frame.data), "byte for byte"
            assert cursor.incarnation == self.place.incarnation, "never a mixture of two logs"
            assert frame.prev == self.place.sequence, f"{cursor} follows {frame.prev}, and {self.place} was shown last"
        self.place = cursor
        self.shown += 1

    def _stored_since(self, cursor: Cursor) -> list[Frame]:
        """What stood at this sequence in this log, or in one that came after it."""
        logs = list(dict.fromkeys(incarnation for incarnation, _ in self.session.frames))
        later = logs[logs.index(cursor.incarnation) :] if cursor.incarnation in logs else logs
        stored = [self.session.frames.get((incarnation, cursor.sequence)) for incarnation in later]
        return [frame for frame in stored if frame is not None]

    def _follows(self, frame: Frame | None, event: Event) -> bool:
        return frame is not None and frame.data == event.data and frame.prev == self.place.sequence

    def _message(self, cursor: Cursor, data: dict[str, Any]) -> None:
        """A finished turn in one piece: what its frames say, none of them left out."""
        turn = [
            frame
            for (incarnation, _), frame in self.session.frames.items()
            if (incarnation, frame.gid) == (cursor.incarnation, data["generation_id"])
        ]
        if data["role"] == "user":
            assert turn[0].type == START
            assert turn[0].seq == cursor.sequence
            assert turn[0].prev == self.place.sequence, "no turn is left out"
        else:
            assert turn[-1].terminal
            assert turn[-1].seq == cursor.sequence
            text = "".join(frame.fields()["text"] for frame in turn if frame.type == "token")
            assert data["content"] == text
        assert cursor.incarnation == self.place.incarnation
        self.place = cursor


class ViewerModel:
    """One client. It takes a batch when it may (`allow`), or everything (`free`), and comes back when it is cut off."""

    def __init__(self, session: SessionModel, nodes: list[NodeModel], start: Start, *, paced: bool = False) -> None:
        self.told = Told(session)
        self.subscriber: Subscriber | None = None
        self.changes_at = session.changes
        self._nodes = nodes
        self._start = start
        self._paced = paced
        self._allowed = asyncio.Semaphore(0)
        self._free = False
        self._moved = asyncio.Event()
        self.task = nodes[0].loop.create_task(self._run())

    def allow(self) -> None:
        self._allowed.release()

    def free(self) -> None:
        self._free = True
        self._allowed.release()

    def move(self) -> None:
        """The connection is cut; the client goes to the next node with what it has."""
        self._moved.set()

    def leave(self) -> None:
        """Its node drains: it says where to go on, and ends the connection."""
        if self.subscriber is not None:
            self.subscriber.leave(0)

    def close(self) -> None:
        self.task.cancel()
        if self.task.done() and not self.task.cancelled():
            self.task.exception()  # of one that is not the first to fail

    async def _run(self) -> None:
        start, node = self._start, 0
        while True:
            self._moved.clear()
            stream = asyncio.create_task(self._watch(self._nodes[node % len(self._nodes)], start))
            moved = asyncio.create_task(self._moved.wait())
            try:
                await asyncio.wait({stream, moved}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (stream, moved):
                    task.cancel()
                result, _ = await asyncio.gather(stream, moved, return_exceptions=True)
            if isinstance(result, AssertionError):
                raise result
            if isinstance(result, Exception) and not isinstance(result, (BusError, TimeoutError)):
                raise result
            node += 1
            if self.told.placed:
                start = Start("cursor", self.told.place)
            await asyncio.sleep(RETRY)

    async def _watch(self, node: NodeModel, start: Start) -> None:
        pacer = Pacer(0.05) if self._paced else None
        session = self.told.session
        tail = await node.serving()
        subscriber = Subscriber(tail, node.history, "t", session.sid, start, node.name, pacer=pacer)
        self.subscriber = subscriber
        self.told.connected()
        try:
            async for batch in subscriber.events():
                for event in batch:
                    self.told.take(event, start.cursor)
                if not self._free:
                    await self._allowed.acquire()
        finally:
            self.subscriber = None
