"""A reference pull consumer: deliveries in order and counted, heartbeats while there are none, and, with explicit
acknowledgement, jobs that come again until somebody says that they are over. Pure: time is an argument."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any, NamedTuple

from tests.models.log_model import Message, StreamModel, matches

Say = Callable[[str, str, bytes, str, dict[str, str] | None], None]
"""(inbox, subject, data, reply, headers): hand a message to whoever listens at that inbox."""


class _Pull:
    """`expires` and `heartbeat` are what was asked for, in nanoseconds."""

    def __init__(self, inbox: str, now: float, batch: int, max_bytes: int, expires: int, idle_heartbeat: int) -> None:
        self.inbox = inbox
        self.left = batch
        self.room = max_bytes
        self.expires = now + expires / 1e9
        self.heartbeat = idle_heartbeat / 1e9
        self.quiet_since = now


class _Held(NamedTuple):
    """A job that was delivered and not acknowledged: when it is delivered again by itself."""

    until: float


class ConsumerModel:
    """One consumer. So many of the next deliveries get lost: on the wire (`lose`), which its count of deliveries shows,
    or before they are counted (`skip`), which only the frames themselves can show."""

    def __init__(self, stream: StreamModel, name: str, config: dict[str, Any]) -> None:
        self.stream = stream
        self.name = name
        self.config = config
        self.seq = 0  # deliveries so far
        self.lose = self.skip = 0
        self._filters: list[str] = config.get("filter_subjects") or [config["filter_subject"]]
        self._pulls: deque[_Pull] = deque()
        self._explicit = config["ack_policy"] == "explicit"
        self._ack_wait = config.get("ack_wait", 0) / 1e9
        self._attempts: dict[int, int] = {}
        self._held: dict[int, _Held] = {}
        self._again: dict[int, float] = {}  # given back: sequence -> when it may be delivered again
        self._after: int
        match config["deliver_policy"]:
            case "by_start_sequence":
                self._after = config["opt_start_seq"] - 1
            case "new":
                self._after = stream.last_seq
            case _:
                self._after = 0

    @property
    def pending(self) -> int:
        return sum(1 for _ in self._waiting())

    @property
    def after(self) -> int:
        """The stream sequence up to which everything has been delivered once."""
        return self._after

    def info(self) -> dict[str, Any]:
        """What the server tells of it."""
        delivered = {"stream_seq": self._after, "consumer_seq": self.seq}
        return {"name": self.name, "config": self.config, "delivered": delivered}

    def pull(self, inbox: str, now: float, say: Say, **asked: int) -> None:
        if asked.pop("no_wait", False):
            self._give(inbox, say, **asked)
        else:
            self._pulls.append(_Pull(inbox, now, **asked))

    def _give(self, inbox: str, say: Say, batch: int, max_bytes: int) -> None:
        """What there is now, and how that ended."""
        status = {"Status": "409", "Description": "Batch Completed", "Nats-Pending-Messages": "0"}
        while batch:
            message = next(self._waiting(), None)
            if message is None:
                status = {"Status": "404", "Description": "No Messages"}
                break
            max_bytes -= len(message.data)
            if max_bytes < 0:
                said = "Message Size Exceeds MaxBytes"
                status = {"Status": "409", "Description": said, "Nats-Pending-Messages": str(batch)}
                break
            self._after = message.seq
            if self.skip:
                self.skip -= 1
                continue
            batch -= 1
            self._send(message, 1, inbox, say)
        say(inbox, inbox, b"", "", status)

    def due(self, now: float) -> float:
        """When `tick` is to be called next. What waits for somebody to pull needs no clock."""
        pulls = [min(pull.expires, pull.quiet_since + pull.heartbeat) for pull in self._pulls]
        jobs = [*(held.until for held in self._held.values()), *(at for at in self._again.values() if at > now)]
        return min([*pulls, *jobs], default=float("inf"))

    def pump(self, now: float, say: Say) -> None:
        """Deliver what there is to whoever asked."""
        while self._pulls:
            pull = self._pulls[0]
            message = self._next(now)
            if message is None:
                return
            if self.skip:
                self.skip -= 1
                continue
            attempts = self._attempts[message.seq] = self._attempts.get(message.seq, 0) + 1
            if self._explicit:
                self._held[message.seq] = _Held(now + self._ack_wait)
            pull.quiet_since = now
            pull.left -= 1
            pull.room -= len(message.data)
            self._pulls.popleft()
            if pull.left and pull.room > 0:
                self._pulls.append(pull)  # whoever asked takes turns
            self._send(message, attempts, pull.inbox, say)
            if pull.left and pull.room <= 0:
                said = "Message Size Exceeds MaxBytes"
                status = {"Status": "409", "Description": said, "Nats-Pending-Messages": str(pull.left)}
                say(pull.inbox, pull.inbox, b"", "", status)

    def tick(self, now: float, say: Say) -> None:
        """Time has passed: heartbeats, pulls that are over, jobs that nobody acknowledged in time."""
        for seq in [seq for seq, held in self._held.items() if held.until <= now]:
            del self._held[seq]
            self._again[seq] = now
        self.pump(now, say)
        for pull in list(self._pulls):
            if pull.expires <= now:
                self._pulls.remove(pull)
                say(pull.inbox, pull.inbox, b"", "", {"Status": "408", "Nats-Pending-Messages": str(pull.left)})
            elif now >= pull.quiet_since + pull.heartbeat:
                pull.quiet_since = now
                beat = {"Status": "100", "Description": "Idle Heartbeat", "Nats-Last-Consumer": str(self.seq)}
                say(pull.inbox, pull.inbox, b"", "", beat)

    def deleted(self, say: Say) -> None:
        for pull in self._pulls:
            say(pull.inbox, pull.inbox, b"", "", {"Status": "409", "Description": "Consumer Deleted"})

    # -- jobs --------------------------------------------------------------------------------------------------------

    def answered(self, seq: int, verdict: bytes, now: float) -> None:
        """An acknowledgement of whichever delivery: a stale one counts like any other."""
        if verdict.startswith(b"+ACK"):
            self.stream.delete(seq)
            self._held.pop(seq, None)
            self._again.pop(seq, None)
        elif verdict.startswith(b"-NAK"):
            if self._held.pop(seq, None) is not None:
                delay = json.loads(verdict[4:])["delay"] / 1e9 if len(verdict) > 4 else 0.0
                self._again[seq] = now + delay
        elif verdict == b"+WPI" and seq in self._held:
            self._held[seq] = _Held(now + self._ack_wait)

    def redeliver_all(self, now: float) -> None:
        """What an election does to jobs that are held: every one is delivered again."""
        for seq in self._held:
            self._again[seq] = now
        self._held.clear()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _send(self, message: Message, attempts: int, inbox: str, say: Say) -> None:
        self.seq += 1
        if self.lose:
            self.lose -= 1
            return
        reply = f"$JS.ACK.{self.stream.name}.{self.name}.{attempts}.{message.seq}.{self.seq}.0.{self.pending}"
        say(inbox, message.subject, message.data, reply, message.headers)

    def _waiting(self) -> Iterator[Message]:
        messages = self.stream.messages
        for index in range(bisect_right(messages, self._after, key=attrgetter("seq")), len(messages)):
            if any(matches(filter, messages[index].subject) for filter in self._filters):
                yield messages[index]

    def _next(self, now: float) -> Message | None:
        for seq in sorted(seq for seq, at in self._again.items() if at <= now):
            del self._again[seq]
            if (message := self.stream.at(seq)) is not None:
                return message
        for message in self._waiting():
            self._after = message.seq
            return message
        return None
