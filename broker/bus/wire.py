"""What often goes to and fro on a connection, without the library's detours: publishes out, messages in.

nats-py stays the connection: it connects, reconnects, replays subscriptions and answers pings. But a message that comes
through it costs a regular expression, a parse of its headers, a queue and a task to wake; a publish a coroutine, a
future and another task. Here a message is cut out of what was read and given to its taker at once, and a publish is
one piece of bytes behind those that nats-py has still to write. `python -m bench.blocks` shows both ways side by side.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import structlog
from nats.aio.client import Client
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

log = structlog.get_logger("bus")

MAX_LINE = 1024 * 1024  # bytes of one line of the protocol; the longest is INFO of a large cluster
TURN = 8 * 1024
"""Bytes gone through after which others have their turn: nats-py's read loop goes on for as long as there is more, and
what was taken of a burst is on its way to viewers while the rest is read. At 1 000 x 20 tokens/s the loop of a node is
at most 10 ms late instead of 100."""
LONG = 0.005  # seconds; for every so many that the others' turn takes, the next one here is longer by TURN
MOST_TURNS = 8  # of TURN, that one turn is at most
_M, _H = b"MH"

Headers = dict[str, str]


class Message(Protocol):
    """What everybody may know of a message that came."""

    @property
    def subject(self) -> str: ...

    @property
    def reply(self) -> str: ...

    @property
    def data(self) -> bytes: ...

    @property
    def headers(self) -> Headers | None: ...


class Heard:
    """A message for a taker. Its headers are read when somebody asks: few look at them, and none on a token's way."""

    __slots__ = ("subject", "reply", "data", "_head", "_headers")

    def __init__(self, subject: str, reply: str, data: bytes, head: bytes = b"") -> None:
        self.subject = subject
        self.reply = reply
        self.data = data
        self._head = head
        self._headers: Headers | None = None

    @property
    def headers(self) -> Headers | None:
        if self._headers is None and self._head:
            self._headers = read_headers(self._head)
        return self._headers

    def field(self, name: bytes) -> bytes:
        """One field that the server writes, behind those that a message was stored with, or b"": a fifth of the cost
        of reading all."""
        _, found, rest = self._head.rpartition(b"\r\n%b: " % name)
        return rest[: rest.find(b"\r\n")] if found else b""


def read_headers(head: bytes) -> Headers:
    """`NATS/1.0[ <status>[ <description>]]` and lines of fields, as nats-py names the first two."""
    first, *lines = head.decode("utf-8", "replace").split("\r\n")
    fields: Headers = {}
    status, _, description = first.partition(" ")[2].strip().partition(" ")
    if status:
        fields["Status"] = status
    if description:
        fields["Description"] = description
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            fields[name.strip()] = value.strip()
    return fields


def publish_command(subject: str, reply: str, headers: Mapping[str, str] | None, payload: bytes) -> bytes:
    """The bytes of one publish. Raises ValueError for what would be read as something else."""
    both = subject + reply
    if not subject or not both.isprintable() or " " in both:
        raise ValueError(f"not a subject to publish to, or to answer to: {subject!r}, {reply!r}")
    if not headers:
        return b"%b%b\r\n" % (f"PUB {subject} {reply} {len(payload)}\r\n".encode(), payload)
    head = "NATS/1.0\r\n"
    for name, value in headers.items():
        if not (name + value).isprintable():
            raise ValueError(f"not a header: {name!r}: {value!r}")
        head += f"{name}: {value}\r\n"
    size = len(head if head.isascii() else head.encode()) + 2
    return f"HPUB {subject} {reply} {size} {size + len(payload)}\r\n{head}\r\n".encode() + payload + b"\r\n"


class Inlet(Parser):
    """nats-py's parser, which gives messages of subscriptions that have a taker to it, and all else to nats-py.

    takers: by subscription id as the wire has it. What one raises is logged, and the next message comes all the same.
    """

    def __init__(self, client: Client) -> None:
        self.takers: dict[bytes, Callable[[Heard], None]] = {}
        super().__init__(client)

    def reset(self) -> None:
        super().reset()
        self._held: list[bytes] = []  # the beginning of what is not whole yet ...
        self._missing = 0  # ... and how many bytes at least it lacks
        self._left = TURN  # bytes to go through before others have their turn
        self._resets = getattr(self, "_resets", 0) + 1

    async def parse(self, data: bytes = b"") -> None:
        if self._held:
            self._held.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._held)
            self._held = []
        at, end, resets = 0, len(data), self._resets
        turn = 0  # where this one began
        takers = self.takers
        missing = 1
        while at < end:
            if at - turn >= self._left:
                turn = at
                await self._give_way()
                if self._resets != resets:
                    return
            newline = data.find(b"\r\n", at)
            if newline < 0:
                if end - at > MAX_LINE:
                    raise ProtocolError(f"nats: a line of more than {MAX_LINE} bytes")
                break
            begins = data[at]
            if begins != _M and begins != _H:
                await super().parse(data[at : newline + 2])
                if self._resets != resets:
                    return  # another connection: what is left was said on the one before
                at = newline + 2
                continue
            headed = begins == _H
            reply = b""
            try:  # [H]MSG <subject> <sid> [reply] [bytes of head] <bytes>
                words = data[at:newline].split()
                if len(words) == 5 + headed:
                    reply = words[3]
                elif len(words) != 4 + headed:
                    raise ValueError
                subject, sid, size = words[1], words[2], int(words[-1])
                head = int(words[-2]) if headed else 0
            except (ValueError, IndexError):
                raise ProtocolError("nats: malformed MSG") from None
            start = newline + 2
            stop = start + size
            if stop + 2 > end:
                missing = stop + 2 - end
                break
            taker = takers.get(sid)
            if taker is None:
                header = data[start : start + head] if headed else None
                await self.nc._process_msg(int(sid), subject, reply, data[start + head : stop], header)
                if self._resets != resets:
                    return
            else:
                heard = Heard(subject.decode(), reply.decode(), data[start + head : stop], data[start : start + head])
                try:
                    taker(heard)
                except Exception as error:  # the safety net of the read loop, which would end for good
                    log.error("bus.callback_failed", subject=heard.subject, error=repr(error), exc_info=error)
            at = stop + 2
        if at < end:
            self._held = [data[at:]]
            self._missing = missing
        self._left -= end - turn
        if self._left <= 0:
            await self._give_way()

    async def _give_way(self) -> None:
        began = time.monotonic()
        await asyncio.sleep(0)
        self._left = TURN * min(MOST_TURNS, 1 + int((time.monotonic() - began) / LONG))


class Outlet:
    """Publishes of one client, written together at the end of the loop's turn."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._due = False

    def publish(self, subject: str, payload: bytes, reply: str, headers: Mapping[str, str] | None) -> None:
        """Behind everything that is still to be written. Raises ValueError."""
        command = publish_command(subject, reply, headers, payload)
        self._client._pending.append(command)
        self._client._pending_data_size += len(command)
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        self._due = False
        client = self._client
        pending = client._pending
        if pending and client.is_connected and client._transport is not None:
            client._pending = []
            client._pending_data_size = 0
            try:
                client._transport.writelines(pending)
            except (OSError, RuntimeError):  # the connection is gone: nobody will answer, and whoever waits asks again
                return
