"""What a node does for a client besides streaming: the verbs behind HTTP routes and WebSocket messages.

Changes are asked of OKOME; reads and cancel need only the buckets, so they work while OKOME is down.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

import msgspec
import structlog

from broker.bus import operations as ops
from broker.bus.errors import BusUnavailable, Refusal
from broker.bus.kv import Bucket, Entry
from broker.bus.nats import Bus
from broker.bus.records import Generation, Model, Session, encode
from broker.bus.records import decode as decode_record
from broker.bus.subjects import is_session_id, log_stream, partition_of, worker_subject
from broker.node.access import Principal, check_opens, check_session_id
from broker.node.beats import Beats
from broker.node.history import History, besides
from broker.node.inputs import GenerationBody, SessionBody, SessionPatch
from broker.node.warmth import Warmth

SUBMIT_TIMEOUT = 5.0

log = structlog.get_logger("node")

Kind = TypeVar("Kind", bound=msgspec.Struct)


class Operations:
    """Stateless but for its bus. Every verb raises Refusal; BusError is turned into 503 at the edge."""

    def __init__(self, bus: Bus, history: History, beats: Beats, warmth: Warmth) -> None:
        self._bus = bus
        self._history = history
        self._beats = beats
        self._warmth = warmth
        self._sessions = Bucket(bus, "sessions")
        self._generations = Bucket(bus, "generations")
        self._models = Bucket(bus, "models")

    # -- sessions --------------------------------------------------------------------------------------------------

    async def create_session(self, who: Principal, body: SessionBody, idempotency_key: str) -> ops.SessionToken:
        self._whole_tenant(who)
        question = ops.CreateSession(
            who.tenant,
            body.model,
            body.title,
            body.metadata,
            body.on_disconnect,
            body.id,
            _own(who, idempotency_key),
            who.subject,
        )
        self._fits(question)
        return await self._bus.ask("session_create", question, ops.SessionToken, timeout=SUBMIT_TIMEOUT)

    async def token(self, who: Principal, sid: str) -> ops.SessionToken:
        self._known(who, sid, write=True)
        return await self._bus.ask("session_token", ops.OfSession(who.tenant, sid, who.subject), ops.SessionToken)

    async def ticket(self, who: Principal, sid: str, scope: str) -> ops.TicketCreated:
        self._known(who, sid, write=scope == "write")
        until = 0 if who.scope == "write" else who.expires_at  # who may only read cannot make his own token last
        question = ops.CreateTicket(who.tenant, "session", sid, scope, who.subject, until)
        return await self._bus.ask("ticket_create", question, ops.TicketCreated)

    async def redeem(self, ticket: str, sid: str) -> ops.SessionToken:
        return await self._bus.ask("ticket_redeem", ops.RedeemTicket(ticket, sid), ops.SessionToken)

    async def login(self, question: ops.Login) -> ops.LoggedIn:
        return await self._bus.ask("login", question, ops.LoggedIn)

    async def sessions(self, who: Principal, limit: int, before: str) -> list[dict[str, Any]]:
        self._whole_tenant(who)
        revision = 0
        if before:
            entry = await self._sessions.get(f"{who.tenant}.{before}") if is_session_id(before) else None
            if entry is None:
                return []
            revision = entry.revision
        found = _readable(await self._sessions.newest(f"{who.tenant}.*", limit, revision), Session)
        return [
            {
                "id": session.id,
                "title": session.title,
                "updated_at": session.updated_at,
                "created_at": session.created_at,
                "model": session.model,
                "status": "running" if session.running else "idle",
            }
            for session in found
        ]

    async def session(self, who: Principal, sid: str) -> Session:
        """The record; raises `unknown_session` where it is not this tenant's."""
        self._known(who, sid)
        entry = await self._sessions.get(f"{who.tenant}.{sid}")
        if entry is None:
            raise Refusal("unknown_session", "there is no such session")
        return _record(entry, Session)

    async def patch_session(self, who: Principal, sid: str, body: SessionPatch) -> Session:
        self._known(who, sid, write=True)
        question = ops.PatchSession(who.tenant, sid, body.title, body.metadata)
        self._fits(question)
        return await self._bus.ask("session_patch", question, Session)

    async def delete_session(self, who: Principal, sid: str) -> None:
        self._known(who, sid, write=True)
        await self._bus.ask("session_delete", ops.OfSession(who.tenant, sid, who.subject), dict, timeout=SUBMIT_TIMEOUT)

    async def messages(self, who: Principal, sid: str) -> tuple[list[dict[str, Any]], int]:
        """The conversation, oldest first, the running answer as far as it has come; and the last sequence it covers."""
        await self.session(who, sid)
        found: list[dict[str, Any]] = []
        story = await self._history.story(sid, log_stream(partition_of(sid)))
        last = story.floor or 0
        for index, turn in enumerate(story.turns):
            if index >= story.loose:
                last = turn.last_seq
            found += [
                {"generation_id": turn.gid, "role": message.role, "content": message.content} for message in turn.input
            ]
            found.append(
                {
                    "generation_id": turn.gid,
                    "role": "assistant",
                    "content": turn.text,
                    "status": turn.status,
                    "finish_reason": turn.finish_reason or None,
                    **besides(turn),
                }
            )
        return found, last

    # -- generations -----------------------------------------------------------------------------------------------

    async def generate(
        self, who: Principal, sid: str, body: GenerationBody, idempotency_key: str
    ) -> ops.GenerationCreated:
        self._known(who, sid, write=True)
        request = body.request()
        warm = await self._warmth.holder(request, sid) if self._beats.several else ""  # one has no choice
        question = ops.CreateGeneration(who.tenant, sid, request, _own(who, idempotency_key), warm)
        self._fits(question)
        return await self._bus.ask("generation_create", question, ops.GenerationCreated, timeout=SUBMIT_TIMEOUT)

    async def generations(self, who: Principal, sid: str) -> list[dict[str, Any]]:
        """The session's generations, oldest first, without their texts."""
        return [
            {
                "id": record.id,
                "model": record.request.model,
                "status": await self._history.status(record),
                "finish_reason": record.finish_reason or None,
                "created_at": record.created_at,
                "ended_at": record.ended_at or None,
            }
            for record in await self._history.generations(sid)
            if record.tenant == who.tenant
        ]

    async def generation(self, who: Principal, sid: str, gid: str) -> dict[str, Any]:
        self._known(who, sid)
        record = await self._generation(who, sid, gid)
        status, text, finish_reason = str(record.status), record.text, record.finish_reason
        usage = {"prompt_tokens": record.prompt_tokens or None, "completion_tokens": record.completion_tokens}
        code, message = record.code, record.error
        if record.status.open:
            for turn in (await self._history.story(sid, log_stream(partition_of(sid)))).turns:
                if turn.gid == gid:
                    status, text, finish_reason = turn.status, turn.text, turn.finish_reason
                    usage = {"prompt_tokens": turn.prompt_tokens or None, "completion_tokens": turn.tokens}
                    code, message = turn.code, turn.error
        answer = {
            "generation_id": gid,
            "session_id": sid,
            "model": record.request.model,
            "status": status,
            "text": text,
            "finish_reason": finish_reason or None,
            "usage": usage,
            "created_at": record.created_at,
            "ended_at": record.ended_at or None,
        }
        answer |= {"truncated": True} if record.truncated else {}
        return answer | ({"error": {"code": code, "message": message}} if code else {})

    async def cancel(self, who: Principal, sid: str, gid: str) -> dict[str, Any]:
        """Ask for the end of a generation: made durable first, then the worker is nudged. Idempotent."""
        self._known(who, sid, write=True)
        _check_generation_id(gid)

        def ask(value: bytes | None) -> bytes | None:
            record = _tenants(who, value)
            if record.cancel or not record.status.open:
                return None
            return encode(msgspec.structs.replace(record, cancel=True))

        record = _tenants(who, await self._generations.change(f"{sid}.{gid}", ask))
        nudge = json.dumps({"sid": sid, "gid": gid}).encode()
        for worker in self._beats.holders(gid):
            await self._bus.publish(worker_subject(worker, "cancel"), nudge)
        return {"generation_id": gid, "status": await self._history.status(record)}

    async def models(self) -> list[Model]:
        return sorted(_readable(await self._models.all(), Model), key=lambda model: model.id)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _fits(self, question: msgspec.Struct) -> None:
        payload = len(msgspec.json.encode(question))
        if payload > self._bus.max_payload - 64 * 1024:
            raise Refusal("too_large", f"a request of {payload} bytes is more than the bus takes")

    async def _generation(self, who: Principal, sid: str, gid: str) -> Generation:
        _check_generation_id(gid)
        entry = await self._generations.get(f"{sid}.{gid}")
        return _tenants(who, entry.value if entry else None)

    def _known(self, who: Principal, sid: str, *, write: bool = False) -> None:
        check_session_id(sid)
        check_opens(who, sid)
        if write and who.scope != "write":
            raise Refusal("forbidden", "this token may only read")

    def _whole_tenant(self, who: Principal) -> None:
        if who.sid:
            raise Refusal("forbidden", "a session token opens its own session only")


