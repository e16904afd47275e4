"""What all roles have in common, each as a process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys

import pytest

from compose.cli.role import ROLES

TIMEOUT = 40.0


@pytest.mark.parametrize("role", ROLES)
async def test_it_ends_when_told_to_while_nats_does_not_answer(role: str) -> None:
    """Also before its patience with NATS is at an end, which would be a failed start."""
    asked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        writer.close()

    listening = await asyncio.start_server(silent, "127.0.0.1", 0)
    url = f"nats://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    prefix = f"OKOME_{role.upper()}_"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "compose.cli.role", role),
        env={**os.environ, f"{prefix}NATS_URL": url, f"{prefix}PORT": "0", "OKOME_WORKER_ENGINE": "scripted"},
    )
    try:
        async with listening, asyncio.timeout(TIMEOUT):
            await asked.wait()
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("role", ROLES)
def test_what_names_no_nats_server_is_a_wrong_setting(role: str) -> None:
    """None at all would keep it busy for ever, deaf to signals."""
    name = f"OKOME_{role.upper()}_NATS_URL"
    told = subprocess.run(
        [sys.executable, "-P", "-m", "compose.cli.role", role],
        env={**os.environ, name: ","},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert told.returncode == 2
    said = json.loads(told.stderr)
    assert (said["event"], said["setting"]) == ("settings.invalid", name)
    assert "it names no server" in said["why"]
