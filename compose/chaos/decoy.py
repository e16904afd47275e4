"""A process that nobody depends on: what a control run strikes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from compose.chaos.whole import Process
from compose.up.servers import tethered

PROGRAM = Path(shutil.which("sleep") or "/bin/sleep")


class Decoy:
    """Started when it is first asked for, and anew when it was killed; `close` ends it, and so does our own end.

    It holds nothing of ours: whoever reads what we say must find its end when we have ended.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def process(self) -> Process:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                tethered(PROGRAM, ["3600"]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        return Process("decoy", "decoy", self._process.pid, 0, "")

    def close(self) -> None:
        """Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
