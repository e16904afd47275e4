"""Which start of this machine this is: what a store may have lost is lost when the machine is started anew.

A process that is killed leaves to the kernel what it has written; a kernel that dies, or has no power, keeps nothing.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_LINUX = Path("/proc/sys/kernel/random/boot_id")
_ASK_TIMEOUT = 2.0


def boot() -> str:
    """The same until the kernel starts again; "" where nothing tells."""
    try:
        if sys.platform == "darwin":
            words = ["sysctl", "-n", "kern.bootsessionuuid"]
            asked = subprocess.run(words, capture_output=True, text=True, check=True, timeout=_ASK_TIMEOUT)
            return asked.stdout.strip()
        return _LINUX.read_text().strip()
    except (OSError, subprocess.SubprocessError):
        return ""
