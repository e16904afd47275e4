"""A process that nobody depends on: what a control run strikes."""

from __future__ import annotations

import subprocess

from compose.chaos.whole import Process


class Decoy:
    """Started when it is first asked for, and anew when it was killed; `close` ends it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def process(self) -> Process:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(["sleep", "3600"], start_new_session=True)
        return Process("decoy", "decoy", self._process.pid, 0, "")

    def close(self) -> None:
        """Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
