"""Our own roles as parts: each a Python process that is told everything by `OKOME_<ROLE>_<NAME>`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compose.up.boot import boot
from compose.up.options import Options, reachable
from compose.up.part import Part
from compose.up.ports import Ports

LOOPBACK = "127.0.0.1"
DRAIN_TIMEOUT = 5.0
"""Seconds a role has to drain on this machine, unless its own setting says otherwise: four roles, one after the other,
within the supervisor's one deadline."""

ALONE = {"OKOME_CONTROL_PARTITIONS": "8", "OKOME_CONTROL_LOG_MAX_BYTES": str(512 * 1024 * 1024)}
"""One NATS server has all the logs: a few large ones cost it less than many small ones
(docs/decisions/partitions.md)."""


def alone(environment: Mapping[str, str]) -> Mapping[str, str]:
    """What OKOME is told where one NATS server has all the logs: nothing that somebody has said something of."""
    return {} if ALONE.keys() & environment.keys() else ALONE


def environment(options: Options, given: Mapping[str, str]) -> Mapping[str, str]:
    """What the roles have from the environment, and what follows from it and from the system that they are in."""
    told = {**given, **(alone(given) if options.nats == 1 and not options.nats_url else {})}
    if partitions := told.get("OKOME_CONTROL_PARTITIONS"):
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
