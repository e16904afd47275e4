"""Whether a system serves as it should: asked over HTTP, of every part that can be asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from compose.chaos.http import call

LOOK_INTERVAL = 0.05


class Process(NamedTuple):
    """One process of a system, as it is now."""

    id: str
    role: str
    pid: int
    restarts: int
    url: str


class NotBack(Exception):
    """A part did not come back in time."""


async def until(holds: Callable[[], object]) -> None:
    """Wait until something holds that no event tells of; may be a coroutine function. The caller's deadline."""
    while True:
        answer = holds()
        if asyncio.iscoroutine(answer):
            answer = await answer
        if answer:
            return
        await asyncio.sleep(LOOK_INTERVAL)


async def placed(processes: Sequence[Process], api_key: str) -> bool:
    """Every ingress places streams on every node."""
    return await _all_tell(processes, api_key, 'okome_ingress_nodes{state="up"}')


async def joined(processes: Sequence[Process], api_key: str) -> bool:
    """Every ingress has the connection to every node that its streams share."""
    return await _all_tell(processes, api_key, "okome_ingress_node_connections_shared")


async def _all_tell(processes: Sequence[Process], api_key: str, gauge: str) -> bool:
    """Whether this gauge of every ingress is the number of nodes."""
    nodes = sum(one.role == "node" for one in processes)
    for ingress in processes:
        if ingress.role != "ingress":
            continue
        try:
            answer = await call(ingress.url, "GET", "/metrics", api_key)
        except (OSError, EOFError):
            return False
        if f"\n{gauge} {float(nodes)}\n".encode() not in answer.body:
            return False
    return True


async def answering(processes: Sequence[Process], api_key: str) -> bool:
    """OKOME admits, and a worker is there: what a client asks next is not put off."""
    for part in processes:
        if part.role not in ("control", "node", "worker"):
            continue
        try:
            if (await call(part.url, "GET", "/readyz", api_key)).status != 200:
                return False
        except (OSError, EOFError):
            return False
    return True
