"""What processes have used, and that one has ended."""

import asyncio
import os
import signal
import sys

import pytest

from bench.usage import used


async def test_a_process_that_has_ended_is_named() -> None:
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE)
    assert used({"node-1": child.pid})["node-1"].rss > 0
    os.kill(child.pid, signal.SIGKILL)
    await child.wait()
    with pytest.raises(ProcessLookupError, match="node-1 has ended"):
        used({"node-1": child.pid})
