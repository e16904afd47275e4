"""What the flags of `okome up` say. Pure data; api.md names the flags and their defaults."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from broker.bus.settings import nats_servers

MOST = 32
"""Of any one role: a slip of the finger, not an intention."""


class OptionsInvalid(Exception):
    """The flags contradict each other; the message names them."""


@dataclass(frozen=True)
class Options:
    """`port` 0 is any free one; `data` None is a temporary directory; times are seconds."""

    host: str = "127.0.0.1"
    port: int = 8080
    nodes: int = 2
    workers: int = 1
    ingresses: int = 1
    controls: int = 1
    nats: int = 1
    nats_url: str = ""
    redis_url: str = ""
    engine: str = "smollm2"
    data: Path | None = None
    tls: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    cors_origins: tuple[str, ...] = ()
    restart: bool = True
    ready_file: Path | None = None
    json: bool = False
    api_key: str = ""
    start_timeout: float = 60.0
    stop_timeout: float = 25.0

    def __post_init__(self) -> None:
        problems = []
        if self.nats not in (1, 3):
            problems.append("--nats is 1 or 3")
        problems += [
            f"--{name} is between 1 and {MOST}"
            for name in ("nodes", "workers", "ingresses", "controls")
            if not 1 <= getattr(self, name) <= MOST
        ]
        if not 0 <= self.port <= 65535:
            problems.append("--port is between 0 and 65535")
        if (self.tls_cert is None) != (self.tls_key is None):
            problems.append("--tls-cert and --tls-key go together")
        if self.tls and self.tls_cert:
            problems.append("--tls makes a certificate of its own: it does not go with --tls-cert")
        problems += [f"--{name} {path}: no such file" for name, path in self._files() if not path.is_file()]
        if self.ready_file is not None and not self.ready_file.absolute().parent.is_dir():
            problems.append(f"--ready-file {self.ready_file}: its folder does not exist")
        problems += [
            f"--cors-origin {origin}: an origin is http(s)://host[:port]"
            for origin in self.cors_origins
            if not _is_origin(origin)
        ]
        if self.nats_url and self.nats != 1:
            problems.append("--nats starts servers, --nats-url uses running ones: not both")
        if self.nats_url:
            try:
                nats_servers(self.nats_url)
            except ValueError as error:
                problems.append(f"--nats-url: {error}")
        if problems:
            raise OptionsInvalid("; ".join(problems))

    def _files(self) -> list[tuple[str, Path]]:
        named = (("tls-cert", self.tls_cert), ("tls-key", self.tls_key))
        return [(name, path) for name, path in named if path is not None]

    @property
    def secure(self) -> bool:
        return self.tls or self.tls_cert is not None

    @property
    def loopback(self) -> bool:
        """Only this machine can come in."""
        return loopback(self.host)

    @property
    def scheme(self) -> str:
        return "https" if self.secure else "http"


def loopback(host: str) -> bool:
    """Names this machine, and nothing that another could reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def reachable(host: str) -> str:
    """The host as this machine's own clients write it in a URL: any-address becomes loopback, IPv6 gets brackets."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return str(address) if address.version == 4 else f"[{address}]"


def _is_origin(text: str) -> bool:
    scheme, separator, rest = text.partition("://")
    return scheme in ("http", "https") and bool(separator and rest) and not set(rest) & set("/?#@ ")
