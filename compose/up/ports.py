"""Ports: chosen once, and kept for a part while it is down, so that it comes back where everybody looks for it.

A free port alone is not enough. Between two lives of a role the kernel may give its port to any outgoing connection. So
the supervisor keeps a socket bound, without listening, beside the role's own: Linux lets both stand when both set
SO_REUSEADDR (asyncio, Go and Valkey do) and gives the port to nobody else. Elsewhere the port is only chosen.
"""

from __future__ import annotations

import errno
import socket
import sys
from types import TracebackType


class PortBusy(Exception):
    """Somebody else listens there."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(f"{host}:{port} is in use; choose another one with --port, or --port 0 for any free one")
        self.host = host
        self.port = port


class Ports:
    """The ports of one system, held until `close`."""

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def __enter__(self) -> Ports:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        for held in self._held:
            held.close()
        self._held.clear()

    def free(self, host: str = "127.0.0.1") -> int:
        """A free TCP port of `host`."""
        return self._take(host, 0, shared=False)

    def claim(self, host: str, port: int, *, shared: bool = False) -> int:
        """This very port, or any free one for 0. Raises PortBusy; `shared` lets several processes listen on it.

        OSError says that the address is not this machine's, or that the port needs a privilege.
        """
        try:
            if port:
                _refuse_if_busy(host, port)
            return self._take(host, port, shared=shared)
        except OSError as error:
            raise OSError(f"cannot listen on {host}:{port}: {error.strerror}") from error

    def _take(self, host: str, port: int, *, shared: bool) -> int:
        taken = socket.socket(_family(host), socket.SOCK_STREAM)
        try:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            taken.bind((host, port))
        except BaseException:
            taken.close()
            raise
        number: int = taken.getsockname()[1]
        if sys.platform == "linux":
            self._held.append(taken)
        else:
            taken.close()
        return number


def _family(host: str) -> socket.AddressFamily:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return found[0][0]


def _refuse_if_busy(host: str, port: int) -> None:
    # Bound without SO_REUSEPORT first: with it, a second system would quietly share the first one's port.
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            if isinstance(error, PermissionError) or error.errno != errno.EADDRINUSE:
                raise
            raise PortBusy(host, port) from error
