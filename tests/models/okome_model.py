"""A replica of OKOME that sweeps, over the model of NATS: the real sweeper, endings and pulse.

It always takes itself for the first of the replicas, so that two sweep at once, and may be deaf to a worker.
"""

from __future__ import annotations

import asyncio

from broker.bus.records import Beat
from control.endings import Endings
from control.open_generations import OpenGenerations
from control.pulse import SEEN, Pulse
from control.settings import ControlSettings
from control.sweeper import Sweeper
from tests.models.nats_model import NatsModel

JOB_WAIT = 2.5  # seconds after which the sweeper ends what nobody takes


class _DeafPulse(Pulse):
    deaf: frozenset[str] = frozenset()

    def active(self) -> bool:
        return self._bus.round_trip_ok

    def workers(self, within: float = SEEN) -> dict[str, Beat]:
        return {name: beat for name, beat in super().workers(within).items() if name not in self.deaf}


class OkomeModel:
    def __init__(self, nats: NatsModel, name: str) -> None:
        self.name = name
        self.loop = nats.clock.loop()
        self.bus = nats.connect(self.loop, name)
        self.client = nats.client_of(self.bus)
        self.pulse = _DeafPulse(self.bus, name)
        self._nats = nats
        self._task = self.loop.create_task(self._run())

    async def _run(self) -> None:
        opened = OpenGenerations(self.bus)
        await opened.start()
        await self.pulse.start()
        settings = ControlSettings.model_construct(job_wait=JOB_WAIT, sweep_interval=0.5)
        sweeper = Sweeper(self.bus, settings, self.pulse, opened, Endings(self.bus, self.name))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.pulse.run())
            tasks.create_task(sweeper.run())

    def freeze(self, frozen: bool) -> None:
        self.loop.frozen = frozen
