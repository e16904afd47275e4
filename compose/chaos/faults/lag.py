"""Readers that stop reading, all of a session's: the proof is a worker that waits, and a log that stands still."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from prometheus_client.parser import text_string_to_metric_families

from broker.bus.frames import Frame, decode_frame
from broker.bus.log import last
from broker.bus.nats import Bus
from broker.bus.subjects import log_stream, log_subject, partition_of
from compose.chaos.answers import answered
from compose.chaos.fault import Fault, comes_true
from compose.chaos.http import call
from compose.chaos.viewer import Viewer
from compose.chaos.whole import Process

STILL = 1.0
"""Seconds without a frame after which a log stands still. Its engine would have said thousands of tokens."""
PAUSES = "okome_worker_pauses_total"
RESUMES = "okome_worker_resumes_total"


class Engine:
    """One answer as its worker counts and its log shows: whether it waits, and how often it went on, by what."""

    def __init__(self, bus: Bus, worker: Process, api_key: str, sid: str) -> None:
        self.sid = sid
        self._bus = bus
        self._worker = worker
        self._key = api_key

    async def counted(self, name: str, by: str = "") -> float:
        """A counter of its worker, over all of its answers."""
        answer = await answered(lambda: call(self._worker.url, "GET", "/metrics", self._key))
        told = answer.body.decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(told)
            for sample in family.samples
            if sample.name == name and by in ("", sample.labels.get("by"))
        )

    async def end(self) -> Frame:
        """The last frame of an answer that has begun."""
        stream, subject = log_stream(partition_of(self.sid)), log_subject(self.sid)
        stored = await answered(lambda: last(self._bus, stream, subject))
        assert stored is not None, "its viewers have seen it begin"
        return decode_frame(stored.data, stored.seq)


def stop_reading(engine: Engine, viewers: Sequence[Viewer], aim: Sequence[Viewer], timeout: float) -> Fault:
    """Nobody of a session's viewers reads on; their connections stay. `undo`: they do. `timeout`: for its effect."""
    loop = asyncio.get_running_loop()
    paused = 0.0
    stands: tuple[int, float] | None = None

    async def strike() -> None:
        nonlocal paused
        paused = await engine.counted(PAUSES)
        for viewer in aim:
            viewer.hold()

    async def waits() -> str | None:
        nonlocal stands
        end, now = await engine.end(), loop.time()
        if end.terminal:
            return None  # it stands still because it is over
        if stands is None or stands[0] != end.seq:
            stands = (end.seq, now)
        times = await engine.counted(PAUSES) - paused
        if not times or now - stands[1] < STILL:
            return None
        return f"nothing followed {end.seq} for {now - stands[1]:.1f} s, and an engine was paused {times:.0f} times"

    async def undo() -> None:
        for viewer in viewers:
            viewer.go_on()

    return Fault(
        f"{len(viewers)} viewers of {engine.sid}",
        strike,
        lambda: comes_true(waits, f"an engine that waits for the viewers of {engine.sid}", timeout),
        undo,
    )
