"""The names of everything on the bus. Pure: builds and takes apart subjects, stream and bucket names, ids and cursors.

Nothing that a client sends becomes part of a subject unless it went through `is_session_id` or `encode`.
"""

from __future__ import annotations

import re
import secrets
from typing import NamedTuple

from broker.bus.errors import CursorInvalid

BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"  # lower case: a sid is read aloud and typed by operators
MAX_PARTITIONS = 36 * 36

JOBS_STREAM = "JOBS"
BUCKETS = ("keys", "sessions", "generations", "models", "nodes", "jwks", "revoked", "tickets", "idempotency", "secrets")

_SESSION_ID = re.compile(r"[A-Za-z0-9_-]{8,64}\Z")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_INCARNATION = re.compile(r"[a-z0-9]{4,16}\Z")
_SEQUENCE = re.compile(r"(0|[1-9][0-9]{0,18})\Z")
_PLAIN = re.compile(r"[A-Za-z0-9_-]")


def random_id(length: int) -> str:
    """`length` random base-36 digits: 5.17 bits each."""
    number = secrets.randbelow(36**length)  # asked for once: digit by digit it is 20 µs instead of 3
    digits = ""
    for _ in range(length):
        number, digit = divmod(number, 36)
        digits += BASE36[digit]
    return digits


def partition_name(index: int) -> str:
    """Two base-36 digits: 0 is `00`, 35 is `0z`, 36 is `10`."""
    if not 0 <= index < MAX_PARTITIONS:
        raise ValueError(f"partition {index} is not in 0..{MAX_PARTITIONS - 1}")
    return BASE36[index // 36] + BASE36[index % 36]


def new_session_id(partition: str) -> str:
    """A sid: its partition, then 20 random digits (103 bits)."""
    return partition + random_id(20)


def new_generation_id() -> str:
    return "g" + random_id(15)


def is_session_id(text: str) -> bool:
    return _SESSION_ID.match(text) is not None


def is_request_id(text: str) -> bool:
    """Whether a client's own `X-Request-Id` is kept: it is short and plain."""
    return _REQUEST_ID.match(text) is not None


def partition_of(sid: str) -> str:
    """The partition a session was born in: never recomputed, so that partitions can be added to a live system."""
    return sid[:2]


def log_stream(partition: str) -> str:
    return f"TOK_{partition}"


def log_subject(sid: str) -> str:
    """`tok.<pp>.<sid>`."""
    return f"tok.{sid[:2]}.{sid}"


def draft_subject(sid: str) -> str:
    return f"draft.{sid[:2]}.{sid}"


def encode(name: str) -> str:
    """Any text as one subject token: what is not `[A-Za-z0-9_-]` becomes `=XX` per UTF-8 byte."""
    return "".join(c if _PLAIN.match(c) else "".join(f"={b:02X}" for b in _bytes(c)) for c in name) or "="


def decode(token: str) -> str:
    """The inverse of `encode`."""
    if token == "=":
        return ""
    return re.sub(r"(?:=[0-9A-F]{2})+", lambda m: _text(bytes.fromhex(m.group().replace("=", ""))), token)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # JSON may carry half a surrogate pair; it must not end a request


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def job_subject(model: str, worker: str | None = None) -> str:
    """The queue of a model; with `worker`, its warm lane."""
    return f"job.{encode(model)}.{worker or 'any'}"


REPLICA_PREFIX = "okome-"
"""How the names of OKOME's replicas begin, which beat among the workers; no worker's does."""


def beat_subject(worker: str) -> str:
    return f"beat.{worker}"


def operation_subject(operation: str) -> str:
    return f"okome.v1.{operation}"


def worker_subject(worker: str, command: str) -> str:
    return f"worker.{worker}.{command}"


def node_subject(node: str, command: str) -> str:
    """A nudge to one node; `all` names every node."""
    return f"node.{node}.{command}"


def ingress_subject(ingress: str, command: str) -> str:
    return f"ingress.{ingress}.{command}"


class Cursor(NamedTuple):
    """What a client sends back to resume: the last frame it has, in a log's incarnation."""

    incarnation: str
    sequence: int

    def __str__(self) -> str:
        return f"{self.incarnation}-{self.sequence}"


def parse_cursor(text: str) -> Cursor:
    """Raises CursorInvalid for whatever `str(Cursor)` does not write. Sequences are below 2**63."""
    incarnation, dash, digits = text.partition("-")
    if not dash or not _INCARNATION.match(incarnation) or not _SEQUENCE.match(digits) or int(digits) >= 2**63:
        raise CursorInvalid(f"a cursor is <incarnation>-<sequence>, not {text[:40]!r}")
    return Cursor(incarnation, int(digits))
