"""What the relay knows of a WebSocket's messages: last cursor, what was shown, which requests are unanswered. Pure.

Messages both ways are `{"event", "id"?, "data"}`; one that is not is passed on as it is, for the node to refuse.
"""

from __future__ import annotations

import json

import msgspec

from broker.bus.frames import TERMINAL
from ingress.sse_leg import Turn

MAX_UNANSWERED = 64


class _Message(msgspec.Struct):
    event: str = ""
    id: str = ""
    data: msgspec.Raw = msgspec.Raw(b"{}")


class _Told(msgspec.Struct):
    """The parts of `data` that matter here."""

    request_id: str = ""
    after: str | None = ""
    earliest: str = ""
    code: str = ""


_message = msgspec.json.Decoder(_Message)
_told = msgspec.json.Decoder(_Told)


_NO_MESSAGE = (msgspec.DecodeError, RecursionError)  # the second: nested more deeply than a parser follows


class TooManyUnanswered(Exception):
    """A client asked MAX_UNANSWERED times without waiting for one answer."""


class Dialogue:
    """One client's conversation, over all legs.

    A stream begins with `hello`: one for each leg, and one for each `resume` that a node is sent. So that each is known
    for what it is, a node is sent the next `resume` only when the stream before has begun. `moving`: the client has
    asked for another stream, and that has not begun. What comes of the one before it meanwhile is not where it goes on.
    """

    def __init__(self, *, after: str = "", until_done: bool = False) -> None:
        self.cursor = after
        self.moving = True  # to its first one
        self.unwanted = False  # what comes is of a stream that the client was not told of
        self.caught_up = False
        self.finished = False
        self.auth = b""  # the last message that authenticated; kept in memory only, for the next leg
        self._until_done = until_done
        self._begins = False  # a node has been asked for a stream, which has not begun
        self._asked = False  # and by the client, who is to be told
        self._resume = b""  # for the node, when it has
        self._unplaced = 0  # messages that were forwarded before any cursor: a later leg begins with them again
        self._again = 0  # of which so many are still to come
        self._unanswered: dict[str, bytes] = {}  # request_id -> the message as it came

    def opening(self) -> None:
        """A leg is asked for, from `cursor` on."""
        self._begins, self._asked = True, self.moving
        self._resume = b""

    def next_resume(self) -> bytes:
        """What the node is to be sent now that its stream has begun, or b""."""
        message, self._resume = self._resume, b""
        if message:
            self._begins = self._asked = True
        return message

    def from_node(self, text: bytes) -> tuple[bytes, Turn, str]:
        """(what to forward, what follows, the code of a `closed`). After JOINED look at `next_resume`."""
        try:
            message = _message.decode(text)
        except _NO_MESSAGE:
            return text, Turn.GO_ON, ""
        turn = Turn.GO_ON
        if message.event == "hello":
            self._begins = False
            self.unwanted = bool(self._resume)
            if self.unwanted or not self._asked:
                self._again = 0 if self.cursor else self._unplaced
                return b"", Turn.JOINED, ""
            self.moving = self._asked = self.caught_up = False
            self._unplaced = self._again = 0
            turn = Turn.JOINED
        elif self.unwanted and (message.id or message.event in ("message", "caught_up", "reset", "queued")):
            return b"", turn, ""
        match message.event:
            case "token":
                pass
            case "message" if self._again:
                self._again -= 1
                return b"", turn, ""
            case "message" if not message.id and not self.cursor:
                self._unplaced += 1
            case "caught_up":
                if self.caught_up:
                    return b"", turn, ""
                self.caught_up = True
            case "served_by":
                return b"", turn, ""
            case "reconnect":
                return b"", Turn.LEAVE, ""
            case "closed":
                return text, Turn.CLOSED, _tell(message.data).code
            case "reset" if not self.moving:
                self.caught_up = False
                self.cursor = _tell(message.data).earliest or self.cursor  # the old one is lost
            case "accepted" | "rejected":
                self._unanswered.pop(_tell(message.data).request_id, None)
            case name if name in TERMINAL and self._until_done and self.caught_up and not self.moving:
                self.finished = True
                turn = Turn.FINISHED
        if message.id and not self.moving:
            self.cursor = message.id
        return text, turn, ""

    def from_client(self, text: bytes, *, leg: bool) -> bool:
        """Remember what a later leg must be told again. Whether the node is to be sent it, now if there is a `leg`;
        else it will be told in another way. Raises TooManyUnanswered.
        """
        try:
            message = _message.decode(text)
        except _NO_MESSAGE:
            return True
        match message.event:
            case "auth":
                self.auth = text
                return leg
            case "resume":
                try:
                    self.cursor = _told.decode(message.data).after or ""
                except _NO_MESSAGE:
                    return True  # the node says what is wrong with it
                self.moving = True
                self._resume = text
                return leg and not self._begins and bool(self.next_resume())
            case "generate" | "cancel":
                request_id = _tell(message.data).request_id
                if request_id and request_id not in self._unanswered:
                    if len(self._unanswered) >= MAX_UNANSWERED:
                        raise TooManyUnanswered
                    self._unanswered[request_id] = text
                    return leg
        return True

    def repeated(self) -> list[bytes]:
        """What a later leg is told first: who asks, if the client has said so, and what was not answered."""
        return [*([self.auth] if self.auth else []), *self._unanswered.values()]


def _tell(data: msgspec.Raw) -> _Told:
    try:
        return _told.decode(data)
    except _NO_MESSAGE:
        return _Told()


def served_by(node: str, ingress: str) -> bytes:
    return json.dumps(
        {"event": "served_by", "data": {"node": node, "ingress": ingress}}, separators=(",", ":")
    ).encode()


def put_off(message: str, retry_after: float) -> bytes:
    """The event `closed` for a client that may come back in `retry_after` seconds."""
    data = {"code": "unavailable", "message": message, "retry_after_ms": int(retry_after * 1000)}
    return json.dumps({"event": "closed", "data": data}, separators=(",", ":")).encode()
