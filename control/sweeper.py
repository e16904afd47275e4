"""The sweeper: what was left undone by whoever died. One replica sweeps; two at once do no harm.

It looks, judges (`verdicts`) and acts; every act is fenced or idempotent.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import structlog

from broker.bus.attempts import barren_epochs
from broker.bus.errors import BusError, ChainBroken, FrameMalformed, StoreRejected
from broker.bus.frames import EXPIRED, FAILED
from broker.bus.kv import Bucket
from broker.bus.nats import Bus
from broker.bus.observer import SILENCE
from broker.bus.queue import nak
from broker.bus.records import Generation, Session, Status, decode
from broker.bus.subjects import job_subject
from control import metrics
from control.abreast import abreast
from control.endings import Endings
from control.generations import queue_job
from control.lanes import Place, delete_job, empty_lane, every, lanes, queued_jobs, remove_lanes, worker_of
from control.open_generations import OpenGenerations
from control.pulse import Pulse
from control.routing import has_lane, saturated
from control.settings import ControlSettings
from control.verdicts import QUEUED_BY_NOW, RETURNED_BY_NOW, Case, Verdict, judge

HEARD = 2.0  # seconds of hearing beats before anybody's absence means anything
LOOK = 2.0  # seconds between two looks at one waiting generation
TURN_LOOK = 10.0  # the same while no worker of its model has a slot free: nobody could take it anyway
LOOK_PAUSE = 0.05  # seconds between two rounds, at least, however many are cancelled
SETTLE = 0.5  # not held for so long: worth a look
SCAN = 5.0  # seconds that a scan of the queue is used
LANE_KEPT = 60.0  # seconds that the consumer of an absent worker's lane is kept
ABREAST = 8

log = structlog.get_logger("control")


class Sweeper:
    """Sweeps while `pulse` says that this replica is the active one."""

    def __init__(
        self, bus: Bus, settings: ControlSettings, pulse: Pulse, opened: OpenGenerations, endings: Endings
    ) -> None:
        self._bus = bus
        self._settings = settings
        self._pulse = pulse
        self._open = opened
        self._cancelled = asyncio.Event()
        opened.on_cancel = self._on_cancel
        self._endings = endings
        self._sessions = Bucket(bus, "sessions")
        self._generations = Bucket(bus, "generations", settings.deleted_life)
        self._active_since: float | None = None
        self._unheld: dict[str, float] = {}  # gid -> since when nobody is seen to hold it
        self._turn: set[str] = set()  # gids that nobody holds because no worker of their model has a slot free
        self._lost_for: dict[str, float] = {}  # gid that was held or in `_turn` -> how long it was neither since
        self._watched_at = 0.0
        self._looked_at: dict[str, float] = {}
        self._jobs: tuple[float, dict[str, list[Place]]] = (float("-inf"), {})
        self._over: dict[str, float] = {}  # gid that was ended here -> when; its job may still be in the queue
        self._lanes_removed_at = 0.0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_PAUSE)
            await self._next_round()
            try:
                await self.sweep()
            except BusError as error:
                log.info("sweep.put_off", error=repr(error))

    async def _next_round(self) -> None:
        """After the interval, or as soon as somebody cancels what no worker holds: it waits in the queue."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.sweep_interval):
                await self._cancelled.wait()
        self._cancelled.clear()

    def _on_cancel(self, gid: str) -> None:
        if not self._pulse.holder(gid):
            self._cancelled.set()

    async def sweep(self) -> None:
        """One round. Raises BusError."""
        now = asyncio.get_running_loop().time()
        active = self._pulse.active()
        metrics.active.set(active)
        self._watch(now)
        if not active:
            self._active_since = None
            self._unheld.clear()
            self._over.clear()
            return
        if self._active_since is None:
            self._active_since = self._lanes_removed_at = now
        if now - self._active_since < HEARD:
            return
        try:
            await self._sweep_lanes(now)
        except BusError as error:
            log.info("sweep.lanes_put_off", error=repr(error))
        await abreast(ABREAST, self._sweep_one, self._due(now))
        await self._take_out()

    async def _sweep_lanes(self, now: float) -> None:
        """Move what is in the lane of a worker that is gone, or that serves it no more: a lane that it does not have,
        or has left because it drains. What such a one still holds stays with it."""

        def free(gid: str) -> bool:
            return now - self._unheld.get(gid, now) >= SETTLE

        live, beats = self._pulse.live(), self._pulse.workers(SILENCE)
        for subject in await lanes(self._bus):
            worker = worker_of(subject)
            loads = beats[worker].models if worker in beats else {}
            served = {job_subject(model, worker) for model, load in loads.items() if has_lane(load)}
            if worker in live and (worker not in beats or subject in served):
                continue
            try:
                moved = await empty_lane(self._bus, subject, free if worker in live else every)
            except StoreRejected as error:
                log.warning("sweep.lane_not_emptied", lane=subject, error=repr(error))
                continue
            if moved:
                metrics.sweeps.labels("move").inc(moved)
        if now - self._lanes_removed_at >= LANE_KEPT:
            self._lanes_removed_at = now
            await remove_lanes(self._bus, self._pulse.workers(LANE_KEPT))

    def _watch(self, now: float) -> None:
        """Note since when nobody is seen to hold which open generation, and how long somebody could have."""
        records, beats = self._open.records, self._pulse.workers(SILENCE)
        held = {gid for beat in beats.values() for gid in beat.held}
        self._unheld = {gid: self._unheld.get(gid, now) for gid in records if gid not in held}
        full = saturated(beats)
        self._turn = {gid for gid in self._unheld if records[gid].request.model in full}
        waits = held | self._turn
        since, self._watched_at = now - (self._watched_at or now), now
        known = dict.fromkeys(waits, 0.0) | self._lost_for
        self._lost_for = {
            gid: seconds + (0.0 if gid in waits else since) for gid, seconds in known.items() if gid in records
        }

    def _due(self, now: float) -> list[Generation]:
        """The open generations that nobody is seen to hold, and that were not looked at just now."""
        records = self._open.records
        self._looked_at = {gid: at for gid, at in self._looked_at.items() if gid in self._unheld}
        due = []
        for gid, since in self._unheld.items():
            record = records.get(gid)  # it may have ended since it was noted: the lanes were looked at meanwhile
            if record is None:
                continue
            # What somebody asked to cancel is looked at every time, and at once where no worker could have taken it.
            settle = 0.0 if record.cancel and gid in self._turn else SETTLE
            pause = 0.0 if record.cancel else TURN_LOOK if gid in self._turn else LOOK
            looked_ago = now - self._looked_at.get(gid, float("-inf"))
            if now - since >= settle and looked_ago >= min(pause, self._settings.job_wait / 2):
                self._looked_at[gid] = now
                due.append(record)
        return due

    async def _sweep_one(self, record: Generation) -> None:
        try:
            case = await self._case(record)
            verdict = judge(case)
            if verdict is not Verdict.WAIT:
                await self._act(verdict, record)
        except BusError as error:
            log.warning("sweep.failed", sid=record.sid, gid=record.id, error=repr(error))
        except (ChainBroken, FrameMalformed) as error:
            log.warning("sweep.log_unreadable", sid=record.sid, gid=record.id, error=repr(error))
            await self._abandon(record)
        except Exception as error:  # the safety net: whatever one log holds must not keep the others waiting
            log.error("sweep.broken", sid=record.sid, gid=record.id, exc_info=error)
            await self._abandon(record)

    async def _abandon(self, record: Generation, patience: int = 1) -> None:
        """What nobody has held for `patience` times `job_wait`, and whose log cannot be gone on with, can be ended by
        nobody. Until then a worker of another version, which reads what we cannot, may take it."""
        now = asyncio.get_running_loop().time()
        if now - self._unheld.get(record.id, now) < patience * self._settings.job_wait:
            return
        metrics.sweeps.labels("abandon").inc()
        try:
            await self._endings.abandon(record, "log_unreadable", "the session's log cannot be gone on with")
        except BusError as error:
            log.info("sweep.put_off", error=repr(error))

    async def _case(self, record: Generation) -> Case:
        now = asyncio.get_running_loop().time()
        unheld = now - self._unheld.get(record.id, now)
        last = await self._endings.last_frame(record.sid)
        mine = last is not None and last.gid == record.id
        begun, ended = mine, mine and last is not None and last.terminal
        if not mine and last is not None and last.seq > record.after:
            # Something newer is in the log: perhaps this one ended long ago and its record was forgotten.
            frames = [frame for frame in await self._endings.frames(record) if frame.gid == record.id]
            begun, ended = bool(frames), bool(frames) and frames[-1].terminal
        return Case(
            record=record,
            unheld=unheld,
            age=self._open.age(record),
            lost=self._lost_for.get(record.id, float("inf")),
            begun=begun,
            ended=ended,
            placed=await self._placed(record),
            queued=unheld < QUEUED_BY_NOW or record.id in await self._queued(),
            delivered=unheld >= RETURNED_BY_NOW and any(job.lost for job in (await self._queued()).get(record.id, ())),
            barren=await self._barren(record) if begun and not ended else 0,
            job_wait=self._settings.job_wait,
        )

    async def _placed(self, record: Generation) -> bool:
        entry = await self._sessions.get(f"{record.tenant}.{record.sid}")
        return entry is not None and decode(entry.value, Session).running == record.id

    async def _barren(self, record: Generation) -> int:
        frames = await self._endings.frames(record)
        return barren_epochs(frame for frame in frames if frame.gid == record.id)

    async def _queued(self) -> dict[str, list[Place]]:
        loop = asyncio.get_running_loop()
        at, found = self._jobs
        if loop.time() - at > SCAN:
            began = loop.time()
            found = await queued_jobs(self._bus)
            self._jobs = (began, found)
        return found

    async def _take_out(self) -> None:
        """Delete the jobs of what was ended here. Nobody asks for them while all are full, and until then each has a
        place that others are refused for. Whoever holds one finds that it is over. Raises BusError."""
        if not self._over:
            return
        queued = await self._queued()
        looked_at = self._jobs[0]
        for gid, ended_at in list(self._over.items()):
            for job in queued.get(gid, ()):
                await delete_job(self._bus, job.seq)
            if queued.get(gid) or looked_at >= ended_at:
                del self._over[gid]

    async def _act(self, verdict: Verdict, record: Generation) -> None:
        log.info("sweep.acted", verdict=verdict, sid=record.sid, gid=record.id)
        metrics.sweeps.labels(verdict).inc()
        match verdict:
            case Verdict.CLOSE:
                await self._endings.close(record.sid, record.id)
            case Verdict.FORGET:
                await self._forget(record)
            case Verdict.QUEUE:
                await self._queue(record)
            case Verdict.RETURN:
                await self._return(record)
            case Verdict.CANCEL:
                await self._end(record, Status.CANCELLED)
            case Verdict.EXPIRE:
                waited = f"no worker took it in {self._settings.job_wait:g} s"
                if not await self._end(record, EXPIRED, code="expired", message=waited) and await self._taken(record):
                    await self._abandon(record, 2)
            case Verdict.FAIL:
                await self._end(record, FAILED, code="attempts_exhausted", message="every attempt gave nothing")

    async def _end(self, record: Generation, kind: str, **said: Any) -> bool:
        ended = await self._endings.end(record, kind, **said)
        if ended:
            self._over[record.id] = asyncio.get_running_loop().time()
            await self._endings.close(record.sid, record.id)
        return ended

    async def _taken(self, record: Generation) -> bool:
        """Whether another generation runs in its log, which nobody ends. Else it merely lost a race against a worker or
        another replica, who ends it."""
        last = await self._endings.last_frame(record.sid)
        return last is not None and last.gid != record.id and not last.terminal

    async def _queue(self, record: Generation) -> None:
        entry = await self._sessions.get(f"{record.tenant}.{record.sid}")
        if entry is None:
            return
        last = await self._endings.last_frame(record.sid)
        # The plain gid, unless it has begun: then its first job existed, and the server would call this one a repeat.
        msg_id = f"{record.id}@{last.seq}" if last is not None and last.gid == record.id else ""
        await queue_job(self._bus, record, decode(entry.value, Session).on_disconnect, msg_id=msg_id)
        self._jobs[1].setdefault(record.id, [])

    async def _return(self, record: Generation) -> None:
        """Nak for a holder of whom nobody had heard: it died together with all who could have."""
        for job in (await self._queued()).get(record.id, ()):
            if job.lost:
                await nak(self._bus, job.lost)

    async def _forget(self, record: Generation) -> None:
        key = f"{record.sid}.{record.id}"
        entry = await self._generations.get(key)
        if entry is not None and decode(entry.value, Generation).status.open:
            await self._generations.delete(key, entry.revision)
