"""The settings of all roles that a system will start, looked at before it starts anything."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping

from broker.bus.errors import SettingsInvalid
from broker.bus.settings import RoleSettings, load, misspelt
from compose.up.part import Part

SETTINGS = {
    "control": ("control.settings", "ControlSettings"),
    "node": ("broker.node.settings", "NodeSettings"),
    "worker": ("gpu_worker.settings", "WorkerSettings"),
    "ingress": ("ingress.settings", "IngressSettings"),
}

FLAGS = {
    "API_KEY": "--api-key-file or OKOME_API_KEY",
    "CORS_ORIGINS": "--cors-origin",
    "ENGINE": "--engine",
    "NATS_URL": "--nats-url",
    "REDIS_URL": "--redis-url",
    "REPLICAS": "--nats",
    "SHARED_HOST": "--host",
    "SHARED_PORT": "--port",
    "TLS_CERT": "--tls-cert",
    "TLS_KEY": "--tls-key",
    "TRUST_LOOPBACK": "--host",
}
"""By what `okome up` is told the settings that it sets itself; of the others it chooses."""


def kinds() -> Iterator[tuple[str, type[RoleSettings]]]:
    """Every role and what its settings are."""
    for role, (module, name) in SETTINGS.items():
        yield role, getattr(importlib.import_module(module), name)


def check(parts: Iterable[Part], given: Mapping[str, str]) -> None:
    """Raises SettingsInvalid with the mistakes of all parts. What only follows from a mistake in `given`, the
    environment of this command, is not one more."""
    known = dict(kinds())
    problems: dict[str, str] = {}
    for part in parts:
        if part.role not in known:
            continue
        try:
            load(known[part.role], environment=part.env)
        except SettingsInvalid as error:
            problems |= error.problems
    if problems:
        raise SettingsInvalid({name: why for name, why in problems.items() if name in given} or problems)


def okome(parts: Iterable[Part]) -> RoleSettings:
    """OKOME's own: `okome up` is to NATS who OKOME is."""
    first = next(part for part in parts if part.role == "control")
    return load(dict(kinds())["control"], environment=first.env)


def unknown(given: Mapping[str, str]) -> dict[str, str]:
    """Variables that begin like a role's settings and are none, and what was perhaps meant: a sentence each."""
    return {name: why for _, kind in kinds() for name, why in misspelt(kind, given).items()}


def overridden(parts: Iterable[Part], given: Mapping[str, str]) -> dict[str, str]:
    """Variables that say something else than the roles are told, and what to say instead: a sentence each."""
    found = {}
    for part in parts:
        prefix = f"OKOME_{part.role.upper()}_"
        for name, value in part.env.items():
            if name.startswith(prefix) and given.get(name, value) != value:
                flag = FLAGS.get(name.removeprefix(prefix))
                found[name] = "does not count: `okome up` sets it itself" + (f", by {flag}" if flag else "")
    return found
