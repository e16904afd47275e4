"""Faults of a NATS server's file store while nothing runs: what a loss of power leaves of a stream.

A stream's messages lie in `jetstream/$G/streams/<stream>/msgs/<n>.blk`, one behind the other: a head of 22 bytes
(length, sequence, time, length of the subject; little-endian), then the rest. nats-server 2.15.1 takes what is whole
of them and goes on behind the last one. `index.db` is written when it stops in order, and after minutes: whoever loses
power has an old one or none.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_HEAD = struct.Struct("<IQQH")
_HAS_HEADERS = 1 << 31
_NO_MESSAGE = 3 << 62  # of a sequence: the record says that a message was erased, or deleted


class Record(NamedTuple):
    """One message in a block. `at`: where it begins; `data`: all of it, its payload included."""

    seq: int
    at: int
    data: bytes


def blocks(store: Path, stream: str) -> list[Path]:
    """A stream's blocks, oldest first."""
    folder = store / "jetstream" / "$G" / "streams" / stream / "msgs"
    return sorted(folder.glob("*.blk"), key=lambda block: int(block.stem))


def records(block: Path) -> Iterator[Record]:
    """The messages that are whole in a block, in its order."""
    data = block.read_bytes()
    at = 0
    while at + _HEAD.size <= len(data):
        length, seq, _, _ = _HEAD.unpack_from(data, at)
        length &= ~_HAS_HEADERS
        if not _HEAD.size <= length <= len(data) - at:
            return
        if not seq & _NO_MESSAGE:
            yield Record(seq, at, data[at : at + length])
        at += length


def last_sequence(store: Path, stream: str) -> int:
    """Of what is stored; 0 where nothing is."""
    return max((record.seq for block in blocks(store, stream) for record in records(block)), default=0)


def cut(store: Path, stream: str, keep: int) -> list[Record]:
    """Take away every message behind sequence `keep`, but for half of the first one; returns them, oldest first.

    The server must not run.
    """
    taken: list[Record] = []
    for block in blocks(store, stream):
        lost = [record for record in records(block) if record.seq > keep]
        if not lost:
            continue
        if taken:
            block.unlink()
        else:
            with block.open("r+b") as file:
                file.truncate(lost[0].at + len(lost[0].data) // 2)
        taken += lost
        (block.parent / "index.db").unlink(missing_ok=True)
    return taken
