"""What the servers hold for each process: JetStream consumers, subscriptions and connections; and what they store.

What a process has left behind at a server does not show in the process itself, and may outlive it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.exceptions import RedisError

from compose.chaos.gauges import CONSUMERS, Reading
from compose.chaos.http import call
from compose.chaos.system import System
from compose.chaos.whole import Process

SUBSCRIPTIONS = "nats_subscriptions"
POOLED = "redis_connections"
"""A pool of bounded size that never shrinks: each of them is a file at both ends."""
MESSAGES = "stored_messages"
KEYS = "keys"
USED = "used_bytes"
ROLES = frozenset({"control", "node", "worker", "ingress"})
REDIS_TIMEOUT = 5.0

_SHARED = (("okome-", "control"), ("once-", "control"), ("list-", "control"), ("any_", "worker"))
"""How consumers begin that no single process owns, and whose they are."""


async def read(system: System) -> Reading:
    """What does not answer now is left out.

    Of each of our processes `consumers`, `nats_subscriptions` and `redis_connections`; consumers that all of a role
    share are counted under the name of the role. Of a NATS server `stored_messages`, in all and by stream; of Valkey
    `redis_connections` (ours, in all), `keys` and `used_bytes`.
    """
    ours = [one for one in system.processes() if one.role in ROLES]
    found: Reading = {one.id: {CONSUMERS: 0.0} for one in ours}
    async with asyncio.TaskGroup() as tasks:
        for process in system.processes():
            if process.role == "nats":
                tasks.create_task(_nats(process, system.api_key, [one.id for one in ours], found))
            elif process.role == "redis":
                tasks.create_task(_redis(process, system.redis_url, ours, found))
    return found


def owner(name: str, ids: Sequence[str]) -> str:
    """Whose consumer or connection it is, by its name: a process's, a role's, or "" where nobody's of ours."""
    for id in ids:
        if name in (id, f"okome-{id}") or name.startswith((f"tail-{id}-", f"scan-{id}-", f"{id}-", f"lane_{id}_")):
            return id
    return next((role for begin, role in _SHARED if name.startswith(begin)), "")


async def _nats(process: Process, api_key: str, ids: Sequence[str], found: Reading) -> None:
    with contextlib.suppress(OSError, EOFError, ValueError):
        connections = (await call(process.url, "GET", "/connz?limit=4096", api_key)).json()["connections"]
        told = (await call(process.url, "GET", "/jsz?accounts=1&streams=1&consumers=1", api_key)).json()
        for connection in connections:
            if (whose := owner(connection.get("name", ""), ids)) in ids:
                _add(found, whose, SUBSCRIPTIONS, connection["subscriptions"])
        streams: list[dict[str, Any]] = [
            stream for account in told.get("account_details", ()) for stream in account.get("stream_detail") or ()
        ]
        for stream in streams:
            messages = stream["state"]["messages"]
            _add(found, process.id, MESSAGES, messages)
            _add(found, process.id, f'{MESSAGES}{{stream="{stream["name"]}"}}', messages)
            for consumer in stream.get("consumer_detail") or ():
                if whose := owner(consumer["name"], ids):
                    _add(found, whose, CONSUMERS, 1)


def _add(found: Reading, id: str, gauge: str, value: float) -> None:
    held = found.setdefault(id, {})
    held[gauge] = held.get(gauge, 0.0) + value


async def _redis(process: Process, url: str, ours: Sequence[Process], found: Reading) -> None:
    with contextlib.suppress(RedisError, OSError, TimeoutError):
        async with asyncio.timeout(REDIS_TIMEOUT), Redis.from_url(url) as redis:
            memory, keys = await redis.info("memory"), await redis.dbsize()
        sockets = _sockets_to(urlsplit(url).port or 0)
        pooled = {one.id: float(len(sockets & _sockets(one.pid))) for one in ours}
        for id, count in pooled.items():
            _add(found, id, POOLED, count)
        found[process.id] = {POOLED: sum(pooled.values()), USED: float(memory["used_memory"]), KEYS: float(keys)}


def _sockets_to(port: int) -> set[str]:
    """The kernel's names of connections whose other end is `port` of this machine."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {f"socket:[{row[9]}]" for row in rows if int(row[2].rpartition(":")[2], 16) == port}


def _sockets(pid: int) -> set[str]:
    """All sockets of a process; none where it is gone."""
    found = set()
    with contextlib.suppress(OSError):
        for file in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"/proc/{pid}/fd/{file}"))
    return found
