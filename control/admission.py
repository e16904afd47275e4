"""Admission: overload is told when a generation is asked for, never later."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence

from broker.bus.errors import Refusal
from broker.bus.jobs import count_model_jobs
from broker.bus.nats import Bus
from broker.bus.observer import SILENCE
from broker.bus.operations import Explain, Route
from broker.bus.records import Beat, Message
from broker.bus.subjects import job_subject, partition_of
from broker.bus.warmth import wanted
from control.fresh import Fresh
from control.pulse import Pulse
from control.routing import Capacity, Lane, capacity, choose_lane, has_room, leaving

FRESH = 0.1  # seconds that a look at the queue is used


class Admission:
    """How much waits, how much can be taken, and what this replica let in since it looked."""

    def __init__(self, bus: Bus, pulse: Pulse) -> None:
        self._bus = bus
        self._pulse = pulse
        self._backlog = Fresh(self._ask, FRESH)
        self._coming: dict[str, int] = {}  # model -> places held by jobs that are not in the queue yet
        self._since: dict[str, int] = {}  # model -> jobs put into the queue since it was looked at
        self._sent: dict[str, tuple[int, int]] = {}  # worker -> time of its beat, jobs put into its lane since

    async def look(self, model: str) -> None:
        """See to it that the next `place` has not to ask how much waits. Raises BusError."""
        await self._backlog.get(model)

    @contextlib.asynccontextmanager
    async def place(self, model: str) -> AsyncIterator[int]:
        """Hold a place while a job is put into the queue; yields how many jobs of the model are before it.

        Raises Refusal: `unavailable` where no worker of the model was seen lately, `overloaded` where all are full;
        and BusError.
        """
        waiting = await self._backlog.get(model)
        offered = self._offered(model)
        if not offered.workers:
            raise Refusal("unavailable", f"no worker runs {model} now", retry_after=2)
        before = self._ahead(model, waiting + self._since.get(model, 0) + self._coming.get(model, 0))
        if before >= offered.total:
            raise Refusal("overloaded", f"all workers of {model} are busy and their queues full", retry_after=1)
        # Nothing was awaited since the numbers were added: nobody else took the same place meanwhile.
        self._coming[model] = self._coming.get(model, 0) + 1
        try:
            yield before
            self._since[model] = self._since.get(model, 0) + 1
        finally:
            self._coming[model] -= 1

    async def waiting(self, model: str) -> int:
        """Jobs of the model beyond the slots that its workers offer, wherever they wait. Raises BusError."""
        jobs = await self._backlog.get(model)
        return max(0, self._ahead(model, jobs) - self._offered(model).slots)

    def has_choice(self, model: str) -> bool:
        """Whether it matters which worker is asked."""
        return sum(1 for beat in self._pulse.workers(SILENCE).values() if model in beat.models) > 1

    def hinted(self, model: str, worker: str) -> str:
        """The worker that the hot cache names, counted as sent there, or "" where it is gone or busy."""
        beats, sent = self._lately_sent()
        if not has_room(model, worker, beats, sent):
            return ""
        self._sent[worker] = (beats[worker].t, sent.get(worker, 0) + 1)
        return worker

    def lane(self, model: str, context: Sequence[Message]) -> Lane:
        """Where a request with this whole context should go; counted as sent there."""
        beats, sent = self._lately_sent()
        lane = choose_lane(model, wanted(model, context), beats, sent)
        if lane.worker:
            self._sent[lane.worker] = (beats[lane.worker].t, sent.get(lane.worker, 0) + 1)
        return lane

    def _lately_sent(self) -> tuple[Mapping[str, Beat], dict[str, int]]:
        """Live workers, and the jobs put into their lanes since their last beats; older ones are forgotten."""
        beats = self._pulse.workers(SILENCE)
        self._sent = {name: said for name, said in self._sent.items() if name in beats and beats[name].t == said[0]}
        return beats, {name: count for name, (_, count) in self._sent.items()}

    async def explain(self, question: Explain, context: Sequence[Message]) -> Route:
        """What would happen to a generation of this model with this context, were it asked for now."""
        lane = choose_lane(question.model, wanted(question.model, context), self._pulse.workers(SILENCE), {})
        offered = self._offered(question.model)
        return Route(
            model=question.model,
            subject=job_subject(question.model, lane.worker or None),
            worker=lane.worker,
            reason=lane.reason if offered.workers else "no worker runs this model now",
            partition=partition_of(question.sid),
            waiting=await self.waiting(question.model),
            capacity=offered.total,
            workers=offered.workers,
        )

    def _offered(self, model: str) -> Capacity:
        return capacity(model, self._pulse.workers())

    def _ahead(self, model: str, jobs: int) -> int:
        """Of so many jobs of the model, those that take up what is offered."""
        return max(0, jobs - leaving(model, self._pulse.workers(SILENCE)))

    async def _ask(self, model: str) -> int:
        self._since[model] = 0  # what is put there from here on may not be in the answer
        return await count_model_jobs(self._bus, model)
