"""Viewers who come back, in a process of their own: how long they wait is not how busy the load's process is.

python -m bench.replay: orders come as lines of JSON on stdin, answers go as lines to stdout.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal, Self, cast

import msgspec
import uvloop

from bench.ask import TOKEN
from bench.body import Body
from bench.child import child

LINE = 1024 * 1024  # bytes of an order or an answer, at most
_EVENT = b"event: token\n"
_ENDS = {"caught_up": b"event: caught_up\n", "done": b"event: done\n"}

Until = Literal["first", "caught_up", "done"]


class Where(msgspec.Struct, frozen=True):
    host: str
    port: int


class Order(msgspec.Struct, frozen=True):
    """One connection that asks `head`, and leaves when it has had what it is for."""

    number: int
    head: str
    until: Until
    within: float  # seconds


class Replayed(msgspec.Struct, frozen=True):
    """`took`: microseconds from the request to what it was for. `error`: why that did not come."""

    number: int
    took: int = 0
    events: int = 0
    tokens: int = 0
    error: str = ""


class Replay(asyncio.Protocol):
    """One connection. `over` is set with what was waited for, or without."""

    def __init__(self, head: bytes, until: Until) -> None:
        self.events = self.tokens = self.took = 0
        self.over = asyncio.Event()
        self._head = head
        self._until = until
        self._sent_at = 0
        self._body = Body()
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
        whole, _, self._rest = (self._rest + self._body.take(data)).rpartition(b"\n")
        block = whole + b"\n"
        self.events += block.count(_EVENT)
        self.tokens += len(TOKEN.findall(block))
        if b" 200 " not in self._status:
            self.over.set()
        elif self.tokens and not self.took and (self._until == "first" or _ENDS[self._until] in block):
            self.took = took
            self.over.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.over.set()

    async def watch(self, number: int) -> Replayed:
        await self.over.wait()
        if not self.took:
            why = f"a viewer who came back was answered {self._status!r} and {self.tokens} tokens"
            return Replayed(number, error=why)
        return Replayed(number, self.took, self.events, self.tokens)

    def leave(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Replays:
    """The process, as the load sees it: `async with Replays.at(host, port)`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._asked: dict[int, asyncio.Future[Replayed]] = {}
        self._last = 0

    @classmethod
    @asynccontextmanager
    async def at(cls, host: str, port: int) -> AsyncIterator[Self]:
        async with child("bench.replay", Where(host, port)) as process, asyncio.TaskGroup() as tasks:
            self = cls(process)
            reading = tasks.create_task(self._read())
            yield self
            reading.cancel()

    async def replay(self, head: bytes, until: Until, within: float) -> Replayed:
        """Raises ConnectionError where what is waited for does not come."""
        assert self._process.stdin is not None
        self._last += 1
        order = Order(self._last, head.decode(), until, within)
        asked = self._asked[order.number] = asyncio.get_running_loop().create_future()
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")
        replayed: Replayed = await asked
        if replayed.error:
            raise ConnectionError(replayed.error)
        return replayed

    async def _read(self) -> None:
        """Raises ConnectionError when the process has ended."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        while line := await self._process.stdout.readline():
            replayed = msgspec.json.decode(line, type=Replayed)
            asked = self._asked.pop(replayed.number)
            if not asked.done():  # else whoever asked has gone
                asked.set_result(replayed)
        raise ConnectionError(f"replay: {(await self._process.stderr.read())[-200:]!r}")


async def main() -> None:
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader(limit=LINE)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    where = msgspec.json.decode(await orders.readline(), type=Where)

    async def carry_out(order: Order) -> None:
        replay = Replay(order.head.encode(), order.until)
        try:
            async with asyncio.timeout(order.within):
                await loop.create_connection(lambda: replay, where.host, where.port)
                told = await replay.watch(order.number)
        except TimeoutError:
            told = Replayed(order.number, error=f"no {order.until} within {order.within:.0f} s")
        except OSError as error:
            told = Replayed(order.number, error=str(error))
        replay.leave()
        print(msgspec.json.encode(told).decode(), flush=True)

    tasks: set[asyncio.Task[None]] = set()
    while line := await orders.readline():
        task = asyncio.create_task(carry_out(msgspec.json.decode(line, type=Order)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    for task in tasks:  # whoever gave the orders has gone
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    uvloop.run(main())
