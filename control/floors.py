"""Floors: noticing that a log is not the one it was, and saying so by a new incarnation.

A log whose last sequence is below what was seen before was restored or lost its end: old cursors name other frames
now. A look only comes every few seconds, so a machine that lost power may have lost what came after the last one: a
new start of the store's machine counts like a loss. What to do is decided in `decide`, which is pure; the floor in KV
`secrets` is what was decided, and the stream follows it, so that replicas that decide at once agree (compare-and-set),
and half a change is finished by the next.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import structlog

from broker.bus.errors import BucketConflict
from broker.bus.kv import Bucket
from broker.bus.log import StreamInfo, stream_info
from broker.bus.nats import Bus
from broker.bus.subjects import log_stream
from control.abreast import abreast
from control.restoring import restore
from control.streams import new_incarnation

ABREAST = 8

log = structlog.get_logger("control")


class Floor(msgspec.Struct, frozen=True):
    """KV `secrets`, key `floor.<pp>`. `replaces`: what the stream is still called if a change is half done.
    `boot`: the start of the store's machine in which this was seen, "" where nobody told. `cut`: the log lost what was
    behind `seq`, and the sessions in it have not been restored yet."""

    seq: int
    incarnation: str
    replaces: str = ""
    boot: str = ""
    cut: bool = False


class Decision(NamedTuple):
    """What to write: a new floor, or None; the incarnation the stream must get, or ""."""

    floor: Floor | None
    incarnation: str


def decide(floor: Floor | None, stream: StreamInfo, fresh: str, boot: str = "") -> Decision:
    """`floor` was read before `stream`: then a healthy stream is never below it. `fresh` is a new incarnation.
    `boot`: the start of the store's machine, "" where it is not known, or cannot have changed since the last look."""
    if floor is not None and stream.incarnation == floor.replaces and floor.replaces:
        return Decision(None, floor.incarnation)
    boot = boot or (floor.boot if floor is not None else "")
    if _lost(floor, stream, boot):
        end = min(stream.last_seq, floor.seq) if floor is not None and floor.cut else stream.last_seq
        return Decision(Floor(end, fresh, stream.incarnation, boot, cut=True), fresh)
    if floor is not None and floor.cut and stream.incarnation == floor.incarnation:
        return Decision(None, "")  # until it is restored
    now = Floor(stream.last_seq, stream.incarnation, boot=boot)
    # A stream with an incarnation of its own was made anew; that one counts.
    if floor is None or stream.incarnation != floor.incarnation or stream.last_seq > floor.seq or boot != floor.boot:
        return Decision(now, "")
    return Decision(None, "")


def _lost(floor: Floor | None, stream: StreamInfo, boot: str) -> bool:
    """Whether frames that somebody has seen may be gone, and their sequences be given to others."""
    if floor is None:
        return stream.last_seq > 0  # nobody writes before the first look: the floor itself was lost
    if stream.incarnation != floor.incarnation:
        return False
    return stream.last_seq < floor.seq or (bool(floor.boot) and boot != floor.boot)


async def keep_floors(bus: Bus, partitions: list[str], name: str = "okome", boot: str = "") -> None:
    """One look at every partition; what a log lost is restored under `name`. Raises BusError."""
    secrets = Bucket(bus, "secrets")
    cuts: dict[str, int] = {}

    async def one(partition: str) -> None:
        floor = await _keep(bus, secrets, partition, boot)
        if floor is not None and floor.cut:
            cuts[partition] = floor.seq

    await abreast(ABREAST, one, partitions)
    if cuts:
        await restore(bus, name, cuts)
        for partition in cuts:
            await secrets.change(f"floor.{partition}", _restored)


def _restored(value: bytes | None) -> bytes | None:
    floor = msgspec.json.decode(value, type=Floor) if value else None
    return msgspec.json.encode(msgspec.structs.replace(floor, cut=False)) if floor and floor.cut else None


async def _keep(bus: Bus, secrets: Bucket, partition: str, boot: str) -> Floor | None:
    """The floor as it is now; None where another replica is changing it."""
    key = f"floor.{partition}"
    entry = await secrets.get(key)
    floor = msgspec.json.decode(entry.value, type=Floor) if entry else None
    stream = await stream_info(bus, log_stream(partition))
    decision = decide(floor, stream, new_incarnation(), boot)
    if decision.floor is not None:
        try:
            if entry is None:
                await secrets.create(key, msgspec.json.encode(decision.floor))
            else:
                await secrets.update(key, msgspec.json.encode(decision.floor), entry.revision)
        except BucketConflict:
            return None  # another replica looked at the same time; what it decided is seen by the next look
    if decision.incarnation:
        await _set_incarnation(bus, partition, decision.incarnation)
        log.warning(
            "log.incarnation_changed", partition=partition, last=stream.last_seq, floor=floor.seq if floor else 0
        )
    return decision.floor or floor


async def _set_incarnation(bus: Bus, partition: str, incarnation: str) -> None:
    name = log_stream(partition)
    config = (await bus.api(f"STREAM.INFO.{name}"))["config"]
    config["metadata"] = (config.get("metadata") or {}) | {"incarnation": incarnation}
    await bus.api(f"STREAM.UPDATE.{name}", config)
