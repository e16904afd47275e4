"""What single pieces of a token's way cost, ours beside the library's that they go round. CPU of this process alone.

    python -m bench.blocks

Every pair is measured alternately, the median of its rounds is told. The bus is measured against a real nats-server
that this starts and ends; of a message received, what the server and the kernel spend is not in the figure.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import uvloop
from prometheus_client import CollectorRegistry, Counter, Histogram

from bench.nats import Nats
from bench.usage import used
from broker.bus.log import page
from broker.bus.nats import Bus
from broker.bus.scan import Scan
from broker.bus.tally import Counts, Spreads
from gpu_worker.engines import Piece
from gpu_worker.engines.http import Answer
from gpu_worker.engines.openai import _Reading

MANY = 20_000
LOGGED = "bench.log"
ROUNDS = 5
HEADERS = {"Nats-Expected-Last-Subject-Sequence": "123456"}
PAYLOAD = b"x" * 160  # a frame of one token
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b"""data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,\
"delta":{"content":" hello"},"logprobs":null,"finish_reason":null}]}\n\n"""
CHUNK = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)
BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)

Work = Callable[[], Awaitable[None]]


class Block(NamedTuple):
    """The same done in two ways, MANY times each call."""

    name: str
    ours: Work
    library: Work


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="okome-bench-") as directory:
        async with Nats(Path(directory)) as server:
            bus = await Bus.connect(server.url, "bench")
            try:
                await tell([*_counting(), await _publishing(bus), await _receiving(bus)])
                await tell_reading(bus, server.pid)
                await tell_engine()
            finally:
                await bus.close()


async def tell(blocks: list[Block]) -> None:
    print(f"{'µs of CPU, median of ' + str(ROUNDS):34} {'ours':>8} {'library':>8}")
    for block in blocks:
        took: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            for work, times in zip((block.ours, block.library), took, strict=True):
                before = time.process_time()
                await work()
                times.append((time.process_time() - before) / MANY * 1e6)
        ours, library = (statistics.median(times) for times in took)
        print(f"{block.name:34} {ours:8.2f} {library:8.2f}")


async def tell_reading(bus: Bus, server: int) -> None:
    """A log of MANY frames, read by direct gets and by a scan: of each message what it costs us, and NATS."""
    await bus.api("STREAM.CREATE.BENCH", {"name": "BENCH", "subjects": [LOGGED], "allow_direct": True})
    for number in range(MANY):
        await bus.request(LOGGED, PAYLOAD, headers={"Nats-Expected-Last-Subject-Sequence": str(number)}, publish=True)
    for name, read in (
        ("direct gets of 64", partial(_by_gets, bus, 64)),
        ("direct gets of 256", partial(_by_gets, bus, 256)),
        ("a scan in pages of 256", partial(_by_scan, bus, 256)),
    ):
        ours, theirs = [], []
        for _ in range(ROUNDS):
            before, nats = time.process_time(), used({"nats": server})["nats"].cpu
            assert await read() == MANY
            ours.append(time.process_time() - before)
            theirs.append(used({"nats": server})["nats"].cpu - nats)
        us, nats = (1e6 * statistics.median(seconds) / MANY for seconds in (ours, theirs))
        print(f"reading a log by {name:<24}{us:6.2f} µs, and NATS {nats:5.2f} µs a message")


async def tell_engine() -> None:
    """Chunks of an engine's answer, from the bytes of one read to the piece that a publisher is offered."""
    loop = asyncio.get_running_loop()
    for together in (1, 4):
        pieces: list[Piece] = []
        answer, data = Answer(loop, None), CHUNK * together
        answer.data_received(HEAD)
        answer.pour(_Reading(pieces.append).take)
        took = []
        for _ in range(ROUNDS):
            pieces.clear()
            before = time.process_time()
            for _ in range(MANY // together):
                answer.data_received(data)
            took.append(time.process_time() - before)
            assert sum(piece.n for piece in pieces) == MANY
        print(
            f"reading {together} of an engine's tokens at once {1e6 * statistics.median(took) / MANY:6.2f} µs a token"
        )


async def _by_gets(bus: Bus, size: int) -> int:
    count = after = 0
    while found := await page(bus, "BENCH", LOGGED, after, batch=size, bare=True):
        count, after = count + len(found), found[-1].seq
    return count


async def _by_scan(bus: Bus, size: int) -> int:
    count = 0
    scan = Scan(bus, "BENCH", LOGGED, "bench")
    try:
        await scan.open(0)
        while not scan.at_end:
            count += len(await scan.page(size))
    finally:
        await scan.close()
    return count


def _counting() -> list[Block]:
    registry = CollectorRegistry()
    count = Counts("a_total", "x", ["m"], registry=registry).labels("m").inc
    counter = Counter("b_total", "x", ["m"], registry=registry).labels("m").inc
    spread = Spreads("c", "x", ["m"], buckets=BUCKETS, registry=registry).labels("m").observe
    histogram = Histogram("d", "x", ["m"], buckets=BUCKETS, registry=registry).labels("m").observe

    def repeated(one: Callable[[float], Any]) -> Work:
        async def work() -> None:
            for _ in range(MANY):
                one(0.05)

        return work

    return [
        Block("a counter, one more", repeated(count), repeated(counter)),
        Block("a histogram, one more", repeated(spread), repeated(histogram)),
    ]


async def _publishing(bus: Bus) -> Block:
    """With a header and a reply, as a frame is published; written in pieces of a hundred, as a step of an engine is."""

    async def ours() -> None:
        for number in range(MANY):
            bus.publish_now("bench.nobody", PAYLOAD, "bench.reply", HEADERS)
            if number % 100 == 0:
                await asyncio.sleep(0)
        await bus._client.flush()

    async def library() -> None:
        for number in range(MANY):
            await bus._client.publish("bench.nobody", PAYLOAD, "bench.reply", HEADERS)
            if number % 100 == 0:
                await asyncio.sleep(0)
        await bus._client.flush()

    return Block("publish, with a header", ours, library)


async def _receiving(bus: Bus) -> Block:
    """With a header that nobody looks at, as a frame is delivered. Its publishing is in both figures."""
    got = asyncio.Event()
    left = MANY

    def took() -> None:
        nonlocal left
        left -= 1
        if not left:
            got.set()

    async def heard(_: object) -> None:
        took()

    await bus.listen("bench.ours", lambda _: took())
    await bus.subscribe("bench.library", heard)

    def through(subject: str) -> Work:
        async def work() -> None:
            nonlocal left
            left = MANY
            got.clear()
            for number in range(MANY):
                bus.publish_now(subject, PAYLOAD, "", HEADERS)
                if number % 100 == 0:
                    await asyncio.sleep(0)
            async with asyncio.timeout(60):
                await got.wait()

        return work

    return Block("publish and receive", through("bench.ours"), through("bench.library"))


if __name__ == "__main__":
    uvloop.run(main())
