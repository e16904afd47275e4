"""OKOME's operations `okome.v1.<op>`: what is asked and what is answered, as JSON. Pure types.

An answer that is a refusal is `{"error": {"code", "message", "param"?, "retry_after"?}}` with the micro service's error
headers; `broker.bus.nats.Bus.ask` turns it into `Refusal`, and no responder or no answer in time into `BusUnavailable`.
The caller (a stream node) has authenticated the client; `tenant` is what it found.
"""

from __future__ import annotations

from typing import Any

import msgspec

from broker.bus.records import Request


class Login(msgspec.Struct, frozen=True, omit_defaults=True):
    """op `login`: one of the three. `loopback` is set by a node after it checked Host and Origin."""

    api_key: str = ""
    ticket: str = ""
    loopback: bool = False


class LoggedIn(msgspec.Struct, frozen=True):
    token: str  # login token (JWT, aud `okome:login`)
    tenant: str
    expires_at: int


class CreateSession(msgspec.Struct, frozen=True, omit_defaults=True):
    """op `session_create`."""

    tenant: str
    model: str = ""
    title: str = ""
    metadata: dict[str, Any] = {}
    on_disconnect: str = "finish"
    client_id: str = ""
    idempotency_key: str = ""
    subject: str = ""  # key id or "login": the `sub` of the token


class SessionToken(msgspec.Struct, frozen=True):
    """Answer of `session_create`, `session_token` and `ticket_redeem`."""

    session_id: str
    token: str
    scope: str
    expires_at: int


class OfSession(msgspec.Struct, frozen=True, omit_defaults=True):
    """ops `session_token`, `session_delete`."""

    tenant: str
    sid: str
    subject: str = ""


class PatchSession(msgspec.Struct, frozen=True, omit_defaults=True):
    """op `session_patch`; answers the Session record."""

    tenant: str
    sid: str
    title: str | None = None
    metadata: dict[str, Any] | None = None


class CreateTicket(msgspec.Struct, frozen=True, omit_defaults=True):
    """op `ticket_create`; kind `login` is for the page_url and needs no sid."""

    tenant: str
    kind: str = "session"
    sid: str = ""
    scope: str = "read"
    subject: str = ""  # who asks: what the ticket opens is revoked together with that API key
    until: int = 0  # seconds since the epoch that the token it opens is good for at most; 0: as any


class TicketCreated(msgspec.Struct, frozen=True):
    ticket: str
    expires_at: int


class RedeemTicket(msgspec.Struct, frozen=True):
    """op `ticket_redeem`: one use."""

    ticket: str
    sid: str


class CreateGeneration(msgspec.Struct, frozen=True, omit_defaults=True):
    """op `generation_create`."""

    tenant: str
    sid: str
    request: Request  # `model` may be empty: the session's, else the default
    idempotency_key: str = ""
    warm_worker: str = ""  # who the hot cache says holds the prefix warm: a hint, used if that worker has room


class GenerationCreated(msgspec.Struct, frozen=True):
    generation_id: str
    cursor: str  # position before its `start`
    position: int = 0  # jobs of the model before this one
    worker: str = ""  # warm lane chosen, if any


class GenerationEnded(msgspec.Struct, frozen=True):
    """op `generation_ended`: a worker's nudge: the terminal frame is stored. The sweeper finds it without."""

    sid: str
    gid: str


class MendSession(msgspec.Struct, frozen=True):
    """op `session_mend`: a node met a stray in the session's log (`strays.py`); answered when none is last there."""

    sid: str


class CreateKey(msgspec.Struct, frozen=True, omit_defaults=True):
    """op `key_create`; answers `{key, id, tenant, name}`, the only time the key is seen."""

    name: str
    tenant: str = "default"


class RevokeKey(msgspec.Struct, frozen=True):
    """op `key_revoke`. op `key_list` takes `{}` and answers `{keys: [ApiKey…]}`."""

    id: str


class Explain(msgspec.Struct, frozen=True, omit_defaults=True):
    """op `route`: what would happen to a generation of this model in this session; answers `Route`."""

    model: str
    sid: str = ""


class Route(msgspec.Struct, frozen=True):
    model: str
    subject: str  # the job subject
    worker: str  # "" = any
    reason: str
    partition: str = ""
    waiting: int = 0
    capacity: int = 0
    workers: list[str] = []
