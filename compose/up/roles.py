"""Our own roles as parts: each a Python process that is told everything by `OKOME_<ROLE>_<NAME>`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from broker.bus.subjects import MAX_PARTITIONS
from compose.up.boot import boot
from compose.up.options import Options, reachable
from compose.up.part import Part
from compose.up.ports import Ports

LOOPBACK = "127.0.0.1"
DRAIN_TIMEOUT = 5.0
"""Seconds a role has to drain on this machine, unless its own setting says otherwise: four roles, one after the other,
within the supervisor's one deadline."""

PARTITIONS, LOG_MAX_BYTES = "OKOME_CONTROL_PARTITIONS", "OKOME_CONTROL_LOG_MAX_BYTES"
PARTITION_BYTES = "OKOME_NODE_PARTITION_BYTES"
EACH = 2
"""Partitions a node, where one NATS server has all the logs: a few large ones cost it less than many small ones
(docs/decisions/partitions.md)."""
LOG = 1024**3
"""Bytes of each, however many: one that is made smaller than what it holds is full for as long as that lives."""
RINGS, WARM, PAGES = 128 * 1024**2, 16_000, 32
"""Of all logs: bytes of a node's rings, frames that it begins with, pages that it reads at once."""


def alone(nodes: int, environment: Mapping[str, str]) -> Mapping[str, str]:
    """What the roles are told where one NATS server has all the logs: nothing of these, if somebody says how many they
    are or how large."""
    if environment.keys() & {PARTITIONS, LOG_MAX_BYTES}:
        return {}
    partitions = min(EACH * nodes, MAX_PARTITIONS)
    return {
        PARTITIONS: str(partitions),
        LOG_MAX_BYTES: str(LOG),
        PARTITION_BYTES: str(RINGS // partitions),
        "OKOME_NODE_WARM_FRAMES": str(WARM // partitions),
        "OKOME_NODE_PAGE_READERS": str(max(PAGES // partitions, 1)),
    }


def environment(options: Options, given: Mapping[str, str]) -> Mapping[str, str]:
    """What the roles have from the environment, and what follows from it and from the system that they are in."""
    told = dict(given)
    if options.nats == 1 and not options.nats_url:
        # It syncs each write: batches have one sync for many (docs/decisions/publishing.md).
        told = {"OKOME_CONTROL_LOG_BATCHES": "true", **alone(options.nodes, given), **given}
    if partitions := told.get(PARTITIONS):
        told.setdefault("OKOME_INGRESS_PARTITIONS", partitions)  # else it spreads those that have no sessions
    return told


@dataclass(frozen=True)
class Surroundings:
    """What every role is told."""

    nats_url: str
    redis_url: str
    api_key: str
    environment: Mapping[str, str]
    certificate: tuple[Path, Path] | None = None
    """Certificate chain and private key, PEM."""


def part(
    role: str,
    number: int,
    port: int,
    around: Surroundings,
    settings: Mapping[str, str],
    *,
    scheme: str = "http",
    gives_way: bool = False,
) -> Part:
    """One role on a port of its own. What is said here wins over the environment; the rest is inherited from it."""
    name = f"{role}-{number}"
    prefix = f"OKOME_{role.upper()}_"
    told = {
        "ID": name,
        "HOST": LOOPBACK,
        "PORT": str(port),
        "NATS_URL": around.nats_url,
        "REDIS_URL": around.redis_url,
        "PARENT_PID": str(os.getpid()),
        **settings,
    }
    env = {name: value for name, value in around.environment.items() if not name.startswith("OKOME_")}
    env |= {name: value for name, value in around.environment.items() if name.startswith(prefix)}
    env.setdefault(f"{prefix}DRAIN_TIMEOUT", str(DRAIN_TIMEOUT))
    env |= {prefix + name: value for name, value in told.items()}
    env["PYTHONUNBUFFERED"] = "1"  # the last words of a role that dies are in its log
    url = f"{scheme}://{LOOPBACK}:{port}"
    return Part(
        role=role,
        id=name,
        argv=(sys.executable, "-P", "-m", "compose.cli.role", role, name),
        probe=f"{url}/readyz",
        env=env,
        url=url,
        metrics=f"{url}/metrics",
        gives_way=gives_way,
        tells_engines=f"{url}/version" if role == "worker" else None,
    )


def controls(options: Options, ports: Ports, around: Surroundings) -> list[Part]:
    settings = {"API_KEY": around.api_key}
    if not options.nats_url:  # how many copies somebody else's servers can hold is for their owner to say
        settings["REPLICAS"] = str(options.nats)
        settings["STORE_BOOT"] = around.environment.get("OKOME_CONTROL_STORE_BOOT") or boot()
    return [part("control", number, ports.free(), around, settings) for number in range(1, options.controls + 1)]


def workers(options: Options, ports: Ports, around: Surroundings) -> list[Part]:
    settings = {"ENGINE": options.engine}
    return [part("worker", number, ports.free(), around, settings) for number in range(1, options.workers + 1)]


def nodes(options: Options, ports: Ports, around: Surroundings) -> list[Part]:
    settings = {
        "CORS_ORIGINS": ",".join(options.cors_origins),
        "TRUST_LOOPBACK": str(options.loopback).lower(),  # only where nobody else can come in
    }
    return [
        part("node", number, ports.free(), around, settings, gives_way=options.nodes > 1)
        for number in range(1, options.nodes + 1)
    ]


def ingresses(options: Options, port: int, ports: Ports, around: Surroundings) -> list[Part]:
    """They share `port`; each has a port of its own besides, by which it alone can be reached and asked."""
    settings = {"SHARED_HOST": options.host, "SHARED_PORT": str(port), "CORS_ORIGINS": ",".join(options.cors_origins)}
    if around.certificate:
        settings |= {"TLS_CERT": str(around.certificate[0]), "TLS_KEY": str(around.certificate[1])}
    return [
        part("ingress", number, ports.free(), around, settings, scheme=options.scheme)
        for number in range(1, options.ingresses + 1)
    ]


def public_url(options: Options, port: int) -> str:
    """What a person on this machine types."""
    return f"{options.scheme}://{reachable(options.host)}:{port}"
