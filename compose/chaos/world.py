"""The shapes of system that scenarios are played in. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class World:
    """`options`: flags of `okome up`. `environment`: settings of its roles. `linked`: parts that stand behind links."""

    name: str
    sentence: str
    options: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)
    linked: frozenset[str] = frozenset()
    linked_routes: bool = False
    stop: float = 25.0


NO_LIMITS = {"OKOME_INGRESS_KEY_LIMIT": "", "OKOME_INGRESS_SESSION_LIMIT": "", "OKOME_INGRESS_IP_LIMIT": ""}

SINGLE = World(
    "single",
    "one NATS server, two of everything that carries tokens",
    {"engine": "scripted", "nodes": 2, "workers": 2, "ingresses": 2},
    NO_LIMITS,
    linked=frozenset({"node-2", "worker-2"}),
)

CLUSTER = World(
    "cluster",
    "three NATS servers with three copies of everything, their routes through links",
    {"engine": "scripted", "nodes": 2, "workers": 2, "ingresses": 1, "nats": 3},
    NO_LIMITS,
    linked_routes=True,
)

WORLDS = {world.name: world for world in (SINGLE, CLUSTER)}
