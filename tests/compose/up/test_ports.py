"""Ports are chosen once and stay ours while nobody listens on them."""

import socket
import sys

import pytest

from compose.up.ports import PortBusy, Ports

linux = pytest.mark.skipif(sys.platform != "linux", reason="ports are held on Linux only")


def listen(port: int, *, shared: bool = False) -> socket.socket:
    """As a role does it."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", port))
    made.listen()
    return made


def test_a_role_listens_on_its_held_port_again_and_again() -> None:
    with Ports() as ports:
        port = ports.free()
        for _ in range(2):
            with listen(port), socket.create_connection(("127.0.0.1", port)):
                pass


@linux
def test_a_held_port_is_given_to_nobody_else() -> None:
    with Ports() as ports:
        port = ports.free()
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))


def test_nobody_answers_on_a_held_port_while_its_role_is_down() -> None:
    with Ports() as ports:
        port = ports.free()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


@pytest.mark.parametrize("shared", [False, True])
def test_a_busy_port_is_said_to_be_busy_even_if_its_owner_would_share_it(shared: bool) -> None:
    with Ports() as ports, listen(0, shared=True) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortBusy, match=f"127.0.0.1:{port} is in use"):
            ports.claim("127.0.0.1", port, shared=shared)


def test_several_ingresses_share_the_claimed_port() -> None:
    with Ports() as ports:
        port = ports.claim("127.0.0.1", 0, shared=True)
        with listen(port, shared=True), listen(port, shared=True):
            pass