def _own(who: Principal, idempotency_key: str) -> str:
    """A client's key, so that no client can guess another's; "" stays ""."""
    return f"{who.subject}:{idempotency_key}" if idempotency_key else ""


def _check_generation_id(gid: str) -> None:
    """It becomes part of a subject. Raises Refusal."""
    if not gid.isalnum():
        raise _unknown_generation()


def _tenants(who: Principal, value: bytes | None) -> Generation:
    """A generation's record, where there is one and it is this tenant's. Raises Refusal and BusUnavailable."""
    record = _parsed(value, Generation) if value else None
    if record is None or record.tenant != who.tenant:
        raise _unknown_generation()
    return record


def _unknown_generation() -> Refusal:
    return Refusal("unknown_generation", "there is no such generation in this session")


def _readable(entries: dict[str, Entry], kind: type[Kind]) -> list[Kind]:
    """One that cannot be read must not hide the others."""
    found = []
    for key, entry in entries.items():
        try:
            found.append(_record(entry, kind))
        except BusUnavailable as error:
            log.error("node.record_unreadable", key=key, error=str(error))
    return found


def _record(entry: Entry, kind: type[Kind]) -> Kind:
    return _parsed(entry.value, kind)


def _parsed(value: bytes, kind: type[Kind]) -> Kind:
    """Raises BusUnavailable."""
    try:
        return decode_record(value, kind)
    except msgspec.DecodeError as error:
        raise BusUnavailable(f"a record of kind {kind.__name__} is not readable") from error
