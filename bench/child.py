"""A load client: a process of its own that is given its order as a line on stdin and says on stdout what it saw."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec


@asynccontextmanager
async def child(module: str, order: msgspec.Struct) -> AsyncIterator[asyncio.subprocess.Process]:
    """`python -m module`, ended with the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        module,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(order) + b"\n")
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
