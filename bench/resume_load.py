"""The load of `okome bench resume`: viewers who stay, others who come back with a cursor, and one very long session.

python -m bench.resume_load < order.json
"""

from __future__ import annotations

import asyncio
import random
import re
import sys
import time
from typing import cast

import msgspec
import uvloop

from bench.ask import TOKEN, Ask
from bench.histogram import Histogram, Times
from bench.load import Load, Order, generation, tell
from bench.record import Loaded
from compose.chaos.http import call

HISTORY_RATE = 2000.0  # tokens a second that the long session is written at
HISTORY_SLACK = 60.0
REPLAY_TIMEOUT = 30.0
REPLAY_PAUSE = 1.0
_CURSOR = re.compile(rb"id: (\S+)\n")
_EVENT = b"event: token\n"
_CAUGHT_UP = b"event: caught_up\n"
_END = b"event: done\n"


class ResumeOrder(msgspec.Struct, frozen=True):
    """resumes: a second, in the second window. history: tokens of the long session, which the third one reads."""

    order: Order
    resumes: float
    history: int


class Seen(msgspec.Struct, frozen=True):
    ring: Times
    events: int
    seconds: list[float]
    quiet: Loaded
    resuming: Loaded
    replaying: Loaded


class Replay(asyncio.Protocol):
    """One connection that comes back. `first`, `caught_up`: microseconds after its request. `ended`: an answer has."""

    def __init__(self, head: bytes) -> None:
        self.events = self.tokens = 0
        self.first = self.caught_up = 0
        self.begun = asyncio.Event()
        self.done = asyncio.Event()
        self.ended = asyncio.Event()
        self._head = head
        self._sent_at = 0
        self._rest = b""
        self._status = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._sent_at = time.monotonic_ns()
        self._transport.write(self._head)

    def data_received(self, data: bytes) -> None:
        took = (time.monotonic_ns() - self._sent_at) // 1000
        self._status = self._status or data[:20]
        end = data.rfind(b"\n") + 1
        block, self._rest = self._rest + data[:end], data[end:]
        self.events += block.count(_EVENT)
        self.tokens += len(TOKEN.findall(block))
        if b" 200 " not in self._status:
            self.connection_lost(None)
        if self.tokens and not self.first:
            self.first = took
            self.begun.set()
        if _CAUGHT_UP in block and not self.caught_up:
            self.caught_up = took
            self.done.set()
        if _END in block:
            self.ended.set()

    def connection_lost(self, error: Exception | None) -> None:
        for event in (self.begun, self.done, self.ended):
            event.set()

    async def reach(self, event: asyncio.Event) -> None:
        """Raises ConnectionError where it is no stream, or ended before that."""
        await event.wait()
        if b" 200 " not in self._status or not self.tokens:
            raise ConnectionError(f"a viewer who came back was answered {self._status!r} and {self.tokens} tokens")

    def leave(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class ResumeLoad:
    """`run` raises ConnectionError where something is refused, or does not come."""

    def __init__(self, order: ResumeOrder) -> None:
        self._load = Load(order.order)
        self._order = order
        self._ring = Histogram()

    async def run(self) -> Seen:
        load = self._load
        path, token = await self._write_history()
        await load.begin()
        quiet = await load.watch()
        async with asyncio.TaskGroup() as tasks:
            window = tasks.create_task(load.watch())
            tasks.create_task(self._come_back(window))
        resuming = window.result()
        async with asyncio.TaskGroup() as tasks:
            window = tasks.create_task(load.watch())
            reading = tasks.create_task(self._read_again(window, self._head(f"{path}?after=0&pace=0", token)))
        events, seconds = reading.result()
        load.leave()
        return Seen(self._ring.told(), events, seconds, quiet, resuming, window.result())

    async def _write_history(self) -> tuple[str, str]:
        """A session whose answer is as long as ordered: where it is read, and the token for it."""
        url, key = self._load.order.url, self._load.order.key
        made = (await call(url, "POST", "/v1/sessions", key, {})).json()
        ask = Ask(tokens=self._order.history, rate=HISTORY_RATE)
        where = f"/v1/sessions/{made['session_id']}/generations"
        answer = await call(url, "POST", where, made["token"], generation(ask))
        if answer.status != 202:
            raise ConnectionError(f"{answer.status} {answer.body[:200]!r}")
        head = self._head(f"{made['events_url']}?after=0&pace=0", made["token"])
        replay = await self._replay(head)
        async with asyncio.timeout(self._order.history / HISTORY_RATE + HISTORY_SLACK):
            await replay.reach(replay.ended)
        replay.leave()
        if replay.tokens != self._order.history:
            raise ConnectionError(f"the long session has {replay.tokens} tokens, not {self._order.history}")
        return made["events_url"], made["token"]

    async def _come_back(self, window: asyncio.Task[Loaded]) -> None:
        """Sessions drawn by chance are watched by one more, from a little before their end."""
        loop = asyncio.get_running_loop()
        rng = random.Random(1)
        due = loop.time()
        async with asyncio.TaskGroup() as tasks:
            while not window.done():
                watching = rng.choice(self._load.watching)
                if cursor := _CURSOR.search(watching.viewer.before):
                    head = watching.head.replace(b"after=now", b"after=" + cursor[1])
                    tasks.create_task(self._resume(head))
                due += 1 / self._order.resumes
                await asyncio.sleep(max(0.0, due - loop.time()))

    async def _resume(self, head: bytes) -> None:
        replay = await self._replay(head)
        try:
            async with asyncio.timeout(REPLAY_TIMEOUT):
                await replay.reach(replay.begun)
        finally:
            replay.leave()
        self._ring.add(replay.first)

    async def _read_again(self, window: asyncio.Task[Loaded], head: bytes) -> tuple[int, list[float]]:
        """The long session from its beginning, again and again: its events, and the seconds that each time took."""
        seconds: list[float] = []
        events = 0
        while not window.done():
            replay = await self._replay(head)
            try:
                async with asyncio.timeout(REPLAY_TIMEOUT):
                    await replay.reach(replay.done)
            finally:
                replay.leave()
            if replay.tokens != self._order.history:
                raise ConnectionError(f"{replay.tokens} of {self._order.history} tokens were read again")
            events = replay.events
            seconds.append(replay.caught_up / 1e6)
            await asyncio.sleep(REPLAY_PAUSE)
        return events, seconds

    async def _replay(self, head: bytes) -> Replay:
        loop = asyncio.get_running_loop()
        _, replay = await loop.create_connection(lambda: Replay(head), self._load.host, self._load.port)
        return replay

    def _head(self, path: str, token: str) -> bytes:
        return (
            f"GET {path} HTTP/1.1\r\nhost: {self._load.host}:{self._load.port}\r\n"
            f"authorization: Bearer {token}\r\naccept: text/event-stream\r\n\r\n"
        ).encode()


async def main() -> None:
    await tell(ResumeLoad(msgspec.json.decode(sys.stdin.buffer.readline(), type=ResumeOrder)).run())


if __name__ == "__main__":
    uvloop.run(main())
