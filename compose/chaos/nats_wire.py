"""What crosses a NATS client's connection, message by message: some of it can be lost or replaced on purpose.

A `NatsTap` belongs to a link and outlives its connections; it makes a `_Wire` for each. Only what a server sends is
read; what a client sends passes as it is.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

CRLF = b"\r\n"


class Delivered(NamedTuple):
    """One message on its way to a client. `headers`: raw, b"" where there are none."""

    subject: str
    reply: str
    headers: bytes
    payload: bytes


@dataclass
class Loss:
    """A rule: the first `times` messages for which `wanted` holds do not arrive, or arrive as `instead` says."""

    wanted: Callable[[Delivered], bool]
    times: int = 1
    instead: bytes | None = None
    """Headers (`NATS/1.0 …`) of an empty message that comes in its place; None: nothing comes."""
    lost: list[Delivered] = field(default_factory=list)
    happened: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, message: Delivered) -> bool:
        if len(self.lost) >= self.times or not self.wanted(message):
            return False
        self.lost.append(message)
        self.happened.set()
        return True


class NatsTap:
    """Rules for all connections of a link."""

    def __init__(self) -> None:
        self.rules: list[Loss] = []

    def __call__(self) -> _Wire:
        return _Wire(self.rules)

    def lose(self, wanted: Callable[[Delivered], bool], *, times: int = 1, instead: bytes | None = None) -> Loss:
        rule = Loss(wanted, times, instead)
        self.rules.append(rule)
        return rule

    def forget(self, rule: Loss) -> None:
        """Idempotent."""
        if rule in self.rules:
            self.rules.remove(rule)


class _Wire:
    """The server's half of one connection, cut into protocol messages."""

    def __init__(self, rules: list[Loss]) -> None:
        self._rules = rules
        self._rest = b""

    def to_server(self, data: bytes) -> bytes:
        return data

    def to_client(self, data: bytes) -> bytes:
        """Whole messages only; the beginning of one that is not whole waits for its end."""
        data = self._rest + data
        out = []
        at = start = 0
        while True:
            end = data.find(CRLF, at)
            if end < 0:
                break
            line = data[at:end]
            verb = line[:4].upper()
            if verb.startswith(b"MSG") or verb == b"HMSG":
                fields = line.split()
                whole = end + 2 + int(fields[-1]) + 2
                if whole > len(data):
                    break
                if self._rules and (instead := self._judge(fields, data[end + 2 : whole - 2])) is not None:
                    out.append(data[start:at] + instead)
                    start = whole
                at = whole
            elif verb == b"INFO":
                # In a cluster it names the other servers, by which a client would come past this link.
                out.append(data[start:at] + _alone(line) + CRLF)
                start = at = end + 2
            else:
                at = end + 2
        out.append(data[start:at])
        self._rest = data[at:]
        return b"".join(out)

    def _judge(self, fields: list[bytes], body: bytes) -> bytes | None:
        """What comes in the message's place, or None where it may pass."""
        headed = fields[0].upper() == b"HMSG"
        sized = 2 if headed else 1
        reply = fields[3].decode() if len(fields) == 4 + sized else ""
        split = int(fields[-2]) if headed else 0
        message = Delivered(fields[1].decode(), reply, body[:split], body[split:])
        for rule in self._rules:
            if rule.take(message):
                if rule.instead is None:
                    return b""
                size = len(rule.instead)
                head = b" ".join([b"HMSG", *fields[1 : len(fields) - sized], b"%d %d" % (size, size)])
                return head + CRLF + rule.instead + CRLF
        return None


def _alone(line: bytes) -> bytes:
    verb, _, text = line.partition(b" ")
    told = json.loads(text)
    for name in ("connect_urls", "ws_connect_urls"):
        told.pop(name, None)
    return verb + b" " + json.dumps(told, separators=(",", ":")).encode() + b" "
