"""What streams and buckets there are, as JetStream configurations. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from broker.bus.credentials import REVOKED_FOR
from broker.bus.subjects import BUCKETS, JOBS_STREAM, log_stream, partition_name, random_id
from control.settings import ControlSettings

SECOND = 1_000_000_000
DUPLICATES = 120 * SECOND  # a job is queued once, however often its publish is repeated

BUCKET_TTL = {"nodes": 10.0, "revoked": REVOKED_FOR, "tickets": 300.0}  # seconds

DESCRIPTIONS = {
    "keys": "API keys by hash; and the key between ingress and node",
    "sessions": "session metadata: <tenant>.<sid>; deleting.<tenant>.<sid>: to be deleted",
    "generations": "what was asked and answered: <sid>.<gid>",
    "models": "what can be asked for",
    "nodes": "live stream nodes",
    "jwks": "public keys of session and login tokens",
    "revoked": "sessions, tokens and API keys that count no more",
    "tickets": "one-use tickets by hash",
    "idempotency": "first answers by Idempotency-Key",
    "secrets": "OKOME's own: signing keys, floors of the logs",
}


def new_incarnation() -> str:
    return random_id(8)


def partitions(settings: ControlSettings) -> list[str]:
    return [partition_name(index) for index in range(settings.partitions)]


def log_config(partition: str, settings: ControlSettings) -> dict[str, Any]:
    """`TOK_<pp>`, with an incarnation of its own if it is made from this."""
    return {
        "name": log_stream(partition),
        "subjects": [f"tok.{partition}.*"],
        "description": f"session logs of partition {partition}",
        "metadata": {"incarnation": new_incarnation()},
        "retention": "limits",
        "storage": "file",
        # A full log refuses its writers and never drops a head that somebody may still read.
        "discard": "new",
        "max_age": int(settings.log_max_age * SECOND),
        "max_bytes": settings.log_max_bytes,
        "num_replicas": settings.replicas,
        "allow_direct": True,
        # One sync for all that a worker has to say, not one for each (docs/decisions/publishing.md).
        "allow_atomic": settings.log_batches and settings.replicas == 1,
    }


def jobs_config(settings: ControlSettings) -> dict[str, Any]:
    return {
        "name": JOBS_STREAM,
        "subjects": ["job.*.*"],
        "description": "generations waiting for a worker, or held by one",
        "retention": "workqueue",
        "storage": "file",
        "discard": "new",
        "max_bytes": settings.jobs_max_bytes,
        "duplicate_window": DUPLICATES,
        "num_replicas": settings.replicas,
        "allow_direct": True,
    }


def bucket_config(bucket: str, settings: ControlSettings) -> dict[str, Any]:
    """A NATS KV bucket as `nats kv` makes it (ADR-8)."""
    ttl = settings.idempotency_life if bucket == "idempotency" else BUCKET_TTL.get(bucket)
    return {
        "name": f"KV_{bucket}",
        "subjects": [f"$KV.{bucket}.>"],
        "description": DESCRIPTIONS[bucket],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_msgs_per_subject": 1,
        "num_replicas": settings.replicas,
        "allow_direct": True,
        "allow_rollup_hdrs": True,
        "allow_msg_ttl": True,  # of deletions, which would outlive what they delete for ever
        "deny_delete": True,
        **({"max_age": int(ttl * SECOND)} if ttl else {}),
    }


def everything(settings: ControlSettings) -> Iterator[dict[str, Any]]:
    for bucket in BUCKETS:
        yield bucket_config(bucket, settings)
    yield jobs_config(settings)
    for partition in partitions(settings):
        yield log_config(partition, settings)


REPAIRED = (
    "max_age",
    "max_bytes",
    "num_replicas",
    "allow_direct",
    "allow_atomic",
    "duplicate_window",
    "allow_msg_ttl",
)


def repaired(found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The configuration that `found` should be changed to, or None where it is well.

    Only what can be changed without touching what is stored: how long and how much it keeps, how often, and what was
    left out when somebody else made it. An incarnation that is there is never replaced here.
    """
    changes: dict[str, Any] = {}
    for name in REPAIRED:
        have = found.get(name)
        if name in wanted and (have or wanted[name]) and have != wanted[name]:  # what is not is left out
            changes[name] = wanted[name]
    if not found.get("description") and wanted.get("description"):
        changes["description"] = wanted["description"]
    metadata = found.get("metadata") or {}
    if missing := {name: value for name, value in wanted.get("metadata", {}).items() if not metadata.get(name)}:
        changes["metadata"] = metadata | missing
    return {**found, **changes} if changes else None
