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
