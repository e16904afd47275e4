"""The tail: a node's standing pull on one partition, feeding the rings of its sessions.

Started with the first viewer of the partition, a little before the partition's end, so that one read warms every ring.
Once a second it asks the leader where the partition ends: a consumer on a minority side heartbeats happily for ever.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import structlog

from broker.bus.errors import BusError, BusUnavailable, FrameMalformed
from broker.bus.follow import Follow
from broker.bus.frames import Frame, decode_frame
from broker.bus.log import StreamInfo, get, stream_info
from broker.bus.nats import Bus
from broker.bus.strays import is_stray
from broker.bus.subjects import log_stream
from broker.node import metrics
from broker.node.log_reader import LogReader
from broker.node.ring import TAKEN, Added, Ring
from broker.node.settings import NodeSettings

log = structlog.get_logger("node")

HEARTBEAT = 0.05  # a viewer waits while a consumer's silence is not believed (docs/decisions/heartbeats.md)
CHECK_INTERVAL = 1.0
LAG_TIMEOUT = 2.0  # the leader is ahead, or silent, for so long: another NATS server
PROOF_RETRY = 0.05
MAX_FILLING = 4096  # frames that wait for a hole before them to be filled; more are read again with the hole


class Reader(Protocol):
    """What a tail wakes: a subscriber."""

    def wake(self) -> None: ...


class Tail:
    """One partition. `lost` says why it cannot be trusted now, "" while it can."""

    def __init__(
        self, bus: Bus, partition: str, settings: NodeSettings, on_ended: Callable[[Ring], None] = lambda ring: None
    ) -> None:
        self.partition = partition
        self.stream = log_stream(partition)
        self.incarnation = ""
        self.lost = ""
        self.reader = LogReader(bus, self.stream, settings.page_readers)
        self.idle_since = 0.0  # loop time since which nobody reads
        self._bus = bus
        self._settings = settings
        self._on_ended = on_ended  # a generation of a session that somebody reads has ended
        self._rings: OrderedDict[str, Ring] = OrderedDict()  # least recently written first
        self._bytes = 0
        self._readers: dict[str, set[Reader]] = {}
        self._filling: dict[str, list[Frame]] = {}
        self._mending: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._follow: Follow | None = None
        self._trusted = 0  # consumers of the follow so far that are known to be of this very stream
        self._unproven: list[tuple[str, Frame]] | None = None  # from a newer one, until the leader has been asked
        self._hollow = 0  # up to here the leader has nothing that the tail has not seen
        self._created = ""
        self._begun = False
        self._end = 0  # the leader's last sequence at the look before
        self._uneasy_since = 0.0
        self._checker: asyncio.Task[None] | None = None
        self._looking = asyncio.Lock()

    async def start(self) -> None:
        """Raises BusError where the partition cannot be followed now."""
        info = await stream_info(self._bus, self.stream)
        await self._begin(info)
        self.idle_since = asyncio.get_running_loop().time()
        self._checker = asyncio.create_task(self._check(), name=f"tail-{self.partition}")

    async def close(self) -> None:
        """Idempotent. Readers are not told: whoever closes a tail has none left or is ending."""
        for task in [*self._tasks, *([self._checker] if self._checker else [])]:
            task.cancel()
        await asyncio.gather(*self._tasks, *([self._checker] if self._checker else []), return_exceptions=True)
        await self.reader.close()
        if self._follow is not None:
            await self._follow.close()

    # -- readers ---------------------------------------------------------------------------------------------------

    @property
    def read(self) -> bool:
        return bool(self._readers)

    def join(self, sid: str, reader: Reader) -> None:
        self._readers.setdefault(sid, set()).add(reader)

    def leave(self, sid: str, reader: Reader) -> None:
        readers = self._readers.get(sid)
        if readers is None:
            return
        readers.discard(reader)
        if not readers:
            del self._readers[sid]
            self.idle_since = asyncio.get_running_loop().time()

    def readers(self, sid: str) -> set[Reader]:
        return self._readers.get(sid, set())

    def sessions(self) -> list[tuple[Ring, set[Reader]]]:
        """Sessions that somebody reads here."""
        return [(self.ring(sid), readers) for sid, readers in self._readers.items()]

    def ring(self, sid: str) -> Ring:
        """The session's ring; a new one knows nothing (`floor` is None) until `locate` or its first frame."""
        ring = self._rings.get(sid)
        if ring is None:
            ring = self._rings[sid] = Ring(sid, self.incarnation, self._settings.ring_frames)
            self._bytes += ring.size
        return ring

    async def locate(self, sid: str) -> Ring:
        """The session's ring, knowing where its log ends; asks the leader where the tail has not said so yet."""
        ring = self.ring(sid)
        if ring.floor is None:
            incarnation = self.incarnation
            end = await self.reader.end(sid)
            ring = self.ring(sid)  # another one if the tail began anew meanwhile
            if self.incarnation != incarnation:
                return await self.locate(sid)
            ring.begin(end.seq, end.frame)
            if self._bytes > self._settings.partition_bytes:
                self._evict()
        return ring

    # -- frames ----------------------------------------------------------------------------------------------------

    async def _begin(self, info: StreamInfo) -> None:
        self._begun = False  # where this fails, the next look begins again
        self._created = info.created
        self._rings.clear()
        self._bytes = 0
        for waiting in self._filling.values():
            waiting.clear()  # frames of the log before
        self.reader.renew()
        self._end = self._hollow = 0
        self._trusted = 0
        self._unproven = None
        self.incarnation = info.incarnation
        after = max(0, info.last_seq - self._settings.warm_frames)
        self._follow = Follow(
            self._bus,
            self.stream,
            [f"tok.{self.partition}.*"],
            f"tail-{self._bus.id}-{self.partition}",
            self._receive,
            after=after,
            credit=self._settings.tail_credit,
            heartbeat=HEARTBEAT,
            headers=False,  # every frame has the fence it was stored under
        )
        await self._follow.start()
        async with asyncio.timeout(self._settings.attach_timeout):
            await self._follow.caught_up.wait()
        if self._follow.restarts:  # of what stream was the newest consumer?
            again = await stream_info(self._bus, self.stream)
            if (again.incarnation, again.created) != (self.incarnation, self._created):
                raise BusUnavailable(f"{self.stream} was made anew while its tail began")
        self._trusted = self._follow.restarts
        self._uneasy_since = 0.0  # not before: a tail that cannot begin is lost as one that does not go on
        self._begun = True

    def _receive(self, seq: int, subject: str, payload: bytes, headers: dict[str, str] | None) -> None:
        sid = subject[7:]  # behind `tok.<pp>.`
        try:
            frame = decode_frame(payload, seq)
        except FrameMalformed as error:
            log.error("node.frame_refused", sid=sid, error=str(error))
            if is_stray(payload) and sid not in self._mending:
                self._mending.add(sid)
                self._spawn(self._mend(sid))
            return
        assert self._follow is not None
        if self._unproven is not None:
            self._unproven.append((sid, frame))  # bounded by the credit: the follow is held
        elif self._begun and self._follow.restarts != self._trusted:
            self._unproven = [(sid, frame)]
            self._follow.hold(True)
            self._spawn(self._prove())
        else:
            self._offer(sid, frame)

    async def _mend(self, sid: str) -> None:
        try:
            await self.reader.mend(sid)
        finally:
            self._mending.discard(sid)

    async def _prove(self) -> None:
        """The consumer is a new one: it may be of a stream that was made anew under the same name. Ask before showing
        anything of it."""
        while self._unproven is not None:
            try:
                await self._look()
            except (BusError, TimeoutError):
                await asyncio.sleep(PROOF_RETRY)

    def _release(self, count: int, restarts: int) -> None:
        """It is the same stream still: what had come before the leader was asked is of it."""
        assert self._follow is not None
        if self._unproven is None:
            return
        proven, self._unproven = self._unproven[:count], self._unproven[count:]
        for sid, frame in proven:
            self._offer(sid, frame)
        if not self._unproven:
            self._unproven = None
            self._trusted = restarts
            self._follow.hold(False)

    def _offer(self, sid: str, frame: Frame) -> None:
        waiting = self._filling.get(sid)
        if waiting is not None:
            if len(waiting) < MAX_FILLING:
                waiting.append(frame)
            else:
                waiting[-1] = frame  # what it takes the place of is a hole before it, and is filled like one
            return
        added = self._add(self.ring(sid), frame)
        if added is TAKEN:
            self._rings.move_to_end(sid)
            if self._bytes > self._settings.partition_bytes:
                self._evict()
            if readers := self._readers.get(sid):
                for reader in readers:
                    reader.wake()
                if frame.terminal:
                    self._on_ended(self._rings[sid])
            return
        match added:
            case Added.HOLE:
                metrics.holes.inc()
                self._filling[sid] = [frame]
                self._spawn(self._fill(sid))
            case Added.FORKED:
                log.warning("node.log_forked", sid=sid, seq=frame.seq, prev=frame.prev)
                self._forget(sid)  # readers go on from the log, which tells them `reset`
                self._add(self.ring(sid), frame)
                self._wake(sid)
            case Added.BROKEN:
                log.error("node.frame_refused", sid=sid, seq=frame.seq, type=frame.type, why="it may not follow")
                self._forget(sid)
                self._wake(sid)
            case Added.OLD:
                pass

    def _evict(self) -> None:
        """Forget rings that nobody reads, the least recently written first; then push readers behind shorter rings."""
        for sid in list(self._rings):
            if self._bytes <= self._settings.partition_bytes:
                return
            if sid not in self._readers and sid not in self._filling:
                self._bytes -= self._rings.pop(sid).size
        for ring in sorted(self._rings.values(), key=lambda ring: -ring.size):
            if self._bytes <= self._settings.partition_bytes:
                return
            self._bytes -= ring.trim(len(ring) // 2)

    async def _fill(self, sid: str) -> None:
        """Read what is missing between a ring and the frames that wait, then add those."""
        try:
            while waiting := self._filling[sid]:
                ring = self.ring(sid)
                if ring.floor is None or ring.last >= waiting[0].prev:
                    self._drain(sid)
                    continue
                page = await self.reader.page(sid, ring.last)
                if self.ring(sid) is not ring:
                    continue  # the tail began anew meanwhile
                taken = [self._add(ring, missing) for missing in page.frames]
                if Added.TAKEN not in taken:
                    # The log has no chain from here to there. The ring begins anew behind the hole; readers of its old
                    # end go on from the log, which tells them `reset`.
                    self._forget(sid)
                    self._wake(sid)
        except BusError as error:
            log.warning("node.hole_not_filled", sid=sid, error=repr(error))
            self._forget(sid)  # readers go on from the log itself, which says whether it is whole
        finally:
            self._filling.pop(sid, None)
            self._wake(sid)

    def _drain(self, sid: str) -> None:
        """Add the frames that waited, up to the next hole."""
        waiting = self._filling[sid]
        ring = self.ring(sid)
        taken = 0
        for frame in waiting:
            if ring.floor is not None and frame.prev > ring.last:
                break
            added = self._add(ring, frame)
            taken += 1
            if added in (Added.FORKED, Added.BROKEN):
                self._forget(sid)
                ring = self.ring(sid)
                if added is Added.FORKED:
                    self._add(ring, frame)
            elif added is Added.TAKEN and frame.terminal and sid in self._readers:
                self._on_ended(ring)
        del waiting[: max(taken, 1)]

    def _add(self, ring: Ring, frame: Frame) -> Added:
        before = ring.size
        added = ring.add(frame)
        self._bytes += ring.size - before
        return added

    def _forget(self, sid: str) -> None:
        ring = self._rings.pop(sid, None)
        if ring is not None:
            self._bytes -= ring.size

    def _wake(self, sid: str) -> None:
        for reader in self._readers.get(sid, ()):
            reader.wake()

    # -- liveness --------------------------------------------------------------------------------------------------

    async def _check(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(CHECK_INTERVAL)
            try:
                await self._look()
                continue
            except (BusError, TimeoutError) as error:
                why = repr(error)
            self._uneasy_since = self._uneasy_since or loop.time()
            if loop.time() - self._uneasy_since >= LAG_TIMEOUT:
                await self._distrust(f"the partition's leader does not answer: {why}")

    async def _look(self) -> None:
        """Ask the leader and hold its answer against what the tail had seen before it was asked."""
        async with self._looking:  # one at a time: it may begin anew
            assert self._follow is not None
            seen, restarts, count = self._follow.seq, self._follow.restarts, len(self._unproven or ())
            info = await stream_info(self._bus, self.stream, timeout=1.0)
            same = (info.incarnation, info.created) == (self.incarnation, self._created) and info.last_seq >= seen
            if not (same and self._begun):
                log.warning("node.log_replaced", partition=self.partition, was=self.incarnation, now=info.incarnation)
                await self._follow.close()
                await self._begin(info)
                for sid in list(self._readers):
                    self._wake(sid)
                return
            self._release(count, restarts)
            await self._judge(info)

    async def _judge(self, info: StreamInfo) -> None:
        """Whether the tail keeps up with the leader."""
        assert self._follow is not None
        if await self._behind():
            loop = asyncio.get_running_loop()
            self._uneasy_since = self._uneasy_since or loop.time()
            if loop.time() - self._uneasy_since >= LAG_TIMEOUT:
                await self._distrust(f"the tail is at {self._follow.seq}, the leader at {info.last_seq}")
        else:
            self._uneasy_since = 0.0
            self.lost = ""
        self._end = info.last_seq

    async def _behind(self) -> bool:
        """Whether the leader has had for a second what the tail has not seen. A last sequence alone does not tell:
        what stood there may have been purged, or have aged out."""
        assert self._follow is not None
        if self._end <= max(self._hollow, self._follow.seq):
            return False
        missing = await get(self._bus, self.stream, self._follow.seq + 1, next_by=f"tok.{self.partition}.*")
        if missing is None:
            self._hollow = self._end
        elif missing.seq > self._end:
            self._hollow = missing.seq - 1
        else:
            return self._follow.seq < missing.seq
        return False

    async def _distrust(self, why: str) -> None:
        assert self._follow is not None
        if not self.lost:
            log.warning("node.tail_distrusted", partition=self.partition, why=why)
        self.lost = why
        self._uneasy_since = 0.0
        metrics.tail_moves.inc()
        await self._bus.kick()
        self._follow.restart()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
