"""Deleting sessions: for good from the first moment on, and to the end whoever dies on the way.

The order is: an intent → the session's record, by compare-and-set: from here on there is no such session, and nobody
gets its place → cancel, say so → records, log → revoke → the intent. Its tokens are void last, so that a client who has
nothing else may ask again; what nobody asks for again is finished from its intent.
"""

from __future__ import annotations

import msgspec
import structlog

from broker.bus.clock import now_ms
from broker.bus.errors import BucketConflict, BusError, BusUnavailable, Refusal
from broker.bus.kv import CHANGE_TRIES, Bucket
from broker.bus.nats import Bus
from broker.bus.operations import OfSession
from broker.bus.records import Generation, Revocation, Session, decode, encode
from broker.bus.subjects import is_session_id, log_stream, log_subject, node_subject, partition_of, worker_subject
from control.keyring import is_tenant
from control.pulse import Pulse
from control.settings import ControlSettings

INTENT_MARK = 60  # seconds that a finished intent's mark is kept: nobody follows them, and each look reads all
INTENT = "deleting"  # the key's first word, before those of the session's; a session's own key has one word less

log = structlog.get_logger("control")


class Deletions:
    """Takes sessions away, with all that belongs to them elsewhere."""

    def __init__(self, bus: Bus, settings: ControlSettings, pulse: Pulse) -> None:
        self._bus = bus
        self._pulse = pulse
        self._sessions = Bucket(bus, "sessions", settings.deleted_life)
        self._intents = Bucket(bus, "sessions", INTENT_MARK)
        self._generations = Bucket(bus, "generations", settings.deleted_life)
        self._revoked = Bucket(bus, "revoked")

    async def delete(self, question: OfSession) -> None:
        """Idempotent until it is finished, and then unknown. Raises Refusal `unknown_session`, and BusError."""
        if not is_session_id(question.sid) or not is_tenant(question.tenant):
            raise _unknown()
        await self._finish(await self._take_away(f"{question.tenant}.{question.sid}"))

    async def finish(self) -> None:
        """What was begun and not finished, by any replica. Raises BusError."""
        for key in await self._intents.all(f"{INTENT}.*.*"):
            _, tenant, sid = key.split(".")
            try:
                await self.delete(OfSession(tenant, sid))
            except Refusal:
                continue  # whoever began it has finished it
            except (
                BusError,
                msgspec.MsgspecError,
                UnicodeDecodeError,
                RecursionError,
            ) as error:  # this one must not keep the others waiting
                log.warning("session.not_deleted", sid=sid, tenant=tenant, error=repr(error))

    async def _take_away(self, key: str) -> Session:
        """The session as it was when it went: now, or when this was begun."""
        intent = f"{INTENT}.{key}"
        for _ in range(CHANGE_TRIES):
            entry = await self._sessions.get(key)
            if entry is None:
                entry = await self._intents.get(intent)
                if entry is None:
                    raise _unknown()
                return decode(entry.value, Session)
            session = decode(entry.value, Session)
            await self._intents.put(intent, entry.value)
            try:
                await self._sessions.delete(key, entry.revision)
            except BucketConflict:  # perhaps a generation was accepted: it is to be cancelled, too
                continue
            return session
        raise BusUnavailable(f"{key} is being changed by too many at once")

    async def _finish(self, session: Session) -> None:
        sid = session.id
        if session.running:
            await self._cancel(sid, session.running)
        await self._nudge(node_subject("all", "ended"), {"sid": sid, "reason": "deleted"})
        for key in await self._generations.keys(f"{sid}.*"):
            await self._generations.delete(key)
        await self._purge(sid)  # whoever writes there loses its fence
        await self._revoked.put(f"sid.{sid}", encode(Revocation(now_ms(), "session deleted")))
        await self._purge(sid)  # of what was begun meanwhile, by a worker that had read its record before
        await self._intents.delete(f"{INTENT}.{session.tenant}.{sid}")
        log.info("session.deleted", sid=sid, tenant=session.tenant)

    async def _purge(self, sid: str) -> None:
        stream = log_stream(partition_of(sid))
        await self._bus.api(f"STREAM.PURGE.{stream}", {"filter": log_subject(sid)}, timeout=5)

    async def _cancel(self, sid: str, gid: str) -> None:
        def edit(value: bytes | None) -> bytes | None:
            if value is None:
                return None
            record = decode(value, Generation)
            if not record.status.open or record.cancel:
                return None
            return encode(msgspec.structs.replace(record, cancel=True))

        await self._generations.change(f"{sid}.{gid}", edit)
        holder = self._pulse.holder(gid)
        if holder:
            await self._nudge(worker_subject(holder, "cancel"), {"sid": sid, "gid": gid})

    async def _nudge(self, subject: str, payload: dict[str, str]) -> None:
        try:
            await self._bus.publish(subject, msgspec.json.encode(payload))
        except BusUnavailable as error:  # never the only copy of anything
            log.debug("nudge.lost", subject=subject, error=str(error))


def _unknown() -> Refusal:
    return Refusal("unknown_session", "there is no such session")
