"""Who belongs to a system of which only NATS is known: what stream nodes wrote of themselves, and who beats."""

from __future__ import annotations

import asyncio
import contextlib
from typing import NamedTuple

import msgspec

from broker.bus.kv import Bucket
from broker.bus.nats import Msg
from broker.bus.records import Beat, Node, decode
from broker.bus.subjects import REPLICA_PREFIX, beat_subject
from compose.cli.operate import connected
from compose.cli.target import Target

LISTENING = 1.0  # seconds: four beats


class Roster(NamedTuple):
    nodes: list[Node]
    workers: list[Beat]
    replicas: list[str]
    """Of OKOME, by their ids."""


async def look(target: Target) -> Roster:
    """Raises BusError where NATS, or what it keeps of nodes, does not answer."""
    beats: dict[str, Beat] = {}

    async def hear(msg: Msg) -> None:
        try:
            beat = decode(msg.data, Beat)
        except msgspec.DecodeError:
            return
        if beat.part == 0:  # the others say nothing of models
            beats[beat.worker] = beat

    async with connected(target) as bus:
        await bus.subscribe(beat_subject("*"), hear)
        entries = await Bucket(bus, "nodes").all()
        await asyncio.sleep(LISTENING)
    nodes = []
    for _, entry in sorted(entries.items()):
        with contextlib.suppress(msgspec.DecodeError):  # not a node's
            nodes.append(decode(entry.value, Node))
    names = sorted(beats)
    return Roster(
        nodes,
        [beats[name] for name in names if not name.startswith(REPLICA_PREFIX)],
        [name.removeprefix(REPLICA_PREFIX) for name in names if name.startswith(REPLICA_PREFIX)],
    )
