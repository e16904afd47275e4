"""The whole path where frames go to one log in batches, whose server and whose writers die meanwhile."""

import asyncio
import re
from pathlib import Path

import httpx

from tests.fixtures.system import System
from tests.path.crowd import watching

FRAMES = re.compile(r"^okome_worker_batched_frames_total (\S+)", re.MULTILINE)


def batched(system: System, worker: str) -> float:
    """Frames that went in batches, from this life of a worker."""
    found = FRAMES.search(httpx.get(system.find(worker)["metrics"], timeout=10).text)
    assert found is not None
    return float(found[1])


async def test_every_token_is_seen_once_though_batches_are_cut_off(tmp_path: Path) -> None:
    """120 answers in one log that syncs each write, from two on as one batch: each kill falls into one or beside it."""
    settings = {"OKOME_CONTROL_PARTITIONS": "1", "OKOME_WORKER_BATCH_FROM": "2"}
    with System(tmp_path, "--workers", "2", **settings) as system:
        async with watching(system, sessions=120, tokens=200, rate=40):
            for name in ("nats-1", "worker-2", "nats-1"):
                await asyncio.sleep(0.6)
                before = batched(system, "worker-1")
                assert before > 100, "they do go in batches"
                await asyncio.to_thread(system.wait_restarted, system.kill(name))
        assert batched(system, "worker-1") > before, "and again, after all that"
