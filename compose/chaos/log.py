"""A session's log as the judge reads it: whole, and as its leader has it."""

from __future__ import annotations

import asyncio

from broker.bus.errors import BusError
from broker.bus.frames import Frame, decode_frame
from broker.bus.log import read_all, stream_info
from broker.bus.nats import Bus
from broker.bus.subjects import log_stream, log_subject, partition_of

RETRY_PAUSE = 0.2


async def read_log(bus: Bus, sid: str) -> tuple[list[Frame], str]:
    """Its frames and the incarnation of its stream; asks until NATS answers. The caller has the deadline."""
    stream = log_stream(partition_of(sid))
    while True:
        try:
            stored = await read_all(bus, stream, log_subject(sid))
            info = await stream_info(bus, stream)
            return [decode_frame(message.data, message.seq) for message in stored], info.incarnation
        except BusError:
            await asyncio.sleep(RETRY_PAUSE)
