"""This process's wall clock: for what people and records see, never for waiting.

Hosts disagree about the time. What follows from that, comparison by comparison, is docs/decisions/clocks.md; here is
the one place where the time is read, so that a fault test can give every role a clock of its own.
"""

from __future__ import annotations

import time

SKEW = 600.0
"""Seconds by which the clocks of two roles may differ without anything but times of day being wrong."""

_offset_ns = 0


def set_offset(seconds: float) -> None:
    """Add so much to what this process takes for the time. Once, at its launch."""
    global _offset_ns
    _offset_ns = int(seconds * 1_000_000_000)


def now() -> float:
    """Seconds since the epoch."""
    return (time.time_ns() + _offset_ns) / 1_000_000_000


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return (time.time_ns() + _offset_ns) // 1_000_000


def after_ms(earlier: int) -> int:
    """`now_ms`, but never before or at `earlier`: what happens one after the other in a record says so, although each
    time was read from another host's clock."""
    return max(now_ms(), earlier + 1)
