"""The shapes of system that scenarios are played in. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class World:
    """`options`: flags of `okome up`. `environment`: settings of its roles. `linked`: parts that stand behind links.
    `apart`: supervised by a process of its own, not by the one that hurts it."""

    name: str
    sentence: str
    options: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)
    linked: frozenset[str] = frozenset()
    linked_routes: bool = False
    apart: bool = False
    small_disk: int = 0
    """MiB that NATS has for its store; 0: what the machine has."""
    stop: float = 25.0


NO_LIMITS = {"OKOME_INGRESS_KEY_LIMIT": "", "OKOME_INGRESS_SESSION_LIMIT": "", "OKOME_INGRESS_IP_LIMIT": ""}

SINGLE = World(
    "single",
    "one NATS server, two of everything that carries tokens",
    {"engine": "scripted", "nodes": 2, "workers": 2, "ingresses": 2},
    NO_LIMITS,
    linked=frozenset({"node-2", "worker-2"}),
)

TIGHT = World(
    "tight",
    "one NATS server, rings of a few frames, and an OKOME that looks after its streams twice a second",
    {"engine": "scripted", "nodes": 2, "workers": 2, "ingresses": 1},
    {
        **NO_LIMITS,
        "OKOME_CONTROL_RECONCILE_INTERVAL": "0.5",
        "OKOME_NODE_RING_FRAMES": "16",
        "OKOME_NODE_WARM_FRAMES": "16",
    },
    linked=frozenset({"node-2"}),
)

BRIMFUL = World(
    "brimful",
    "rings of a few frames, workers that wait 5 s at most for viewers who lag, and no link that could keep megabytes",
    {"engine": "scripted", "nodes": 2, "workers": 2, "ingresses": 1},
    {**NO_LIMITS, "OKOME_NODE_RING_FRAMES": "16", "OKOME_NODE_WARM_FRAMES": "16", "OKOME_WORKER_MAX_PAUSE": "5"},
)

CLUSTER = World(
    "cluster",
    "three NATS servers with three copies of everything, their routes through links",
    {"engine": "scripted", "nodes": 2, "workers": 2, "ingresses": 1, "nats": 3},
    NO_LIMITS,
    linked_routes=True,
)

DISK = World(
    "disk",
    "one NATS server on a small disk of its own",
    {"engine": "scripted", "nodes": 2, "workers": 1, "ingresses": 1},
    {
        **NO_LIMITS,
        # NATS promises a stream its limit only where three quarters of the disk hold all that it has promised.
        "OKOME_CONTROL_PARTITIONS": "8",
        "OKOME_INGRESS_PARTITIONS": "8",
        "OKOME_CONTROL_LOG_MAX_BYTES": str(4 * 1024 * 1024),
        "OKOME_CONTROL_JOBS_MAX_BYTES": str(4 * 1024 * 1024),
    },
    small_disk=64,
)

SKEWED = World(
    "skewed",
    "one of everything twice, with clocks that are up to ten minutes apart",
    {"engine": "scripted", "nodes": 2, "workers": 2, "ingresses": 1},
    {
        **NO_LIMITS,
        "OKOME_NODE_CLOCK_OFFSET": "300",
        "OKOME_WORKER_CLOCK_OFFSET": "-300",
        "OKOME_INGRESS_CLOCK_OFFSET": "180",
    },
)

MODEL = World(
    "model",
    "the bundled real model, in a process of its own under each worker",
    {"engine": "smollm2", "nodes": 2, "workers": 1, "ingresses": 1},
    NO_LIMITS,
)

RECOVERY = World(
    "recovery",
    "`okome up --data DIR` in a process of its own, which can be killed with everything and started again",
    {"engine": "scripted", "nodes": 2, "workers": 2, "ingresses": 1},
    {**NO_LIMITS, "OKOME_CONTROL_RECONCILE_INTERVAL": "0.5"},
    apart=True,
)

IMPATIENT = World(
    "impatient",
    "workers with few slots that wait 4 s for viewers to come back, and nodes that soon let go what nobody reads",
    {"engine": "scripted", "nodes": 2, "workers": 2, "ingresses": 2},
    {
        **NO_LIMITS,
        "OKOME_WORKER_GRACE": "4",
        "OKOME_WORKER_SCRIPTED_SLOTS": "12",
        "OKOME_NODE_TAIL_IDLE_TIMEOUT": "1",
    },
)
