"""One thing that `okome up` runs: which program, told what, and how it is known to be ready. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Ended in this order: first whoever holds clients, last what everybody stands on.
STOP_ORDER = ("ingress", "node", "worker", "control", "redis", "nats")


@dataclass(frozen=True)
class Part:
    """`probe` is an http(s) URL that answers 200, or `redis://host:port` that answers PING, once the part is ready."""

    role: str
    id: str
    argv: tuple[str, ...]
    probe: str
    env: Mapping[str, str] = field(default_factory=dict)
    url: str | None = None
    metrics: str | None = None
    gives_way: bool = False
    """Others of its role take over what it served, and have the machine first: see `restart.py`."""
    tells_engines: str | None = None
    """Where a worker tells of its engine processes: an http URL that answers `{"engines": [{id, pid}]}`."""

    def __post_init__(self) -> None:
        if self.role not in STOP_ORDER:
            raise ValueError(f"{self.role} has no place in the order of stopping")
