"""The memory of a stream node: what one open stream costs it, and what its settings allow in all. Pure.

Written down and held to: the send buffer of every connection is set (`SEND_BUFFER`), a ring has a number of frames and
a partition's rings a number of bytes (`NodeSettings`), an event's bytes are made once and shared by all who read them,
and one timer goes over all streams.
"""

from __future__ import annotations

from typing import NamedTuple

from broker.bus.health import SEND_BUFFER
from broker.node.settings import NodeSettings

PROCESS = 80 * 1024 * 1024
"""Bytes of a node without streams: Python and what it imports."""
STREAM = 24 * 1024
"""Bytes of the process for one open stream, its ring not counted: docs/performance.md, "Memory of a stream"."""
KERNEL = 2 * SEND_BUFFER
"""Bytes of the kernel for a stream whose reader has stopped: it doubles what is set. Who reads leaves it empty."""


class Budget(NamedTuple):
    """Bytes at most. kernel: if every reader stopped at once; it is not the process's."""

    process: int
    streams: int
    rings: int
    kernel: int

    @property
    def whole(self) -> int:
        """Of the process."""
        return self.process + self.streams + self.rings


def budget(settings: NodeSettings, partitions: int) -> Budget:
    """Of a node that follows so many partitions."""
    streams = settings.max_subscribers
    return Budget(PROCESS, streams * STREAM, partitions * settings.partition_bytes, streams * KERNEL)
