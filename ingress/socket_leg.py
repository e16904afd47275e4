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
    after: str = ""
    earliest: str = ""
    code: str = ""


_message = msgspec.json.Decoder(_Message)
_told = msgspec.json.Decoder(_Told)


_NO_MESSAGE = (msgspec.DecodeError, RecursionError)  # the second: nested more deeply than a parser follows


class TooManyUnanswered(Exception):
    """A client asked MAX_UNANSWERED times without waiting for one answer."""


class Dialogue:
    """One client's conversation, over all legs."""

    def __init__(self, *, after: str = "", until_done: bool = False) -> None:
        self.cursor = after
        self.hello = False
        self.caught_up = False
        self.finished = False
        self._until_done = until_done
        self._auth = b""  # a first message that authenticated; kept in memory only, for the next leg
        self._unanswered: dict[str, bytes] = {}  # request_id -> the message as it came

    def from_node(self, text: bytes) -> tuple[bytes, Turn, str]:
        """(what to forward, what follows, the code of a `closed`)."""
        try:
            message = _message.decode(text)
        except _NO_MESSAGE:
            return text, Turn.GO_ON, ""
        turn = Turn.GO_ON
        match message.event:
            case "token":
                pass
            case "hello":
                if self.hello:
                    return b"", Turn.JOINED, ""
                self.hello = True
                turn = Turn.JOINED
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
            case "reset":
                self.caught_up = False
                self.cursor = _tell(message.data).earliest or self.cursor  # the old one is lost
            case "accepted" | "rejected":
                self._unanswered.pop(_tell(message.data).request_id, None)
            case name if name in TERMINAL and self._until_done and self.caught_up:
                self.finished = True
                turn = Turn.FINISHED
        if message.id:
            self.cursor = message.id
        return text, turn, ""

    def from_client(self, text: bytes) -> None:
        """Remember what a later leg must be told again; raises TooManyUnanswered."""
        try:
            message = _message.decode(text)
        except _NO_MESSAGE:
            return
        match message.event:
            case "auth":
                self._auth = text
            case "resume":
                after = _tell(message.data).after
                self.cursor = after if "-" in after else ""
                self.hello = self.caught_up = False  # history is told anew, with its beginning and its end
            case "generate" | "cancel":
                request_id = _tell(message.data).request_id
                if request_id and request_id not in self._unanswered:
                    if len(self._unanswered) >= MAX_UNANSWERED:
                        raise TooManyUnanswered
                    self._unanswered[request_id] = text

    def repeated(self, *, admitted: bool) -> list[bytes]:
        """What a later leg is told first: who asks, unless the ingress can show that, and what was not answered."""
        return [*([self._auth] if self._auth and not admitted else []), *self._unanswered.values()]


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
