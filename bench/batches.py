"""What it costs to store frames one by one, and in batches, by how many there are at once.

    python -m bench.batches

From one process to a real nats-server that this starts and ends: with the default of a single server, which syncs each
write before it answers, and synced every second.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path

import uvloop

from bench.nats import Nats
from bench.ours import SYNC
from bench.usage import used
from broker.bus import log
from broker.bus.errors import BusError, BusUnavailable
from broker.bus.log import Fenced
from broker.bus.nats import Bus
from broker.bus.subjects import log_stream, random_id
from compose import nats_server

MANY = 6000  # frames
AT_ONCE = (8, 16, 32, 64, 128, 256, 500)
FRAME = b"x" * 130
STREAM = log_stream("00")
DEADLINE = 120.0
TRIES = 3


async def main() -> None:
    for synced in ("always", "1s"):
        with tempfile.TemporaryDirectory(prefix="okome-bench-") as name:
            directory = Path(name)
            config = directory / "nats"
            shutil.copytree(nats_server.CONFIG_DIR, config)
            single = config / nats_server.SINGLE.name
            single.write_text(single.read_text().replace(SYNC, f"sync_interval: {synced}"))
            async with Nats(directory, config) as server, asyncio.timeout(DEADLINE):
                await _compare(server, synced)


async def _compare(server: Nats, synced: str) -> None:
    print(f"synced {synced}; µs a frame: time and NATS's CPU   one by one       in batches", flush=True)
    bus = await Bus.connect(server.url, "bench")
    try:
        config = {"name": STREAM, "subjects": ["tok.00.>"], "allow_direct": True, "allow_atomic": True}
        await bus.api(f"STREAM.CREATE.{STREAM}", config)
        for count in AT_ONCE:
            told = [await _told(bus, server.pid, count, batched=batched) for batched in (False, True)]
            print(f"{count:6} at once {told[0]:>49} {told[1]:>15}", flush=True)
    finally:
        await bus.close()


async def _told(bus: Bus, nats: int, count: int, *, batched: bool) -> str:
    """Measured again where a publish had no answer in time: the disk stood still for a moment."""
    for _ in range(TRIES):
        try:
            return await _measured(bus, nats, count, batched=batched)
        except BusUnavailable as error:
            print(f"again: {error}", flush=True)
    return "not measured"


async def _measured(bus: Bus, nats: int, count: int, *, batched: bool) -> str:
    fences = [0] * count
    for number in range(count):
        newest = await log.last(bus, STREAM, f"tok.00.{number}")
        fences[number] = newest.seq if newest is not None else 0
    began, before = time.perf_counter(), used({"nats": nats})["nats"].cpu
    for _ in range(MANY // count):
        frames = [Fenced(f"tok.00.{number}", FRAME, fence) for number, fence in enumerate(fences)]
        fences = await (_batch(bus, random_id(8), frames) if batched else _one_by_one(bus, frames))
    each = 1e6 / (MANY // count * count)
    took, cpu = time.perf_counter() - began, used({"nats": nats})["nats"].cpu - before
    return f"{took * each:.0f} {cpu * each:.0f}"


async def _one_by_one(bus: Bus, frames: list[Fenced]) -> list[int]:
    """All are on their way at once. Raises BusError."""
    found = [0] * len(frames)
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    left = len(frames)

    def heard(number: int, answer: int | BusError) -> None:
        nonlocal left
        left -= 1
        if over.done():
            return
        if isinstance(answer, BusError):
            over.set_exception(answer)
            return
        found[number] = answer
        if not left:
            over.set_result(None)

    for number, one in enumerate(frames):
        log.store_soon(bus, one.subject, one.payload, one.expect_last, partial(heard, number))
    await over
    return found


async def _batch(bus: Bus, batch: str, frames: list[Fenced]) -> list[int]:
    """Raises BusError."""
    heard: asyncio.Future[int | BusError] = asyncio.get_running_loop().create_future()
    log.store_batch(bus, batch, frames, heard.set_result)
    newest = await heard
    if isinstance(newest, BusError):
        raise newest
    return list(range(newest - len(frames) + 1, newest + 1))


if __name__ == "__main__":
    uvloop.run(main())
