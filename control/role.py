"""OKOME as a process: `okome role control`."""

from __future__ import annotations

import sys

from broker.bus.lifecycle import launch
from control.app import main
from control.settings import ControlSettings


def run() -> int:
    """Serve until told to stop; returns the exit code."""
    return launch("control", ControlSettings, main)


if __name__ == "__main__":
    sys.exit(run())
