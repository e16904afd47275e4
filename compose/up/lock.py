"""A lock that says who lives in a directory, and ends with its process however that ends: the kernel lets go of it."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import TextIO

NAME = "lock"
A_LOOK = 0.05
"""Seconds after which whoever only looked has let go."""


class Taken(Exception):
    """Another process has it: `pid`, where it says so."""

    def __init__(self, pid: str) -> None:
        super().__init__(pid)
        self.pid = pid


def take(directory: Path) -> TextIO:
    """Held until it is closed. Raises Taken, or OSError."""
    lock = (directory / NAME).open("a+", encoding="utf-8")
    try:
        if not _now(lock, fcntl.LOCK_EX):
            time.sleep(A_LOOK)  # perhaps `held` has it for a moment
            if not _now(lock, fcntl.LOCK_EX):
                lock.seek(0)
                raise Taken(lock.read().strip())
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
    except BaseException:
        lock.close()
        raise
    return lock


def abandoned(directory: Path) -> TextIO | None:
    """The lock of a directory in which somebody lived who is gone, held until it is closed; None where nobody did, or
    somebody does, or is about to."""
    try:
        lock = (directory / NAME).open("r", encoding="utf-8")
    except OSError:
        return None
    if _now(lock, fcntl.LOCK_EX) and lock.read().strip():
        return lock
    lock.close()
    return None


def held(directory: Path) -> bool:
    """Somebody lives there. Raises nothing: a directory that is gone, or not ours to read, has nobody."""
    try:
        with (directory / NAME).open(encoding="utf-8") as lock:
            return not _now(lock, fcntl.LOCK_SH)
    except OSError:
        return False


def _now(lock: TextIO, how: int) -> bool:
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
