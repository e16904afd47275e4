"""Sessions: made, changed, opened by tokens. What the model said is in their logs, not here."""

from __future__ import annotations

import msgspec
import structlog

from broker.bus import clock
from broker.bus.clock import after_ms, now_ms
from broker.bus.errors import BucketConflict, Refusal
from broker.bus.kv import Bucket
from broker.bus.nats import Bus
from broker.bus.operations import CreateSession, OfSession, PatchSession, SessionToken
from broker.bus.records import Session, decode, encode
from broker.bus.subjects import is_session_id, new_session_id
from control.idempotency import Once, Reserved
from control.keyring import Keyring, is_tenant
from control.models import Models
from control.partitions import Partitions
from control.settings import ControlSettings

MAX_TITLE = 200  # characters
MAX_METADATA = 16 * 1024  # bytes, as JSON
POLICIES = ("finish", "cancel")

log = structlog.get_logger("control")


class Sessions:
    """The records in KV `sessions`, and what belongs to them elsewhere."""

    def __init__(
        self,
        bus: Bus,
        settings: ControlSettings,
        keyring: Keyring,
        once: Once,
        models: Models,
        partitions: Partitions,
    ) -> None:
        self._settings = settings
        self._keyring = keyring
        self._once = once
        self._models = models
        self._partitions = partitions
        self._sessions = Bucket(bus, "sessions", settings.deleted_life)

    async def find(self, tenant: str, sid: str) -> Session:
        """Another tenant's session is as unknown as none. Raises Refusal `unknown_session`."""
        if is_session_id(sid) and is_tenant(tenant):
            entry = await self._sessions.get(f"{tenant}.{sid}")
            if entry is not None:
                return decode(entry.value, Session)
        raise Refusal("unknown_session", "there is no such session")

    async def create(self, question: CreateSession) -> SessionToken:
        async def check() -> None:
            if not is_tenant(question.tenant):
                raise Refusal("malformed", "no such tenant", param="tenant")
            if question.on_disconnect not in POLICIES:
                raise Refusal("malformed", "on_disconnect is finish or cancel", param="on_disconnect")
            if question.model:
                self._models.find(question.model)
            _check(question.title, question.metadata)

        async def carry_out(sid: str, reserved: Reserved | None) -> SessionToken:
            if reserved is not None:
                await reserved()
            now = now_ms()
            session = Session(
                id=sid,
                tenant=question.tenant,
                created_at=now,
                updated_at=now,
                model=question.model,
                title=question.title,
                metadata=question.metadata,
                on_disconnect=question.on_disconnect,
                client_id=question.client_id,
            )
            try:
                await self._sessions.create(f"{question.tenant}.{sid}", encode(session))
            except BucketConflict:
                session = await self.find(question.tenant, sid)  # by an attempt that did not live to answer
            else:
                log.info("session.created", sid=sid, tenant=question.tenant, model=question.model)
            return self._token(session, question.subject, "write")

        return await self._once.do(
            question.tenant,
            "session_create",
            question,
            question.idempotency_key,
            SessionToken,
            lambda: new_session_id(self._partitions.choose()),
            check,
            carry_out,
        )

    async def token(self, question: OfSession, scope: str = "write", until: int = 0) -> SessionToken:
        """A fresh token for the same session, which expires by `until` (seconds since the epoch), if that is given."""
        return self._token(await self.find(question.tenant, question.sid), question.subject, scope, until)

    def _token(self, session: Session, subject: str, scope: str, until: int = 0) -> SessionToken:
        life = min(self._settings.token_life, until - clock.now()) if until else self._settings.token_life
        token, expires_at = self._keyring.signing.session(
            session.tenant, subject, session.id, scope, session.on_disconnect, life
        )
        return SessionToken(session.id, token, scope, expires_at)

    async def patch(self, question: PatchSession) -> Session:
        _check(question.title or "", question.metadata or {})
        await self.find(question.tenant, question.sid)

        def edit(value: bytes | None) -> bytes | None:
            if value is None:
                return None
            session = decode(value, Session)
            if question.title is not None:
                session = msgspec.structs.replace(session, title=question.title)
            if question.metadata is not None:
                session = msgspec.structs.replace(session, metadata=question.metadata)
            return encode(msgspec.structs.replace(session, updated_at=after_ms(session.updated_at)))

        value = await self._sessions.change(f"{question.tenant}.{question.sid}", edit)
        if value is None:
            raise Refusal("unknown_session", "there is no such session")
        return decode(value, Session)


def _check(title: str, metadata: dict[str, object]) -> None:
    if len(title) > MAX_TITLE:
        raise Refusal("malformed", f"a title has at most {MAX_TITLE} characters", param="title")
    if len(msgspec.json.encode(metadata)) > MAX_METADATA:
        raise Refusal("malformed", f"metadata has at most {MAX_METADATA} bytes as JSON", param="metadata")
