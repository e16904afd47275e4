"""A session's log in memory under the real tail, rings, pages and subscribers: only NATS is played.

Every question to the log waits for some turns of the loop, as many as the test says, so that anything may happen
meanwhile. `settle` lets everybody run until nothing moves: who has not what it should have then has lost a wakeup.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, cast

from broker.bus.errors import BusUnavailable
from broker.bus.follow import Follow
from broker.bus.frames import DONE, START, TOKEN, Frame, decode_frame, encode_frame, encode_tokens
from broker.bus.log import Stored
from broker.bus.nats import Bus
from broker.bus.records import Generation
from broker.bus.subjects import log_subject
from broker.node.events import Event
from broker.node.history import History
from broker.node.log_reader import End, LogReader, Page, linked
from broker.node.pacer import Pacer
from broker.node.settings import NodeSettings
from broker.node.start import Start
from broker.node.subscriber import Subscriber
from broker.node.tail import Tail

SID = "00aaaaaaaaaaaaaaaaaaaa"
TURNS = 400  # of the loop, in which everything that can happen has happened


class MemoryLog:
    """What the stream holds, and what of it has been delivered to the tail."""

    def __init__(self, incarnation: str = "first", first: int = 1) -> None:
        self.incarnation = incarnation
        self.stored: list[Stored] = []
        self.undelivered: list[Stored] = []
        self.next_seq = first
        self.answers: list[str] = []  # names of generations
        self.delays: Iterator[int] = iter(())
        self.down = False
        self._gid = ""
        self._offset = 0

    @property
    def last(self) -> int:
        return self.stored[-1].seq if self.stored else 0

    @property
    def frames(self) -> list[Frame]:
        return [decode_frame(message.data, message.seq) for message in self.stored]

    def write(self, *, gap: int = 0) -> None:
        """The next frame of a conversation in which every answer has three tokens; `gap`: other sessions' frames."""
        self.next_seq += gap
        if not self._gid:
            self._gid, self._offset = f"g{len(self.answers)}{self.incarnation}", 0
            self.answers.append(self._gid)
            said = [{"role": "user", "content": "hi"}]
            self.put(self._frame(START, {"epoch": 1, "model": "m", "worker": "w", "input": said, "t": 1}))
        elif self._offset < 3:
            self.put(encode_tokens(TOKEN, self._gid, 1, "aaaaaaaa", self.last, self._offset, 1, f"{self._offset} "))
            self._offset += 1
        else:
            self.put(self._frame(DONE, {"finish_reason": "stop", "t": 1}))
            self._gid = ""

    def put(self, payload: bytes) -> None:
        message = Stored(self.next_seq, log_subject(SID), payload)
        self.next_seq += 1
        self.stored.append(message)
        self.undelivered.append(message)

    def purge(self, keep: int = 0) -> None:
        """Forget all but the newest `keep` frames; where nothing is left, the next generation begins at prev 0."""
        self.stored = self.stored[len(self.stored) - keep :] if keep else []
        self._gid = self._gid if keep else ""

    def _frame(self, kind: str, data: dict[str, Any]) -> bytes:
        return encode_frame(kind, self._gid, 1, "aaaaaaaa", self.last, self._offset, 0, data)

    async def asked(self) -> None:
        for _ in range(next(self.delays, 0)):
            await asyncio.sleep(0)
        if self.down:
            raise BusUnavailable("the test says so")


class MemoryReader(LogReader):
    """Pages of the log; sharing and budget are the real one's. They are short, so that a history has several."""

    page_size = 5
    long_page = 20

    def __init__(self, log: MemoryLog) -> None:
        super().__init__(cast(Bus, None), "TOK_00", 4)
        self.log = log
        self.asked: list[int] = []  # behind which places ...
        self.sizes: list[int] = []  # ... for how much

    def begin(self, sid: str, after: int, size: int | None = None) -> asyncio.Task[Page]:
        self.asked.append(after)
        self.sizes.append(size or self.page_size)
        return super().begin(sid, after, size)

    async def end(self, sid: str) -> End:
        await self.log.asked()
        frames = self.log.frames
        return End(frames[-1].seq, frames[-1]) if frames else End(0, None)

    async def at(self, sid: str, seq: int) -> Frame | None:
        await self.log.asked()
        return next((frame for frame in self.log.frames if frame.seq == seq), None)

    async def earliest(self, sid: str) -> int | None:
        await self.log.asked()
        frames = self.log.frames
        return frames[0].prev if frames else None

    async def _read(self, sid: str, after: int, size: int) -> Page:
        async with self._budget:
            await self.log.asked()
            found = [message for message in self.log.stored if message.seq > after][:size]
            page = linked(found, after) if found else Page([], broken=self.log.last != after)
            await self.log.asked()  # the answer is on its way: anything may happen meanwhile
            return page


