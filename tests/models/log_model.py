"""A reference stream: what JetStream promises of one stream, written down a second time. Pure.

One order of messages; a fence (`Nats-Expected-Last-Subject-Sequence`) that is held against the subject's last sequence
at the moment of storing, whenever that is; a message id that is stored once; nothing that was stored is lost but by a
purge, by age or by an acknowledged job. `tests/models/test_log_model.py` holds it against the real server.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from broker.bus.log import STREAM_FULL, WRONG_LAST_SEQUENCE

FENCE = "Nats-Expected-Last-Subject-Sequence"
MSG_ID = "Nats-Msg-Id"


class Message(NamedTuple):
    """One stored message."""

    seq: int
    subject: str
    data: bytes
    headers: dict[str, str] | None


class Refused(Exception):
    """The stream's answer is an error."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(f"{err_code}: {description}")
        self.answer = {"code": code, "err_code": err_code, "description": description}


class StreamModel:
    """`subjects` may have wildcards. `last_only`: a KV bucket, which keeps the newest message of a subject."""

    def __init__(self, name: str, subjects: str, *, incarnation: str = "", last_only: bool = False) -> None:
        self.name = name
        self.subjects = subjects
        self.incarnation = incarnation
        self.created = incarnation  # changes where the stream is made anew, under whatever name
        self.messages: list[Message] = []
        self.history: list[Message] = []  # everything ever stored, in order
        self.last_seq = 0
        self.full = False  # takes nothing more
        self._last_only = last_only
        self._ids: dict[str, int] = {}

    def store(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> tuple[int, bool]:
        """The sequence, and whether it had been stored before under the same id. Raises Refused."""
        fields = headers or {}
        known = self._ids.get(fields.get(MSG_ID, ""))
        if known is not None:
            return known, True
        if FENCE in fields:
            last = self.last_of(subject)
            if int(fields[FENCE]) != last:
                raise Refused(400, WRONG_LAST_SEQUENCE, f"wrong last sequence: {last}")
        if self.full:
            raise Refused(503, STREAM_FULL, "maximum bytes exceeded")
        self.last_seq += 1
        message = Message(self.last_seq, subject, data, headers)
        if self._last_only:
            self.messages = [kept for kept in self.messages if kept.subject != subject]
        self.messages.append(message)
        self.history.append(message)
        if MSG_ID in fields:
            self._ids[fields[MSG_ID]] = message.seq
        return message.seq, False

    # -- reading ---------------------------------------------------------------------------------------------------

    def of(self, filter: str, after: int = 0, *, lag: int = 0) -> Iterator[Message]:
        """Messages of the subjects that match, behind a sequence. `lag`: as a replica has them that lacks the newest
        so many of the stream."""
        seen = self.messages[: len(self.messages) - lag] if lag else self.messages
        return (message for message in seen if message.seq > after and matches(filter, message.subject))

    def last_of(self, subject: str) -> int:
        return next((message.seq for message in reversed(self.messages) if message.subject == subject), 0)

    def at(self, seq: int) -> Message | None:
        return next((message for message in self.messages if message.seq == seq), None)

    # -- forgetting ------------------------------------------------------------------------------------------------

    def delete(self, seq: int) -> bool:
        before = len(self.messages)
        self.messages = [message for message in self.messages if message.seq != seq]
        return len(self.messages) < before

    def purge(self, subject: str, keep: int = 0) -> None:
        """Forget all but the newest `keep` messages of a subject: a purge, or age."""
        mine = [message.seq for message in self.messages if message.subject == subject]
        gone = set(mine[: len(mine) - keep])
        self.messages = [message for message in self.messages if message.seq not in gone]

    def restored(self, lost: int, incarnation: str) -> StreamModel:
        """The same stream from a copy that lacks the newest `lost` sequences."""
        copy = StreamModel(self.name, self.subjects, incarnation=incarnation)
        copy.created = self.created
        copy.last_seq = max(0, self.last_seq - lost)
        copy.messages = [message for message in self.messages if message.seq <= copy.last_seq]
        copy.history = list(copy.messages)
        return copy


@lru_cache(maxsize=4096)
def matches(filter: str, subject: str) -> bool:
    """NATS wildcards: `*` is one token, `>` all that follow."""
    if filter == subject:
        return True
    wanted, given = filter.split("."), subject.split(".")
    for index, token in enumerate(wanted):
        if token == ">":
            return len(given) > index
        if index >= len(given) or token not in ("*", given[index]):
            return False
    return len(wanted) == len(given)
