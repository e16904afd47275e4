"""The whole suite, in lanes beside one another: `python -m tests.suite`, which is what `make test` does.

Most of it waits, for a part that starts or a deadline that passes: one after another on two cores it takes 17 minutes,
of which half are computing. What a lane says is shown whole, the first one's at once.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import NoReturn

ROLES = ("tests/broker", "tests/control", "tests/gpu_worker", "tests/ingress")
COMPUTING = ("tests/models", "tests/test_static.py", "tests/test_layers.py", "tests/test_proofs.py", "tests/bench")
"""State machines in virtual time, types, the benchmark's own tests: they give way to those that measure time."""

PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider")
LANES: tuple[tuple[str, ...], ...] = (
    (*PYTEST, *(f"--ignore={path}" for path in (*ROLES, *COMPUTING))),
    (*PYTEST, *ROLES),
    ("nice", "-n", "10", *PYTEST, *COMPUTING),
)
INTERRUPTED = 130


def run(lanes: Sequence[Sequence[str]]) -> int:
    """Start all, show what they say, and return the first exit code that is not 0. Nothing runs when it returns.

    At Ctrl-C, which a terminal tells the lanes as well, and at SIGTERM, which is told them here, it waits until each
    has ended what it started.
    """
    first, *others = lanes
    running: list[subprocess.Popen[bytes]] = []
    before = signal.signal(signal.SIGTERM, _interrupted)
    with contextlib.ExitStack() as stack:
        told = [stack.enter_context(tempfile.TemporaryFile()) for _ in others]
        try:
            running.append(subprocess.Popen(first))
            for lane, said in zip(others, told, strict=True):
                running.append(subprocess.Popen(lane, stdout=said, stderr=subprocess.STDOUT))
            codes = [process.wait() for process in running]
        except KeyboardInterrupt as interrupt:
            for process in running:
                if interrupt.args:
                    process.send_signal(signal.SIGINT)
            codes = [process.wait() or INTERRUPTED for process in running]
        finally:
            signal.signal(signal.SIGTERM, before)
        for said in told:
            said.seek(0)
            sys.stdout.write(said.read().decode(errors="replace"))
    return next((code for code in codes if code), 0)


def _interrupted(number: int, _: object) -> NoReturn:
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    sys.exit(run(LANES))
