"""Runs one role in this process: `python -m compose.cli.role ROLE [NAME]`, also `okome role ROLE`.

Knows the roles by the place of their `run() -> int` only, so that starting one imports nothing of the others, nor of
the command. NAME only shows in `ps`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

ROLES = {
    "ingress": "ingress.role",
    "node": "broker.node.role",
    "worker": "gpu_worker.role",
    "control": "control.role",
}


def run(role: str) -> int:
    """The role's exit code: 0 ended as asked, 1 failed, 2 wrong settings, 3 cannot start."""
    start: Callable[[], int] = importlib.import_module(ROLES[role]).run
    return start()


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in ROLES:
        sys.stderr.write(f"usage: python -m compose.cli.role {{{','.join(ROLES)}}}\n")
        sys.exit(2)
    sys.exit(run(sys.argv[1]))
