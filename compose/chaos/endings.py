"""How one side of a TCP connection is ended: by FIN when all is said, by FIN now, or by RST.

On the descriptors themselves, because what a transport calls its socket can neither be shut down nor be read.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable

Ending = Callable[[asyncio.Transport], None]
DISCARDED = 64 * 1024
"""Bytes that are thrown away at a time."""


def let_go(transport: asyncio.Transport) -> None:
    """By FIN, once what there is to write is written."""
    transport.close()


def break_off(transport: asyncio.Transport) -> None:
    """By RST."""
    fd = _descriptor(transport)
    if fd is not None:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as raw:
            close_by_rst(raw)
    transport.abort()


def close_by_rst(raw: socket.socket) -> None:
    """Its closing will be an RST."""
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def cut_off(transport: asyncio.Transport) -> None:
    """By FIN, now: what had not been given to the kernel is lost, and who does not read is not waited for.

    A socket that is closed with unread bytes sends RST. So the FIN goes first, and what is unread is thrown away.
    """
    fd = _descriptor(transport)
    if fd is not None:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as raw:
            raw.shutdown(socket.SHUT_WR)
            while raw.recv(DISCARDED, socket.MSG_DONTWAIT):
                pass
    transport.abort()


def unread(transport: asyncio.Transport) -> int:
    """Bytes that the kernel has received and that nobody has read."""
    fd = _descriptor(transport)
    if fd is None:
        return 0
    size = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, size)
    return size[0]


def _descriptor(transport: asyncio.Transport) -> int | None:
    raw = transport.get_extra_info("socket")
    fd = raw.fileno() if raw is not None else -1
    return fd if fd >= 0 else None
