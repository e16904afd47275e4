"""How late event loops were in a window, as the roles themselves count it (`okome_*_loop_lag_seconds` of /metrics)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from compose.chaos.http import call

Buckets = dict[float, float]
"""Looks that were late by at most so many seconds."""

_BUCKET = re.compile(r'okome_\w*loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)')
ENOUGH = 0.99


async def looks(metrics: Mapping[str, str]) -> dict[str, Buckets]:
    """By process, of those that count it. Raises OSError, EOFError."""
    found = {}
    for name, url in metrics.items():
        text = (await call(url.removesuffix("/metrics"), "GET", "/metrics", "")).body.decode()
        if buckets := {float(bound): float(count) for bound, count in _BUCKET.findall(text)}:
            found[name] = buckets
    return found


def late(before: Mapping[str, Buckets], after: Mapping[str, Buckets]) -> dict[str, float | None]:
    """Milliseconds by which 99 of 100 looks between the two were late at most: the upper bound of a bucket, None where
    that is the last one, which has none."""
    found: dict[str, float | None] = {}
    for name, counts in after.items():
        since = {bound: count - before.get(name, {}).get(bound, 0.0) for bound, count in counts.items()}
        if (most := max(since.values(), default=0.0)) > 0:
            bound = min(bound for bound, count in since.items() if count >= ENOUGH * most)
            found[name] = None if math.isinf(bound) else 1000 * bound
    return found
