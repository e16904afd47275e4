"""What a running system says about itself: in ready file, state file and the line of `--json`. Its shape is fixed.

Whoever reads it never sees half of it, and nobody else on the machine may: it holds the API key.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from broker.bus import draft
from compose.up.keeper import Keeper


def describe(
    keepers: Iterable[Keeper], *, url: str, page_url: str, api_key: str, nats_url: str, redis_url: str, data: Path
) -> dict[str, Any]:
    """The document. A part that is coming back stays listed as it was; one that is dead for good does not."""
    processes: list[dict[str, Any]] = []
    for keeper in keepers:
        if keeper.gone:
            continue
        part = keeper.part
        processes.append(
            {
                "role": part.role,
                "id": part.id,
                "pid": keeper.pid,
                "restarts": keeper.restarts,
                "url": part.url,
                "metrics": part.metrics,
            }
        )
        processes += [
            {"role": "engine", "id": one.id, "pid": one.pid, "restarts": one.restarts, "url": None, "metrics": None}
            for one in keeper.engines
        ]
    return {
        "url": url,
        "page_url": page_url,
        "api_key": api_key,
        "nats_url": nats_url,
        "redis_url": redis_url,
        "data": str(data),
        "processes": processes,
    }


def write(path: Path, text: str) -> None:
    """Replace `path` at once, mode 0600 from its first byte. Raises OSError."""
    draft.replace(path, text.encode(), 0o600)


def dump(document: dict[str, Any]) -> str:
    """One line."""
    return json.dumps(document, ensure_ascii=False, separators=(", ", ": "))
