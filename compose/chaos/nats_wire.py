"""What crosses a NATS client's connection, message by message: some of it can be lost or replaced on purpose.

A `NatsTap` belongs to a link and outlives its connections; it is the link's `wire` and reads each of them. Everything
that no rule takes passes byte for byte, but for one thing: in a cluster a server's INFO names the other servers
(`connect_urls`), and a client that knows them reconnects past the link, so these names are taken out.

Both directions are read from boundary to boundary all the time, because the middle of a stream does not say where a
message begins. While there is no rule, a message is let through as it comes; with one, it is held until it is whole
(and lost if its connection ends before that). What is not the client protocol (TLS, a route) passes unread, and no rule
applies to it.
"""

from __future__ import annotations

import asyncio
import enum
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

CRLF = b"\r\n"
LINE_LIMIT = 64 * 1024
"""Bytes in a control line. A server takes 4 096 from a client; the INFO of a large cluster is longer."""

# Verbs by three letters: more do not tell them apart.
WITH_PAYLOAD = frozenset({b"MSG", b"HMS", b"PUB", b"HPU"})
BARE = frozenset({b"PIN", b"PON", b"+OK", b"-ER", b"CON", b"SUB", b"UNS"})
INFO = b"INF"


class Direction(enum.Enum):
    TO_CLIENT = "to client"  # MSG, HMSG
    TO_SERVER = "to server"  # PUB, HPUB


class Message(NamedTuple):
    """One message on its way. `headers`: raw, from `NATS/1.0` to the empty line; b"" where there are none."""

    direction: Direction
    subject: str
    reply: str
    headers: bytes
    payload: bytes


@dataclass
class Loss:
    """A rule: the first `times` messages for which `wanted` holds do not arrive, or arrive as `instead` says."""

    wanted: Callable[[Message], bool]
    direction: Direction
    times: int
    instead: bytes | None
    payload: bytes
    lost: list[Message] = field(default_factory=list)
    happened: asyncio.Event = field(default_factory=asyncio.Event)
    """The first one is lost."""

    def takes(self, message: Message) -> bool:
        if message.direction is not self.direction or len(self.lost) >= self.times or not self.wanted(message):
            return False
        self.lost.append(message)
        self.happened.set()
        return True


class NatsTap:
    """Rules for all connections of a link."""

    def __init__(self) -> None:
        self.rules: list[Loss] = []

    def __call__(self) -> NatsWire:
        return NatsWire(self)

    def lose(
        self,
        wanted: Callable[[Message], bool],
        *,
        times: int = 1,
        direction: Direction = Direction.TO_CLIENT,
        instead: bytes | None = None,
        payload: bytes = b"",
    ) -> Loss:
        """`instead`: raw headers of what comes in a lost message's place, on its subject, with this `payload`.

        With b"" it has no headers; with None nothing comes. `wanted` must not raise. A message that has begun to pass
        when the rule is made is not seen by it.
        """
        rule = Loss(wanted, direction, times, instead, payload)
        self.rules.append(rule)
        return rule

    def forget(self, rule: Loss) -> None:
        """Idempotent; a rule that has had its `times` is forgotten by itself."""
        if rule in self.rules:
            self.rules.remove(rule)

    def judge(self, message: Message) -> Loss | None:
        """The rule that takes it."""
        for rule in self.rules:
            if rule.takes(message):
                if len(rule.lost) >= rule.times:
                    self.forget(rule)
                return rule
        return None


class NatsWire:
    """One connection, both ways."""

    def __init__(self, tap: NatsTap) -> None:
        self.to_client = _Reader(tap, Direction.TO_CLIENT).read
        self.to_server = _Reader(tap, Direction.TO_SERVER).read


