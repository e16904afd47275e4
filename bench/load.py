"""The load: viewers who read as fast as tokens come, in a process of their own, as lean as Python can be.

One protocol object a connection, one regular expression a read, no JSON: what relays differ in is not looked at, the
tokens' own text is (`bench.ask`). Orders come as a line of JSON on stdin; `begin` and `end` of the window are said on
stdout, so that whoever measures the other processes knows when; the last line is what was seen. Nobody leaves before
stdin ends: thousands who leave at once are not what was to be measured.

    python -m bench.load < order.json
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import msgspec
import uvloop

from bench.ask import MAX_TOKENS, MODEL, TOKEN, Ask
from bench.body import HEAD_END, Body
from bench.contender import Dialect
from bench.histogram import Histogram
from bench.record import Loaded, Shape
from compose.chaos.http import call

AT_ONCE = 32  # connections that are made at the same time
READY_TIMEOUT = 120.0
WINDOWS = 3  # at most
STALLED_STEPS, STALLED = 5, 2.0  # so many, and so many seconds, without a token: a viewer who gets none any more
SPARE = 60.0  # seconds of tokens that nobody reads any more
PING = 0x9
PONG = b"\x8a\x80\x00\x00\x00\x00"  # empty, masked with nothing
UPGRADE = (
    "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nsec-websocket-protocol: okome.v1\r\n"
)

Sending = Callable[[], Awaitable[None]]
"""Asks for an answer whose viewers are ready."""


class Order(msgspec.Struct, frozen=True):
    """dialect: `chat` asks an OpenAI-compatible server; `okome` opens sessions, watches them, and asks,
    `okome-scripted` for what a worker makes itself; `durable` asks, and reads what it is told the URL of.

    ramp: seconds over which the answers are asked for; warm: seconds that all run before the window.
    """

    dialect: Dialect
    url: str
    key: str
    shape: Shape
    ramp: float
    warm: float
    window: float


class Watching(NamedTuple):
    """A viewer, and the head of what it asked."""

    viewer: Viewer
    head: bytes


class Load:
    """All viewers of a run, and what they saw. `run` raises ConnectionError where a stream is refused."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.latency = Histogram()
        self.ttft = Histogram()
        self.tokens = 0
        self.wrong = 0
        self.lost = 0
        self.measuring = False
        self.waiting = 0  # viewers without a token yet
        self.all_begun = asyncio.Event()
        self.over = False
        self.refused = ""  # what a server said in place of a stream
        self.watching: list[Watching] = []
        where = urlsplit(order.url)
        self.host, self.port = where.hostname or "127.0.0.1", where.port or 80

    @property
    def ask(self) -> Ask:
        """Enough tokens that no answer ends before the last window does."""
        order = self.order
        seconds = order.ramp + order.warm + WINDOWS * order.window + READY_TIMEOUT + SPARE
        shape = order.shape
        return Ask(
            tokens=min(MAX_TOKENS, int(seconds * shape.rate)), rate=shape.rate, trace=shape.trace, engines=shape.engines
        )

    async def run(self) -> Loaded:
        """Everything, from the first connection to the last."""
        await self.begin()
        seen = await self.watch()
        async with asyncio.timeout(SPARE):
            await asyncio.to_thread(sys.stdin.buffer.read)  # nothing comes behind the order but the end
        self.leave()
        return seen

    async def begin(self) -> None:
        """Ask for everything, and let it run for a while."""
        order, loop = self.order, asyncio.get_running_loop()
        gate = asyncio.Semaphore(AT_ONCE)
        began = loop.time()
        begin = {"chat": self._chat, "durable": self._durable}.get(order.dialect, self._okome)

        async def one(number: int) -> None:
            async with gate:
                sending = await begin()
                due = began + order.ramp * number / order.shape.streams
                await asyncio.sleep(max(0.0, due - loop.time()))
                if order.shape.rate:
                    await sending()

        self.waiting = order.shape.streams * order.shape.viewers
        within = READY_TIMEOUT + order.ramp
        try:
            async with asyncio.timeout(within):
                async with asyncio.TaskGroup() as tasks:
                    for number in range(order.shape.streams):
                        tasks.create_task(one(number))
                if order.shape.rate:
                    await self.all_begun.wait()
        except TimeoutError as error:
            raise ConnectionError(f"{self.waiting} viewers had no token within {within:.0f} s") from error
        if self.refused:
            raise ConnectionError(self.refused)
        await asyncio.sleep(order.warm)

    async def watch(self) -> Loaded:
        """What is seen in one window; its begin and its end are said on stdout."""
        self.tokens, self.latency, self.measuring = 0, Histogram(), True
        cpu, since = time.process_time(), time.monotonic()
        print("begin", flush=True)
        await asyncio.sleep(self.order.window)
        self.measuring = False
        print("end", flush=True)
        seconds, cpu = time.monotonic() - since, time.process_time() - cpu
        return Loaded(
            self.tokens,
            seconds,
            cpu,
            self.wrong,
            self.lost,
            self.latency.told(),
            self.ttft.told(),
            self.stalled(time.monotonic_ns() // 1000),
        )

    def stalled(self, now: int) -> int:
        """Viewers who should have had a token since, now being microseconds."""
        if not self.order.shape.rate:
            return 0
        since = now - int(1e6 * max(STALLED, STALLED_STEPS / self.order.shape.rate))
        return sum(watching.viewer.last_at < since for watching in self.watching)

    def leave(self) -> None:
        self.over = True
        for watching in self.watching:
            watching.viewer.leave()

    async def _viewer(self, head: bytes, body: bytes = b"", port: int = 0, kind: type[Viewer] | None = None) -> Viewer:
        loop = asyncio.get_running_loop()
        make = kind or Viewer
        _, viewer = await loop.create_connection(lambda: make(self), self.host, port or self.port)
        self.watching.append(Watching(viewer, head))
        viewer.say(head, body)
        return viewer

    async def _chat(self) -> Sending:
        message = {"role": "user", "content": self.ask.prompt}
        body = json.dumps({"model": MODEL, "stream": True, "messages": [message]}).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {self.host}:{self.port}\r\n"
            f"authorization: Bearer {self.order.key}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        ).encode()

        async def send() -> None:
            for _ in range(self.order.shape.viewers):
                asked_at = time.monotonic_ns() // 1000
                (await self._viewer(head, body)).asked_at = asked_at

        return send

    async def _durable(self) -> Sending:
        question = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": self.ask.prompt}]}

        async def send() -> None:
            asked_at = time.monotonic_ns() // 1000
            answer = await call(self.order.url, "POST", "/v1/chat/completions", self.order.key, question)
            if answer.status != 201:
                raise ConnectionError(f"{answer.status} {answer.body[:200]!r}")
            stream = urlsplit(answer.json()["url"])
            head = f"GET {stream.path}?offset=-1&live=sse HTTP/1.1\r\nhost: {stream.netloc}\r\n\r\n".encode()
            for _ in range(self.order.shape.viewers):
                (await self._viewer(head, port=stream.port or 80)).asked_at = asked_at

        return send

    async def _okome(self) -> Sending:
        url, key = self.order.url, self.order.key
        made = (await call(url, "POST", "/v1/sessions", key, {})).json()
        viewers = []
        socket = self.order.dialect == "okome-websocket"
        path, more = (made["ws_url"], UPGRADE) if socket else (made["events_url"], "accept: text/event-stream\r\n")
        for _ in range(self.order.shape.viewers):
            head = (
                f"GET {urlsplit(path).path}?after=now&pace=0 HTTP/1.1\r\nhost: {self.host}:{self.port}\r\n"
                f"authorization: Bearer {made['token']}\r\n{more}\r\n"
            ).encode()
            viewer = await self._viewer(head, kind=SocketViewer if socket else Viewer)
            await viewer.there.wait()
            viewers.append(viewer)
        path = f"/v1/sessions/{made['session_id']}/generations"

        async def send() -> None:
            now = time.monotonic_ns() // 1000
            for viewer in viewers:
                viewer.asked_at = now
            question = scripted(self.ask) if self.order.dialect == "okome-scripted" else generation(self.ask)
            answer = await call(url, "POST", path, made["token"], question)
            if answer.status != 202:
                raise ConnectionError(f"{answer.status} {answer.body[:200]!r}")

        return send


def generation(ask: Ask) -> dict[str, object]:
    """What asks a session for it."""
    return {"model": MODEL, "prompt": ask.prompt, "max_tokens": ask.tokens}


def scripted(ask: Ask) -> dict[str, object]:
    """The same for what a worker makes itself."""
    return {"model": "scripted", "prompt": ask.script}


class Viewer(asyncio.Protocol):
    """One connection that reads an answer."""

    def __init__(self, load: Load) -> None:
        self.asked_at = 0
        self.last_at = 0  # when it had its newest token
        self.there = asyncio.Event()
        self._load = load
        self._transport: asyncio.Transport | None = None
        self.block = self.before = b""  # the last two that were read
        self._body = Body()
        self._rest = b""
        self._next = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._load.over:
            self._load.lost += 1

    def say(self, head: bytes, body: bytes) -> None:
        assert self._transport is not None
        self._transport.write(head + body)

    def leave(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns() // 1000
        data = self._body.take(data)
        if not self.there.is_set():
            if not self._body.head:
                return
            self._answered(self._body.head + data, b" 200 ")
        end = data.rfind(b"\n") + 1
        if not end:
            self._rest += data
            return
        block, self._rest = self._rest + data[:end], data[end:]
        self._seen(block, now)

    def _answered(self, head: bytes, wanted: bytes) -> None:
        """The first bytes: is it a stream?"""
        if wanted not in head[:20]:
            self._load.refused = f"not a stream: {head[:300]!r}"
            self._load.all_begun.set()
        self.there.set()

    def _seen(self, block: bytes, now: int) -> None:
        found = TOKEN.findall(block)
        if not found:
            return
        self.before, self.block = self.block, block
        self.last_at = now
        load = self._load
        expected = self._next
        if expected < 0:
            expected = 0
            load.ttft.add(now - self.asked_at)
            load.waiting -= 1
            if not load.waiting:
                load.all_begun.set()
        for index, at in found:
            if int(index) != expected:
                load.wrong += 1
            expected = int(index) + 1
            if load.measuring:
                load.latency.add(now - int(at))
        self._next = expected
        load.tokens += len(found)


class SocketViewer(Viewer):
    """The same over WebSocket: a message an event."""

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns() // 1000
        data = self._rest + data
        at = 0
        if not self.there.is_set():
            at = data.find(HEAD_END) + 4
            if at < 4:
                self._rest = data
                return
            self._answered(data, b" 101 ")
        texts = []
        while True:
            start, end = _payload(data, at)
            if end > len(data):
                break
            if data[at] & 0x0F == PING:
                self.say(PONG, b"")
            else:
                texts.append(data[start:end])
            at = end
        self._rest = data[at:]
        self._seen(b"\n".join(texts), now)


def _payload(data: bytes, at: int) -> tuple[int, int]:
    """Where the payload of a server's frame (RFC 6455: not masked) is; it ends beyond the data if it is not whole."""
    if len(data) - at < 2:
        return at, len(data) + 1
    size = data[at + 1]
    if size < 126:
        return at + 2, at + 2 + size
    width = 2 if size == 126 else 8
    start = at + 2 + width
    if len(data) < start:
        return at, len(data) + 1
    return start, start + int.from_bytes(data[at + 2 : start], "big")


async def tell(seeing: Awaitable[msgspec.Struct]) -> None:
    """What was seen, on stdout; or on stderr in one line why nothing could be seen, and exit status 1."""
    try:
        seen = await seeing
    except (OSError, TimeoutError, ExceptionGroup) as error:
        first: BaseException = error
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        print(f"{type(first).__name__}: {first}", file=sys.stderr)
        sys.exit(1)
    print(msgspec.json.encode(seen).decode(), flush=True)


async def main() -> None:
    await tell(Load(msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)).run())


if __name__ == "__main__":
    uvloop.run(main())