class MemoryHistory(History):
    """No records: every turn is read from the log."""

    def __init__(self, log: MemoryLog) -> None:
        self.log = log

    async def generations(self, sid: str) -> list[Generation]:
        return []

    async def queued(self, tenant: str, sid: str, last: int) -> Generation | None:
        await self.log.asked()
        return None

    async def _logged(self, sid: str, stream: str, after: int) -> list[Frame]:
        await self.log.asked()
        return [frame for frame in self.log.frames if frame.seq > after]


class _Consumer:
    """What the tail asks of its follow."""

    restarts = 0
    seq = 0

    def hold(self, held: bool) -> None: ...


class MemoryTail(Tail):
    """A tail that is fed by `deliver`."""

    def __init__(self, log: MemoryLog, **settings: Any) -> None:
        super().__init__(cast(Bus, None), "00", NodeSettings.model_construct(**{**DEFAULTS, **settings}))
        self.log = log
        self.incarnation = log.incarnation
        self.reader = MemoryReader(log)
        self._follow = cast(Follow, _Consumer())

    def deliver(self, count: int) -> None:
        """The next messages of the log arrive."""
        for message in self.log.undelivered[:count]:
            self._receive(message.seq, message.subject, message.data, None)
        del self.log.undelivered[:count]

    def drop(self) -> None:
        """The next message is lost on the way."""
        del self.log.undelivered[:1]

    def evict(self) -> None:
        """Memory is needed: every ring gives back what it may."""
        limit, self._settings = self._settings, self._settings.model_copy(update={"partition_bytes": 0})
        self._evict()
        self._settings = limit

    def replace(self, log: MemoryLog) -> None:
        """What a look at the leader does when the stream was made anew."""
        self.log = log
        cast(MemoryReader, self.reader).log = log
        self.incarnation = log.incarnation
        self._rings.clear()
        self._bytes = 0
        for waiting in self._filling.values():
            waiting.clear()
        self.reader.renew()
        for sid in list(self._readers):
            self._wake(sid)

    async def end(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.reader.close()

    @property
    def asked(self) -> list[int]:
        """Behind which places pages were asked for."""
        return cast(MemoryReader, self.reader).asked

    @property
    def held_bytes(self) -> int:
        return self._bytes

    @property
    def ring_bytes(self) -> int:
        return sum(ring.size for ring in self._rings.values())


DEFAULTS = {"ring_frames": 16, "partition_bytes": 1 << 20, "page_readers": 4}


class Viewer:
    """A client that takes as many batches as it is allowed to. It is a sink too: `ready` while it `takes` live ones."""

    def __init__(
        self,
        tail: MemoryTail,
        history: History,
        start: Start,
        *,
        until_done: bool = False,
        gid: str = "",
        takes: bool = False,
        pacer: Pacer | None = None,
    ) -> None:
        self.subscriber = Subscriber(
            tail, history, "t", SID, start, "node", until_done=until_done, gid=gid, pacer=pacer
        )
        self.subscriber.sink = self
        self.takes = takes
        self.pushed = 0  # events that woke nobody
        self.events: list[Event] = []
        self._ended = False
        self._allowed = asyncio.Semaphore(0)
        self._free = False
        self.task = asyncio.create_task(self._run())

    @property
    def ready(self) -> bool:
        return self.takes

    def write(self, batch: list[Event]) -> None:
        assert self.takes
        self.events += batch
        self.pushed += len(batch)

    def allow(self) -> None:
        self._allowed.release()

    def free(self) -> None:
        """Take everything from now on."""
        self._free = True
        self._allowed.release()

    def ended(self) -> bool:
        """Whether the stream has come to its end by itself."""
        return self._ended

    @property
    def frames(self) -> list[Event]:
        """Events that are stored frames."""
        return [event for event in self.events if event.cursor and event.name not in ("hello", "message")]

    def names(self) -> list[str]:
        return [event.name for event in self.events]

    async def _run(self) -> None:
        async for batch in self.subscriber.events():
            self.events += batch
            while not self._free:
                await self._allowed.acquire()
                break
        self._ended = True


async def settle(turns: int = TURNS) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def end(tail: MemoryTail, viewers: list[Viewer]) -> None:
    for viewer in viewers:
        viewer.task.cancel()
    await asyncio.gather(*(viewer.task for viewer in viewers), return_exceptions=True)
    await tail.end()


Body = Callable[[MemoryLog, MemoryTail, MemoryHistory], Awaitable[None]]


def in_memory(body: Body, **options: Any) -> None:
    async def run() -> None:
        log = MemoryLog()
        tail = MemoryTail(log, **options)
        try:
            await body(log, tail, MemoryHistory(log))
        finally:
            await tail.end()

    asyncio.run(run())


def written(log: MemoryLog, tail: MemoryTail, count: int) -> None:
    for _ in range(count):
        log.write()
    tail.deliver(count)