class _Reader:
    """One direction, cut where messages begin. Its work is linear in the bytes, however they are split."""

    def __init__(self, tap: NatsTap, direction: Direction) -> None:
        self._tap = tap
        self._direction = direction
        self._passing = 0  # bytes still to come of a message that is let through
        self._held: list[bytes] = []  # from the beginning of a message or line that is not whole
        self._missing = 0  # bytes to come before it is worth looking again
        self._foreign = False  # not the client protocol

    def read(self, data: bytes) -> bytes:
        """What may go on now."""
        if self._foreign:
            return data
        if self._passing >= len(data):
            self._passing -= len(data)
            return data
        if self._held:
            self._held.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return b""
            data = b"".join(self._held)
            self._held = []
        out: list[bytes] = []
        start = 0  # of what is not in `out` yet
        at = self._passing  # a boundary
        size = len(data)
        self._passing = 0
        while at < size:
            end = data.find(CRLF, at)
            if end < 0 and size - at <= LINE_LIMIT and _may_begin(data[at : at + 3].upper()):
                self._hold(data[at:], 1)
                break
            line = data[at:end] if end >= 0 else b""
            behind = _behind(line)
            if behind is None:
                self._foreign = True
                at = size
                break
            after = end + len(CRLF) + behind
            if behind and self._tap.rules:
                if after > size:
                    self._hold(data[at:], after - size)
                    break
                body = data[end + len(CRLF) : after - len(CRLF)]
                rule = self._tap.judge(_message(self._direction, line, body))
                if rule is not None:
                    out += (data[start:at], _instead(rule, line))
                    start = after
            elif line[:3].upper() == INFO:
                out += (data[start:at], _alone(line))
                start = end
            at = after
        if at > size:
            self._passing = at - size
        out.append(data[start:at])
        return b"".join(out)

    def _hold(self, data: bytes, missing: int) -> None:
        self._held.append(data)
        self._missing = missing


def _may_begin(begun: bytes) -> bool:
    """A line that begins so may become one of the protocol's."""
    return any(verb.startswith(begun) for verb in (INFO, *WITH_PAYLOAD, *BARE))


def _behind(line: bytes) -> int | None:
    """How many bytes follow this control line. None: it is not one of the protocol's."""
    verb = line[:3].upper()
    if verb in WITH_PAYLOAD:
        size = line.rsplit(None, 1)[-1]  # with headers, their bytes are counted in it
        return int(size) + len(CRLF) if size.isdigit() else None
    return 0 if verb in BARE or verb == INFO else None


def _message(direction: Direction, line: bytes, body: bytes) -> Message:
    """`MSG subject sid [reply] size`, `HMSG subject sid [reply] headers size`; `PUB` and `HPUB` have no sid."""
    fields = line.split()
    headed = fields[0][:1] in b"Hh"
    sizes = 2 if headed else 1
    before = 3 if direction is Direction.TO_CLIENT else 2
    reply = fields[before].decode(errors="replace") if len(fields) == before + 1 + sizes else ""
    split = int(fields[-2]) if headed else 0
    return Message(direction, fields[1].decode(errors="replace"), reply, body[:split], body[split:])


def _instead(rule: Loss, line: bytes) -> bytes:
    """What comes in the place of the message with this control line."""
    if rule.instead is None:
        return b""
    fields = line.split()
    headed = fields[0][:1] in b"Hh"
    verb = fields[0][1:] if headed else fields[0]
    whose = fields[1 : -2 if headed else -1]
    body = rule.instead + rule.payload
    if rule.instead:
        head = b" ".join([b"H" + verb, *whose, b"%d %d" % (len(rule.instead), len(body))])
    else:
        head = b" ".join([verb, *whose, b"%d" % len(body)])
    return head + CRLF + body + CRLF


def _alone(line: bytes) -> bytes:
    """An INFO line that names no other server; as it was, where it does not."""
    verb, _, text = line.partition(b" ")
    try:
        told = json.loads(text)
    except ValueError:
        return line
    if not {"connect_urls", "ws_connect_urls"} & told.keys():
        return line
    for name in ("connect_urls", "ws_connect_urls"):
        told.pop(name, None)
    return verb + b" " + json.dumps(told, separators=(",", ":")).encode() + b" "
