"""A session's log as the judge reads it: whole, and as its leader has it."""

from __future__ import annotations

import math

from broker.bus.frames import Frame, decode_frame
from broker.bus.log import read_all, stream_info
from broker.bus.nats import Bus
from broker.bus.subjects import log_stream, log_subject, partition_of
from compose.chaos.answers import FAILED, answered


async def read_log(bus: Bus, sid: str) -> tuple[list[Frame], str]:
    """Its frames and the incarnation of its stream; asks until NATS answers. The caller has the deadline."""
    stream = log_stream(partition_of(sid))

    async def read() -> tuple[list[Frame], str]:
        stored = await read_all(bus, stream, log_subject(sid))
        info = await stream_info(bus, stream)
        return [decode_frame(message.data, message.seq) for message in stored], info.incarnation

    return await answered(read, timeout=math.inf, again=FAILED)
