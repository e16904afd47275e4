"""A small disk of its own for a store, so that it can be full: a tmpfs. Linux, and root's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType


class NoDisk(Exception):
    """A file system cannot be mounted here; the message says why."""


class SmallDisk:
    """`size` MiB at `place`, from `with` to its end. Raises NoDisk."""

    def __init__(self, place: Path, size: int) -> None:
        self._place = place
        self._size = size

    def __enter__(self) -> SmallDisk:
        if sys.platform != "linux" or os.geteuid() != 0:
            raise NoDisk("a small disk needs Linux and root")
        self._place.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={self._size}m,mode=0700", "okome-chaos", str(self._place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NoDisk(done.stderr.strip() or "mount failed")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        subprocess.run(["umount", "--lazy", str(self._place)], capture_output=True, check=False)


def fill(place: Path) -> Path:
    """A file that takes all the room there is left; removing it gives the room back."""
    filler = place / "filler"
    block = b"\0" * (1 << 20)
    with filler.open("wb", buffering=0) as out:
        while len(block) >= 512:
            try:
                out.write(block)
            except OSError:  # no space left: the last crumbs in smaller pieces
                block = block[: len(block) // 2]
    return filler


def free(place: Path) -> int:
    """Bytes that are left."""
    told = os.statvfs(place)
    return told.f_bavail * told.f_frsize
