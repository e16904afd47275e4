"""Reaching a node: choose one, send it a request, and go on to the next one where it fails, until a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from ingress.headers import ADMISSION, value
from ingress.membership import Member, Nodes
from ingress.upstream import Connection, Head, NodeLost

PAUSE = 0.05
"""Seconds before the same nodes are tried again, when all have failed."""
MAX_PROBLEM = 64 * 1024


class NoNode(Exception):
    """No node could be had within the deadline."""


class Undecided(Exception):
    """The node was lost after it may have carried out a request that must not be sent twice."""


@dataclass(slots=True)
class Leg:
    """One response of one node, its head read, its body not yet taken."""

    member: Member
    connection: Connection
    head: Head

    @property
    def admission(self) -> bytes:
        return value(self.head.fields, ADMISSION)

    @property
    def is_event_stream(self) -> bool:
        return value(self.head.fields, b"content-type").split(b";")[0].strip().lower() == b"text/event-stream"


async def reach(
    nodes: Nodes,
    partition: str,
    payload: Callable[[Member], bytes],
    *,
    deadline: float,
    timeout: float,
    repeatable: bool,
    bodiless: bool = False,
    shared: bool = False,
    excluding: set[str] | None = None,
) -> Leg:
    """The first leg that a node gives; raises NoNode at `deadline` (loop time), Undecided.

    `timeout` seconds are given to each node until its response begins. `excluding` are nodes not to be asked at first;
    it is written to. `payload` makes the request anew for each node. `shared`: on the connection that all streams to a
    node share; it must be a GET without a body.
    """
    loop = asyncio.get_running_loop()
    tried = excluding if excluding is not None else set()
    fresh = False
    while True:
        member = nodes.choose(partition, tried)
        if member is None:
            left = deadline - loop.time()
            if left <= 0:
                raise NoNode("no stream node is live")
            await nodes.changed(min(left, PAUSE) if tried else left)
            tried.clear()
            continue
        reused = False
        try:
            connection = await (nodes.stream if shared else nodes.connect)(member, fresh=fresh)
            reused = connection.used and not fresh
            head = await connection.ask(payload(member), timeout, bodiless=bodiless)
            return Leg(member, connection, head)
        except NodeLost as lost:
            if not repeatable and not lost.unsent:
                raise Undecided(str(lost)) from lost
            fresh = reused and not lost.refused  # a kept connection may just have been closed: the node may be well
            if not fresh:
                tried.add(member.id)
        except TimeoutError as late:
            if not repeatable:
                raise Undecided("no answer in time") from late
            tried.add(member.id)
            if loop.time() >= deadline:
                raise NoNode("no stream node answers in time") from late


async def read_problem(connection: Connection, timeout: float) -> bytes:
    """The body of an error answer, at most MAX_PROBLEM bytes; b"" where it does not come."""
    whole: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    parts: list[bytes] = []

    def body(data: bytes) -> None:
        parts.append(data)
        if sum(map(len, parts)) > MAX_PROBLEM and not whole.done():
            whole.set_result(None)

    def end(error: NodeLost | None) -> None:
        if not whole.done():
            whole.set_result(None)

    connection.take(body, end)
    try:
        async with asyncio.timeout(timeout):
            await whole
    except TimeoutError:
        return b""
    finally:
        connection.abort()
    return b"".join(parts)
