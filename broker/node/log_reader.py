"""The log behind the rings: pages of one partition, under a budget, shared by the readers of one session.

A direct get may be answered by a replica that lags, and a lagging replica says "nothing there" like any other. So an
empty or gapped page proves nothing: it is asked for again, and after three times at the leader, whose word is final.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import structlog

from broker.bus import log as jetstream
from broker.bus.errors import BusError, FrameMalformed, Refusal
from broker.bus.frames import Frame, decode_frame
from broker.bus.nats import Bus
from broker.bus.operations import MendSession
from broker.bus.scan import Scan
from broker.bus.strays import is_stray
from broker.bus.subjects import log_subject
from broker.node import metrics

LEADER_PAGE = 8  # one request a message
REPLICA_TRIES = 3
REPLICA_RETRY = 0.02
MEND_TRIES = 3
SCANS = 8  # of a partition: who reads a long history beside so many others reads on by direct gets
SCAN_PAUSE = 5.0  # seconds without a new scan after one could not be made
SCAN_IDLE = 1.0  # seconds after which a scan that nobody went on with goes

log = structlog.get_logger("node")


class Page(NamedTuple):
    """Frames that follow one another. `broken`: no frame of the log follows the last of them (or the start)."""

    frames: list[Frame]
    broken: bool


class End(NamedTuple):
    """Where a session's log ends: its last sequence (0: it is empty) and frame (None: what stands there is none)."""

    seq: int
    frame: Frame | None


