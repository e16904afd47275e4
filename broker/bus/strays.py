"""Strays: messages on a session's subject that are frames of no version, as somebody's `nats pub` leaves there.

Nobody could go on: a writer's fence is the subject's last sequence, and a reader does not know what it has before it.
Nothing of ours is in a stray, so whoever is to write next takes it out (worker, OKOME); whoever only reads passes it
over, and tells OKOME.
"""

from __future__ import annotations

import structlog

from broker.bus.errors import BusUnavailable, StoreRejected
from broker.bus.frames import Frame, decode_frame
from broker.bus.log import NOTHING_FOUND, SEQUENCE_NOT_FOUND, Stored, last
from broker.bus.nats import Bus
from broker.bus.subjects import log_stream, log_subject, partition_of

log = structlog.get_logger("strays")

MOST = 100  # taken out in one go: whoever leaves more is at it still
SHOWN = 40  # bytes of one that are logged
_FAMILY = b"okome/"  # what a frame of another version begins with: that is for those who can read it


def is_stray(payload: bytes) -> bool:
    return not payload.startswith(_FAMILY)


async def last_frame(bus: Bus, sid: str) -> Frame | None:
    """The session's last frame, read at the leader; strays behind it are taken out of the log for good.

    Raises BusError, FrameMalformed (it is of another version).
    """
    stream = log_stream(partition_of(sid))
    for _ in range(MOST):
        stored = await last(bus, stream, log_subject(sid))
        if stored is None:
            return None
        if not is_stray(stored.data):
            return decode_frame(stored.data, stored.seq)
        await _expel(bus, stream, stored)
    raise BusUnavailable(f"the log of {sid} has more and more behind it that is no frame")


async def _expel(bus: Bus, stream: str, stray: Stored) -> None:
    log.error("log.stray_expelled", subject=stray.subject, seq=stray.seq, begins=repr(stray.data[:SHOWN]))
    try:
        await bus.api(f"STREAM.MSG.DELETE.{stream}", {"seq": stray.seq, "no_erase": True})
    except StoreRejected as error:
        if error.err_code not in (SEQUENCE_NOT_FOUND, NOTHING_FOUND):  # else somebody else was quicker
            raise
