"""The whole path where frames go to one log in batches, whose server and whose writers die meanwhile."""

import asyncio
import re
from collections.abc import Callable
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


def batching(system: System, worker: str) -> Callable[[], bool]:
    """Whether that goes on, from now."""
    before = batched(system, worker)
    return lambda: batched(system, worker) > before + 50


async def test_every_token_is_seen_once_though_batches_are_cut_off(tmp_path: Path) -> None:
    """120 answers in one log, whose frames go at common moments, from two on as one batch: each kill falls into one or
    beside it."""
    settings = {
        "OKOME_CONTROL_PARTITIONS": "1",
        "OKOME_WORKER_BATCH_FROM": "2",
        "OKOME_WORKER_FRAME_INTERVAL": "0.1",
    }
    with System(tmp_path, "--workers", "2", **settings) as system:
        async with watching(system, sessions=120, tokens=240, rate=30):
            for name in ("nats-1", "worker-2"):
                await asyncio.to_thread(system.wait_for, batching(system, "worker-1"), "written in batches")
                await asyncio.to_thread(system.wait_restarted, system.kill(name))
