"""The doctor on a system that somebody else started: whoever belongs to it is named, with how it does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from broker.bus.clock import now_ms
from broker.bus.kv import Bucket
from broker.bus.nats import Bus
from broker.bus.records import Load, Node, encode
from tests.control.okome import connected, replica, until, worker
from tests.fixtures.command import okome as command
from tests.fixtures.nats_server import NatsServer


async def told(nats: NatsServer, home: Path) -> list[str]:
    """What the doctor finds from NATS on; a process, for it sets up the log of the one it runs in."""
    done = await asyncio.to_thread(command, "doctor", home=home, OKOME_NATS_URL=nats.url)
    lines = done.stdout.splitlines()
    first = lines.index(f"ok\tnats\t{nats.url} answers")
    return [line for line in lines[first + 1 :] if "\t" in line]


@contextlib.asynccontextmanager
async def nodes(bus: Bus, **states: str) -> AsyncIterator[None]:
    """Their entries, written again and again: the bucket forgets them."""
    written = asyncio.Event()

    async def write() -> None:
        while True:
            for id, state in states.items():
                await Bucket(bus, "nodes").put(id, encode(Node(id, f"http://{id}:9000", state, 7, now_ms())))
            written.set()
            await asyncio.sleep(2.0)

    async with asyncio.TaskGroup() as group:
        writing = group.create_task(write())
        await written.wait()
        yield
        writing.cancel()


async def test_of_a_system_that_is_known_by_its_nats_alone_everybody_is_named(
    fresh_nats: NatsServer, tmp_path: Path
) -> None:
    async with (
        replica(fresh_nats.url) as okome,
        connected(fresh_nats.url) as bus,
        nodes(bus, n1="ready", n2="draining", n3="unready"),
        worker(okome, bus, "w1", "a", "b"),
        worker(okome, bus, "w2") as w2,
    ):
        w2.load = Load(0, 1, 0, 0)
        await until(lambda: not okome.pulse.workers()["w2"].models["m"].slots, "it is known to drain")
        found = await told(fresh_nats, tmp_path)
    assert found == [
        f"ok\t{okome.id}\ta replica of OKOME, beats",
        "ok\tn1\ta stream node, ready, 7 streams, at http://n1:9000",
        "warn\tn2\ta stream node, draining, 7 streams, at http://n2:9000",
        "bad\tn3\ta stream node, unready, 7 streams, at http://n3:9000",
        "ok\tw1\ta worker, beats, offers a, b",
        "warn\tw2\ta worker, beats, drains",
    ]


async def test_whoever_is_missing_is_said_to_be(fresh_nats: NatsServer, tmp_path: Path) -> None:
    (found,) = await told(fresh_nats, tmp_path)
    assert found.startswith("bad\tsystem\twho belongs to it is not known: "), "nobody has made what nodes write into"
    async with replica(fresh_nats.url) as okome:
        assert await told(fresh_nats, tmp_path) == [
            f"ok\t{okome.id}\ta replica of OKOME, beats",
            "bad\tstream node\tnone is there",
            "bad\tworker\tnone is there",
        ]
