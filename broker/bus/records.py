"""What is kept in the KV buckets, queued as jobs and said in beats. Pure types; the written schema is docs/bus.md.

All times are milliseconds since the epoch by the clock of whoever wrote them (`*_at`, `t`); what is decided by them
holds with clocks that are minutes apart (docs/decisions/clocks.md). Unknown fields are ignored on reading, so that
`/v1` can grow while versions mix.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, TypeVar

import msgspec

Record = TypeVar("Record", bound=msgspec.Struct)


class Status(StrEnum):
    """A generation's life. `queued` and `running` are open; the others are its terminal frame's type."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def open(self) -> bool:
        return self in (Status.QUEUED, Status.RUNNING)


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One turn of a conversation as models take it."""

    role: str
    content: str


class ApiKey(msgspec.Struct, frozen=True):
    """KV `keys`, key `<sha256 hex of the API key>`."""

    id: str
    tenant: str
    name: str
    created_at: int


class Session(msgspec.Struct, frozen=True):
    """KV `sessions`, key `<tenant>.<sid>`: metadata, never tokens."""

    id: str
    tenant: str
    created_at: int
    updated_at: int
    model: str
    title: str = ""
    metadata: dict[str, Any] = {}
    on_disconnect: str = "finish"  # or "cancel": what happens `grace` after the last viewer left
    client_id: str = ""  # the id a client brought (an AI SDK chat id), if any
    running: str = ""  # its open generation: whoever sets it by compare-and-set has the session to itself


class Request(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a client asked of a model, validated. `messages` is this turn's new input, or the whole context."""

    model: str
    messages: list[Message]
    whole_context: bool = False  # False: earlier turns come from the session's log
    max_tokens: int = 0  # 0: the model's default, 1 024 for all but `scripted`, which says its whole script
    temperature: float | None = None
    stop: list[str] = []
    seed: int | None = None


class Generation(msgspec.Struct, frozen=True):
    """KV `generations`, key `<sid>.<gid>`."""

    id: str
    sid: str
    tenant: str
    request: Request
    created_at: int
    after: int  # the session's last sequence when this was accepted: its `start` carries this prev
    status: Status = Status.QUEUED
    cancel: bool = False  # asked for; the worker turns it into a frame
    # Set once, from the log, after the terminal frame is stored:
    first_seq: int = 0  # of `start`
    last_seq: int = 0  # of the terminal frame
    text: str = ""
    truncated: bool = False  # the text was too long for a record: this is how it begins
    finish_reason: str = ""
    code: str = ""
    error: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ended_at: int = 0


class Model(msgspec.Struct, frozen=True):
    """KV `models`, key `encode(id)`: what can be asked for. Written by workers when they start."""

    id: str
    engine: str
    context_length: int
    created_at: int


class Node(msgspec.Struct, frozen=True):
    """KV `nodes`, key `<id>`: written at start and every 2 s; the bucket forgets it after 10 s of silence."""

    id: str
    url: str
    state: str  # "ready" | "draining" | "unready"
    subscribers: int
    t: int


class Revocation(msgspec.Struct, frozen=True):
    """KV `revoked`, key `sid.<sid>`, `jti.<jti>` or `key.<key id>`: what bears that name is void, however new."""

    t: int
    reason: str


class Ticket(msgspec.Struct, frozen=True):
    """KV `tickets`, key `<sha256 hex of the ticket>`: deleted by compare-and-set when it is redeemed."""

    kind: str  # "session" | "login"
    tenant: str
    sid: str
    scope: str
    expires_at: int  # as whoever asked for it was told; what counts is how long the bucket has had it
    subject: str = ""  # the API key behind it; "": nobody's
    until: int = 0  # when the token that is made for it expires at the latest; 0: as any


class Idempotency(msgspec.Struct, frozen=True):
    """KV `idempotency`, key `<tenant>.<sha256 of scope and Idempotency-Key>`: the first answer, for 24 h."""

    fingerprint: str  # of the request's body
    answer: dict[str, Any]  # {} while the first request is still being carried out
    reserved: str = ""  # the id it will make, so that whoever finishes it for a dead replica makes the same one


class Job(msgspec.Struct, frozen=True):
    """One message on `job.<model>.any` or `job.<model>.<worker>`; `Nats-Msg-Id` is the gid."""

    gid: str
    sid: str
    tenant: str
    request: Request
    after: int
    t: int
    on_disconnect: str = "finish"


class Load(msgspec.Struct, frozen=True):
    """How full a worker is for one model. queued: what it holds and is about to begin. queue_limit: what is admitted
    for it beyond its slots, and waits in the queue."""

    slots: int
    running: int
    queued: int
    queue_limit: int


class Beat(msgspec.Struct, frozen=True):
    """Core NATS `beat.<worker>`, every 250 ms, from every worker and (with no models) every OKOME replica."""

    worker: str
    instance: str  # random per process: the same worker id with another instance means that the first one is dead
    t: int
    models: dict[str, Load] = {}
    held: dict[str, str] = {}  # gid -> reply subject of the newest delivery of its job
    warm: list[str] = []  # hashes of prompt prefixes this worker holds warm
    part: int = 0  # which one of `parts` messages this is: `held` is spread over them (`beats.py`)
    parts: int = 1
    more: bool = False  # `held` comes besides what the last whole beat said: jobs taken since


def encode(record: msgspec.Struct) -> bytes:
    return msgspec.json.encode(record)


def decode(payload: bytes, kind: type[Record]) -> Record:
    """Raises msgspec.DecodeError where the payload is not of that kind."""
    return msgspec.json.decode(payload, type=kind)
