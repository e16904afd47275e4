"""What a worker's publishers cost while NATS says nothing of what they publish, and how soon all is written behind it.

    python -m bench.outage

MANY answers of 2 tokens/s each, written by the worker's own publishers from one process to a real nats-server that this
starts and ends, into two logs that take batches, as `okome up` makes them for one node. *Dead*: the server is ended,
and started again on its store. *No leader*: it lives and answers, but nobody takes what is published, as while a log
has no leader; here its streams are gone, so nothing is written again.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import structlog
import uvloop

from bench.nats import Nats
from bench.usage import used
from broker.bus.chain import Chain
from broker.bus.frames import START, TOKEN
from broker.bus.nats import Bus
from broker.bus.subjects import log_stream
from gpu_worker.metrics import Measured
from gpu_worker.outbox import Outbox
from gpu_worker.publisher import Publisher
from gpu_worker.publishing import Publishing

MANY = 4000
PARTITIONS = ["00", "01"]
RATE = 2.0  # tokens a second of each
TURN = 100  # answers that have a token in one turn of the loop
OUT = 4.0  # seconds
DEADLINE = 60.0
STARTED = (START, {"epoch": 1, "model": "m", "worker": "w1", "input": [], "t": 0})


class Writers:
    """MANY answers that are being written."""

    def __init__(self, bus: Bus) -> None:
        self._loop = asyncio.get_running_loop()
        self._publishing, measured = Publishing(bus), Measured("bench")
        self._all = [
            Publisher(self._publishing, f"{PARTITIONS[n % 2]}s{n:06}", Outbox("g1", 1, "a", Chain()), measured)
            for n in range(MANY)
        ]

    async def begin(self) -> None:
        for partition in PARTITIONS:
            await self._publishing.reserve.learn(log_stream(partition))
        for at in range(0, MANY, TURN):
            await asyncio.gather(*(publisher.write(STARTED) for publisher in self._all[at : at + TURN]))

    async def go_on(self) -> None:
        """Until cancelled."""
        due = self._loop.time()
        while True:
            for at in range(0, MANY, TURN):
                for publisher in self._all[at : at + TURN]:
                    if publisher.has_room:
                        publisher.offer(TOKEN, "tok ", 1)
                due += TURN / MANY / RATE
                await asyncio.sleep(max(0.0, due - self._loop.time()))

    async def written(self) -> None:
        """Until all that was offered is in the log."""
        await asyncio.gather(*(publisher.write() for publisher in self._all))

    async def close(self) -> None:
        for publisher in self._all:
            await publisher.close()


async def main() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # what fails here is meant to
    print(f"{MANY} answers, cores used by:  publishers     NATS")
    for dead in (True, False):
        with tempfile.TemporaryDirectory(prefix="okome-bench-") as directory:
            async with Nats(Path(directory)) as server:
                await _one(server, dead=dead)


async def _one(server: Nats, *, dead: bool) -> None:
    bus = await Bus.connect(server.url, "bench")
    writers = Writers(bus)
    writing: asyncio.Task[None] | None = None
    try:
        for partition in PARTITIONS:
            name, takes = log_stream(partition), {"allow_direct": True, "allow_atomic": True}
            await bus.api(f"STREAM.CREATE.{name}", {"name": name, "subjects": [f"tok.{partition}.>"], **takes})
        await writers.begin()
        writing = asyncio.create_task(writers.go_on())
        await _tell("written", server.pid)
        back = asyncio.Event()
        bus.on_reconnected.add(back.set)
        if dead:
            await server.stop()
            await _tell("NATS is dead", None)
            await server.start()
        else:
            for partition in PARTITIONS:
                await bus.api(f"STREAM.DELETE.{log_stream(partition)}")
            await _tell("no leader", server.pid)
        await _ended(writing)
        if dead:
            async with asyncio.timeout(DEADLINE):
                await back.wait()
                began = time.perf_counter()
                await writers.written()
            print(f"all is written {time.perf_counter() - began:.2f} s after the connection stands again", flush=True)
    finally:
        if writing is not None:
            await _ended(writing)
        await writers.close()
        await bus.close()


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _tell(what: str, nats: int | None) -> None:
    began, ours, theirs = time.perf_counter(), time.process_time(), _cpu(nats)
    await asyncio.sleep(OUT)
    took = time.perf_counter() - began
    told = f"{(_cpu(nats) - theirs) / took:8.2f}" if nats is not None else "       –"
    print(f"{what:28} {(time.process_time() - ours) / took:12.2f} {told}", flush=True)


def _cpu(pid: int | None) -> float:
    return 0.0 if pid is None else used({"nats": pid})["nats"].cpu


if __name__ == "__main__":
    uvloop.run(main())
