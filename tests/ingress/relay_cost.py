"""What relaying one event costs: `python -m tests.ingress.relay_cost [--streams 300] [--rate 20] [--ws]`.

The real role as a process of its own, on a real NATS server, between a source and a sink that are as cheap as they can
be. Prints CPU microseconds of the relay per event, and the time from the source's write to the sink's read.

Two shared cores with other work on them, events spread evenly so that each is read and written alone, 300 x 20/s:
event stream 29 µs, WebSocket 43 µs (two sans-I/O protocols); p50 1.2 ms, p99 2.0 ms when quiet.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import psutil
from websockets.datastructures import Headers
from websockets.http11 import Request as Upgrade
from websockets.server import ServerProtocol

from broker.bus.kv import Bucket
from broker.bus.nats import Bus
from broker.bus.records import Node, encode
from tests.fixtures.nats_server import NatsServer

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Source(asyncio.Protocol):
    """A node that answers checks and sends every stream the same events."""

    sse: ClassVar[set[asyncio.Transport]] = set()
    ws: ClassVar[set[asyncio.Transport]] = set()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"GET /readyz"):
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        elif b"/events" in data:
            self.transport.write(HEAD + chunk(b"id: inc0-0\nevent: hello\ndata: {}\n\n"))
            self.sse.add(self.transport)
        elif b"/ws" in data:
            protocol = ServerProtocol()
            lines = data.decode().split("\r\n")[1:]
            headers = Headers([(name, text) for name, _, text in (line.partition(": ") for line in lines if line)])
            protocol.receive_data(Upgrade("/", headers).serialize())
            (upgrade,) = protocol.events_received()
            assert isinstance(upgrade, Upgrade)
            protocol.send_response(protocol.accept(upgrade))
            self.transport.write(
                b"".join(protocol.data_to_send()) + frame(b'{"event":"hello","id":"inc0-0","data":{}}')
            )
            self.ws.add(self.transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.sse.discard(self.transport)
        self.ws.discard(self.transport)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def frame(data: bytes) -> bytes:
    return bytes([0x81, len(data)] if len(data) < 126 else [0x81, 126, len(data) >> 8, len(data) & 255]) + data


class Sink(asyncio.Protocol):
    """A client that counts events and reads the time in them."""

    events = 0
    delays: ClassVar[list[float]] = []

    def __init__(self, request: bytes) -> None:
        self._request = request

    def connection_made(self, transport: Any) -> None:
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        at = data.rfind(b'"t":')
        if at >= 0:
            Sink.events += data.count(b'"t":')
            Sink.delays.append(time.monotonic() - float(data[at + 4 : data.index(b"}", at)]))


async def measure(streams: int, rate: float, seconds: float, ws: bool) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    source = await loop.create_server(Source, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{source.sockets[0].getsockname()[1]}"
    with tempfile.TemporaryDirectory() as store:
        server = NatsServer(Path(store))
        bus = await Bus.connect(server.url, "cost")
        for name in ("keys", "nodes"):
            config = {
                "name": f"KV_{name}",
                "subjects": [f"$KV.{name}.>"],
                "max_msgs_per_subject": 1,
                "allow_direct": True,
            }
            await bus.api(f"STREAM.CREATE.KV_{name}", config)
        await Bucket(bus, "nodes").put("node-a", encode(Node("node-a", url, "ready", 0, 0)))
        relay = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "from ingress.role import run; run()",
            env={"OKOME_INGRESS_NATS_URL": server.url, "OKOME_INGRESS_IP_LIMIT": ""},
            stderr=subprocess.PIPE,
        )
        assert relay.stderr is not None
        port = 0
        while b"node.judged" not in (line := await relay.stderr.readline()):
            if b"ingress.listening" in line:
                port = json.loads(line)["port"]
        drain = asyncio.create_task(relay.stderr.read())
        tail = (
            b"ws HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
            b"sec-websocket-key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
        )
        request = tail if ws else b"events HTTP/1.1\r\nhost: x\r\n\r\n"
        for index in range(streams):
            line = b"GET /v1/sessions/%02dsessionsession/" % (index % 32) + request
            await loop.create_connection(lambda line=line: Sink(line), "127.0.0.1", port)  # type: ignore[misc]
        open_ = Source.ws if ws else Source.sse
        async with asyncio.timeout(30):
            while len(open_) < streams:  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(0.05)  # the source counts, nobody tells
        process = psutil.Process(relay.pid)
        begun = process.cpu_times()
        count = 0
        started = loop.time()
        per_tick = max(1, round(streams * rate / 200))  # spread, not in lock-step: 200 ticks a second
        order = list(open_)
        while loop.time() - started < seconds:
            while count < (loop.time() - started) * streams * rate:
                for _ in range(per_tick):
                    data = b'{"generation_id":"g3kd92","offset":%d,"text":" the","n":1,"t":%f}' % (
                        count,
                        time.monotonic(),
                    )
                    if ws:
                        order[count % streams].write(
                            frame(b'{"event":"token","id":"inc0-%d","data":%b}' % (count, data))
                        )
                    else:
                        event = b"id: inc0-%d\nevent: token\ndata: %b\n\n" % (count, data)
                        order[count % streams].write(chunk(event))
                    count += 1
            await asyncio.sleep(0.002)
        ended = process.cpu_times()
        relay.kill()
        await relay.wait()
        await drain
        await bus.close()
        server.close()
    source.close()
    delays = sorted(Sink.delays)
    cpu = ended.user + ended.system - begun.user - begun.system
    return {
        "events": Sink.events,
        "sent": count,
        "cpu_us_per_event": round(cpu / count * 1e6, 1),
        "p50_ms": round(delays[len(delays) // 2] * 1000, 2),
        "p99_ms": round(delays[len(delays) * 99 // 100] * 1000, 2),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=300)
    parser.add_argument("--rate", type=float, default=20)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--ws", action="store_true")
    asked = parser.parse_args()
    sys.stdout.write(json.dumps(asyncio.run(measure(asked.streams, asked.rate, asked.seconds, asked.ws))) + "\n")