class LogReader:
    """Reads one partition's stream."""

    page_size = jetstream.PAGE  # frames at most ...
    long_page = 4 * jetstream.PAGE  # ... and of a page for one who reads a long history as quickly as it comes

    def __init__(self, bus: Bus, stream: str, readers: int) -> None:
        self._bus = bus
        self._stream = stream
        self._budget = asyncio.Semaphore(readers)
        self._running: dict[tuple[str, int], asyncio.Task[Page]] = {}
        self._tasks: set[asyncio.Task[Page]] = set()
        self._scans: dict[tuple[str, int], tuple[Scan, asyncio.TimerHandle]] = {}  # by the place where each goes on
        self._closing: set[asyncio.Task[None]] = set()
        self._scanning = 0
        self._no_scan_before = 0.0

    async def page(self, sid: str, after: int) -> Page:
        """The next frames behind `after`, each of which names the one before it, at most a page.

        No frames and not broken: the leader says that `after` is the session's last sequence. Raises BusUnavailable.
        Readers that ask for the same page at the same time share the answer.
        """
        return await asyncio.shield(self.begin(sid, after))  # one that goes away must not take it from the others

    def begin(self, sid: str, after: int, size: int | None = None) -> asyncio.Task[Page]:
        """The same page, asked for now and awaited later, or never: shield it. `size`: another one than usual."""
        key = (sid, after)
        task = self._running.get(key)
        if task is None:
            metrics.pages.inc()
            task = asyncio.create_task(self._read(sid, after, size or self.page_size), name=f"page-{self._stream}")
            self._running[key] = task
            self._tasks.add(task)
            task.add_done_callback(lambda done: self._read_out(key, done))
        return task

    def renew(self) -> None:
        """The log is another one: pages that are on their way are of the old one, and nobody new shares them."""
        self._running = {}
        self._forget_scans()

    def _read_out(self, key: tuple[str, int], done: asyncio.Task[Page]) -> None:
        if self._running.get(key) is done:
            del self._running[key]
        self._tasks.discard(done)
        if not done.cancelled():
            done.exception()  # retrieved, also where all who asked have gone

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._forget_scans()
        await asyncio.gather(*self._closing)

    async def end(self, sid: str) -> End:
        """Where the session's log ends, at the leader."""
        stored = await jetstream.last(self._bus, self._stream, log_subject(sid))
        for _ in range(MEND_TRIES):
            if stored is None or not is_stray(stored.data):
                break
            await self.mend(sid)
            stored = await jetstream.last(self._bus, self._stream, log_subject(sid))
        if stored is None:
            return End(0, None)
        try:
            return End(stored.seq, decode_frame(stored.data, stored.seq))
        except FrameMalformed:
            return End(stored.seq, None)

    async def mend(self, sid: str) -> None:
        """Have OKOME take out of the log what is a frame of no version."""
        log.error("node.stray_met", sid=sid)
        try:
            await self._bus.ask("session_mend", MendSession(sid), dict)
        except (BusError, Refusal) as error:
            log.warning("node.not_mended", sid=sid, error=repr(error))

    async def at(self, sid: str, seq: int) -> Frame | None:
        """The session's frame at a sequence, at the leader; None: it has aged out, or is not one of this session."""
        stored = await jetstream.get(self._bus, self._stream, seq)
        if stored is None or stored.subject != log_subject(sid):
            return None
        try:
            return decode_frame(stored.data, stored.seq)
        except FrameMalformed:
            return None

    async def earliest(self, sid: str) -> int | None:
        """The earliest sequence a cursor may hold: that before the first frame still there; None: nothing is there."""
        stored = await jetstream.get(self._bus, self._stream, 1, next_by=log_subject(sid))
        if stored is None:
            return None
        try:
            return decode_frame(stored.data, stored.seq).prev
        except FrameMalformed:
            return stored.seq - 1  # whatever it is, reading on from there meets it

    async def _read(self, sid: str, after: int, size: int) -> Page:
        async with self._budget:
            if (scanned := await self._scanned(sid, after, size)) is not None:
                return scanned
            for attempt in range(REPLICA_TRIES + 1):
                leader = attempt == REPLICA_TRIES
                stored = await jetstream.page(
                    self._bus,
                    self._stream,
                    log_subject(sid),
                    after,
                    batch=LEADER_PAGE if leader else size,
                    leader=leader,
                    bare=True,
                )
                page = linked(stored, after)
                if leader:
                    return page
                if page.frames:
                    return Page(page.frames, broken=False)  # what a replica lacks may be there at the leader
                if not stored:
                    # "Nothing there", says a replica, and usually that is true: ask the leader where the end is.
                    end = await self.end(sid)
                    if end.seq <= after:
                        return Page([], broken=end.seq != after)
                elif is_stray(stored[0].data):
                    await self.mend(sid)
                await asyncio.sleep(REPLICA_RETRY)
            raise AssertionError("the leader's word is final")

    async def _scanned(self, sid: str, after: int, size: int) -> Page | None:
        """A page by a scan that stands at this place, or for a long page by a new one. None where that gives nothing:
        what there is else tells why."""
        scan = self._resting((sid, after))
        found, running = scan is not None, self._running
        if scan is None and (size <= self.page_size or not self._may_scan()):
            return None
        self._scanning += 1
        try:
            if scan is None:
                scan = Scan(self._bus, self._stream, log_subject(sid), f"scan-{self._bus.id}")
                await scan.open(after)
            stored = await scan.page(size)
            page = linked(stored, after)
            if page.frames and not (scan.at_end or page.broken) and running is self._running:
                self._rest((sid, page.frames[-1].seq), scan)
                scan = None
        except BusError as error:
            log.debug("node.scan_failed", stream=self._stream, error=repr(error))
            if not found:
                self._no_scan_before = asyncio.get_running_loop().time() + SCAN_PAUSE
            return None
        finally:
            self._scanning -= 1
            if scan is not None:
                self._discard(scan)
        return page._replace(broken=False) if page.frames else None

    def _may_scan(self) -> bool:
        now = asyncio.get_running_loop().time()
        return now >= self._no_scan_before and self._scanning + len(self._scans) < SCANS

    def _rest(self, place: tuple[str, int], scan: Scan) -> None:
        """Until somebody goes on from there, or nobody does."""
        self._forget_scan(place)  # of somebody else who came there: one is enough
        timer = asyncio.get_running_loop().call_later(SCAN_IDLE, self._forget_scan, place)
        self._scans[place] = (scan, timer)

    def _resting(self, place: tuple[str, int]) -> Scan | None:
        """The scan that stands there, for whoever goes on with it."""
        if (found := self._scans.pop(place, None)) is None:
            return None
        scan, timer = found
        timer.cancel()
        return scan

    def _forget_scan(self, place: tuple[str, int]) -> None:
        if (scan := self._resting(place)) is not None:
            self._discard(scan)

    def _forget_scans(self) -> None:
        for place in list(self._scans):
            self._forget_scan(place)

    def _discard(self, scan: Scan) -> None:
        closing = asyncio.create_task(scan.close(), name=f"scan-{self._stream}")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


def linked(stored: list[jetstream.Stored], after: int) -> Page:
    """The frames that follow `after` without a hole. Pure. What may follow what is `Chain`'s to say."""
    frames: list[Frame] = []
    for message in stored:
        try:
            frame = decode_frame(message.data, message.seq)
        except FrameMalformed:
            return Page(frames, broken=True)
        if frame.prev != after:
            return Page(frames, broken=True)
        frames.append(frame)
        after = frame.seq
    return Page(frames, broken=False)
