"""Endings: the record of a generation follows its log, and a generation that nobody will end is ended here.

OKOME writes frames nowhere else but in `restoring`. Both are fenced: a terminal by the log's last sequence, a record by
its revision, so that a late worker or another replica can only lose.
"""

from __future__ import annotations

import msgspec
import structlog

from broker.bus.clock import after_ms, now_ms
from broker.bus.conversation import new_input
from broker.bus.errors import WrongLastSequence
from broker.bus.frames import START, Frame, decode_frame, encode_frame
from broker.bus.kv import Bucket
from broker.bus.log import read_all, store
from broker.bus.nats import Bus
from broker.bus.records import Generation, Session, Status, decode, encode
from broker.bus.strays import is_stray, last_frame
from broker.bus.subjects import log_stream, log_subject, partition_of, random_id
from control.transcript import Place, closed, end_of, fitting, terminal_data

RECORD_MARGIN = 32 * 1024  # bytes of a message that a record leaves to headers, half of what a request leaves to it

log = structlog.get_logger("control")


class Endings:
    """Ends generations, in the log and in the records. `name` is this replica's, said in a `start` of its own."""

    def __init__(self, bus: Bus, name: str) -> None:
        self._bus = bus
        self._name = name
        self._generations = Bucket(bus, "generations")
        self._sessions = Bucket(bus, "sessions")

    async def last_frame(self, sid: str) -> Frame | None:
        """The log's last frame, read at its leader. Raises BusError, FrameMalformed."""
        return await last_frame(self._bus, sid)

    async def frames(self, record: Generation) -> list[Frame]:
        """The session's frames behind where this generation was accepted."""
        stored = await read_all(self._bus, log_stream(partition_of(record.sid)), log_subject(record.sid), record.after)
        return [decode_frame(message.data, message.seq) for message in stored if not is_stray(message.data)]

    async def close(self, sid: str, gid: str) -> bool:
        """Put the end that the log tells into the record, once. False: the log tells none yet. Raises BusError."""
        entry = await self._generations.get(f"{sid}.{gid}")
        if entry is None:
            return True  # the session was deleted
        record = decode(entry.value, Generation)
        if not record.status.open:
            return True
        told = closed(record, await self.frames(record), now_ms())
        if told is None:
            return False
        told = fitting(told, self._bus.max_payload - RECORD_MARGIN)
        # The session first: a replica that dies in between leaves an open record, which is looked at again.
        await self._sessions.change(f"{record.tenant}.{sid}", lambda value: _released(value, gid))
        kept = await self._generations.change(f"{sid}.{gid}", lambda value: _closed(value, told), read=entry)
        if kept is not None and decode(kept, Generation).ended_at == told.ended_at:
            log.info(
                "generation.closed",
                sid=sid,
                gid=gid,
                status=told.status,
                code=told.code,
                tokens=told.completion_tokens,
                truncated=told.truncated,
                lasted=(told.ended_at - told.created_at) / 1000,
            )
        return True

    async def end(self, record: Generation, kind: str, code: str = "", message: str = "") -> bool:
        """Write the terminal that nobody else will write. False: somebody did write something, look again.

        A generation that nobody began gets its `start` first, so that the log is the whole conversation. Raises
        BusUnavailable where it is not known whether it was written: look again too.
        """
        attempt = random_id(8)
        found = await self.last_frame(record.sid)
        if found is not None and found.gid == record.id:
            if found.terminal:
                return True
            place = end_of(found)
        elif found is not None and not found.terminal:
            return False  # another generation runs here: not ours to end
        else:
            began = await self._begin(record, attempt, found.seq if found else 0)
            if began is None:
                return False
            place = began
        try:
            await self._write(record, kind, attempt, place, code, message)
        except WrongLastSequence:
            return False
        log.warning("generation.ended", sid=record.sid, gid=record.id, status=kind, code=code)
        return True

    async def abandon(self, record: Generation, code: str, message: str) -> None:
        """End a generation in its record alone: nobody can read its log, so no terminal can follow there. Its session
        is free again as far as the records go. Raises BusError."""
        told = msgspec.structs.replace(
            record, status=Status.FAILED, code=code, error=message, ended_at=after_ms(record.created_at)
        )
        await self._sessions.change(f"{record.tenant}.{record.sid}", lambda value: _released(value, record.id))
        await self._generations.change(f"{record.sid}.{record.id}", lambda value: _closed(value, told))
        log.error("generation.abandoned", sid=record.sid, gid=record.id, code=code)

    async def _begin(self, record: Generation, attempt: str, prev: int) -> Place | None:
        data = {
            "epoch": 1,
            "model": record.request.model,
            "worker": self._name,
            "input": msgspec.to_builtins(new_input(record.request)),
            "t": now_ms(),
        }
        payload = encode_frame(START, record.id, 1, attempt, prev, 0, 0, data)
        try:
            seq = await store(self._bus, log_subject(record.sid), payload, expect_last=prev)
        except WrongLastSequence:
            return None
        return Place(1, seq, 0)

    async def _write(self, record: Generation, kind: str, attempt: str, place: Place, code: str, message: str) -> None:
        data = terminal_data(kind, code, message, now_ms())
        payload = encode_frame(kind, record.id, place.epoch, attempt, place.prev, place.offset, 0, data)
        await store(self._bus, log_subject(record.sid), payload, expect_last=place.prev)


def _released(value: bytes | None, gid: str) -> bytes | None:
    """The session without its open generation; a newer one keeps its place."""
    if value is None:
        return None
    session = decode(value, Session)
    if session.running != gid:
        return None
    return encode(msgspec.structs.replace(session, running="", updated_at=after_ms(session.updated_at)))


def _closed(value: bytes | None, told: Generation) -> bytes | None:
    if value is None:
        return None
    record = decode(value, Generation)
    return encode(msgspec.structs.replace(told, cancel=record.cancel)) if record.status.open else None
