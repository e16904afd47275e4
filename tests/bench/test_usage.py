"""What processes have used, and that one has ended."""

import asyncio
import os
import signal
import sys
import time

import pytest

from bench.usage import busy, used


@pytest.mark.skipif(sys.platform != "linux", reason="others tell hundredths of a second")
def test_less_cpu_than_a_tick_of_the_clock_is_seen() -> None:
    """A tick is 10 ms; at a thousand tokens a second that is more than a token costs."""
    before, began = used({"me": os.getpid()})["me"].cpu, time.process_time()
    while time.process_time() < began + 0.003:
        pass
    took, after = time.process_time() - began, used({"me": os.getpid()})["me"].cpu
    assert took - 1e-4 <= after - before <= took + 0.005, "and what reading it takes"


async def test_a_process_that_has_ended_is_named() -> None:
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE)
    assert used({"node-1": child.pid})["node-1"].rss > 0
    os.kill(child.pid, signal.SIGKILL)
    await child.wait()
    with pytest.raises(ProcessLookupError, match="node-1 has ended"):
        used({"node-1": child.pid})


def test_the_machine_is_at_least_as_busy_as_what_runs_on_it() -> None:
    before, began = busy(), time.process_time()
    while time.process_time() < began + 0.3:
        pass
    assert busy() - before >= 0.2, "in ticks of 10 ms"
