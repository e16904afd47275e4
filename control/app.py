"""One OKOME replica: its parts, in the order in which they start and, reversed, end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import structlog

from broker.bus import store_health
from broker.bus.errors import BusError
from broker.bus.health import Health, serve
from broker.bus.log import logged_partitions
from broker.bus.nats import Bus
from broker.bus.retry import retry
from broker.bus.subjects import REPLICA_PREFIX, random_id
from broker.bus.unless import unless
from broker.bus.version import VERSION
from control import metrics
from control.admission import Admission
from control.deletions import Deletions
from control.endings import Endings
from control.floors import keep_floors
from control.generations import Generations
from control.idempotency import Once
from control.keyring import Keyring
from control.logins import Logins
from control.models import Models
from control.open_generations import OpenGenerations
from control.partitions import Partitions
from control.provisioning import provision
from control.pulse import Pulse
from control.service import DESCRIPTION, NAME, endpoints
from control.sessions import Sessions
from control.settings import ControlSettings
from control.streams import partitions
from control.sweeper import Sweeper

HEALTH_INTERVAL = 0.25
WAITING_INTERVAL = 5.0
START_TIMEOUT = 45.0  # less than a supervisor waits, so that the reason is told

log = structlog.get_logger("control")


class Okome:
    """One replica. `start`, then `run`, or `live`, until cancelled; `close` ends what was started, the bus last."""

    def __init__(self, settings: ControlSettings) -> None:
        self.settings = settings
        self.id = settings.id or random_id(8)
        self.health = Health("control", self.id)
        self.port = 0
        self._stack = AsyncExitStack()
        self._deadline = asyncio.get_running_loop().time() + START_TIMEOUT

    async def start(self) -> None:
        """Ready to be asked when it returns. Raises BusError, and OSError where the port is taken."""
        settings = self.settings
        self.port = await self._stack.enter_async_context(serve(self.health, settings.host, settings.port))
        self.health.set("starting", "NATS has not answered yet")
        self.bus = bus = await Bus.of(settings, REPLICA_PREFIX + self.id)
        self._stack.push_async_callback(bus.close)
        self.health.set("starting", "making streams and buckets")
        await provision(bus, settings, timeout=START_TIMEOUT)
        self.partitions = partitions(settings)
        await self._answered(self._look_at_floors)
        self.keyring = Keyring(bus)
        await self._answered(lambda: self.keyring.open(settings.api_key.get_secret_value()))
        await self._start_parts(bus)
        self.health.set("starting", None)
        log.info("control.started", id=self.id, port=self.port, version=VERSION, partitions=len(self.partitions))

    async def _start_parts(self, bus: Bus) -> None:
        settings = self.settings
        self.pulse = Pulse(bus, self.id)
        opened = OpenGenerations(bus)
        self.models = models = Models(bus, settings.default_model)
        for part in (self.pulse, opened, models):
            self._stack.push_async_callback(part.close)
            await self._answered(part.start)
        logs = Partitions(bus, self.partitions)
        once = Once(bus)
        endings = Endings(bus, self.pulse.name)
        sessions = Sessions(bus, settings, self.keyring, once, models, logs)
        self.deletions = Deletions(bus, settings, self.pulse)
        logins = Logins(bus, settings, self.keyring, sessions)
        self.admission = Admission(bus, self.pulse)
        generations = Generations(bus, settings, once, models, logs, self.admission, endings)
        self.sweeper = Sweeper(bus, settings, self.pulse, opened, endings)
        if models.known:
            await self.pulse.hear()
        operations = endpoints(self.id, self.keyring, sessions, self.deletions, logins, generations, endings)
        service = await bus.serve(NAME, VERSION, DESCRIPTION, operations)
        self._stack.push_async_callback(service.close)
        # What the server answers it has read, and all that was sent before: from here on every question finds us.
        await self._answered(lambda: bus.api("INFO"))

    async def _look_at_floors(self) -> None:
        await keep_floors(
            self.bus, await logged_partitions(self.bus), REPLICA_PREFIX + self.id, self.settings.store_boot
        )

    async def _answered(self, step: Callable[[], Awaitable[object]]) -> None:
        await retry(step, self._deadline, unanswered=lambda error: log.info("start.put_off", error=str(error)))

    async def live(self) -> None:
        """Start, and run until cancelled."""
        await self.start()
        await self.run()

    async def run(self) -> None:
        """Beat, sweep, and keep what was provisioned, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.pulse.run(), name="pulse")
            group.create_task(self.sweeper.run(), name="sweeper")
            group.create_task(self._reconcile(), name="reconcile")
            group.create_task(self._finish_deletions(), name="deletions")
            group.create_task(self._tell_health(), name="health")
            group.create_task(self._count_waiting(), name="waiting")

    async def close(self) -> None:
        """Stop answering, let what runs finish, end. Idempotent."""
        self.health.set("draining", "asked to end")
        await self._stack.aclose()

    async def _reconcile(self) -> None:
        """What somebody removed comes back, and a log that lost its end gets another incarnation."""
        while True:
            await asyncio.sleep(self.settings.reconcile_interval)
            try:
                if self.pulse.active():
                    await provision(self.bus, self.settings, timeout=self.settings.reconcile_interval)
                    await keep_floors(self.bus, await logged_partitions(self.bus), self.pulse.name)
                await self.keyring.open(self.settings.api_key.get_secret_value())
            except BusError as error:
                log.info("reconcile.put_off", error=repr(error))

    async def _finish_deletions(self) -> None:
        """What is left of a deleted session goes. By itself: each waits for its log's leader."""
        while True:
            await asyncio.sleep(self.settings.reconcile_interval)
            try:
                if self.pulse.active():
                    await self.deletions.finish()
            except BusError as error:
                log.info("deletions.put_off", error=repr(error))

    async def _tell_health(self) -> None:
        while True:
            store_health.tell(self.health, self.bus.storing, asyncio.get_running_loop().time())
            self.health.set("nats", None if self.bus.round_trip_ok else "NATS does not answer")
            await asyncio.sleep(HEALTH_INTERVAL)

    async def _count_waiting(self) -> None:
        """Every replica counts: a gauge that only one of them has would stand still when another takes over."""
        while True:
            counted: dict[str, int] = {}
            try:
                for model in list(self.models.known):
                    counted[model] = await self.admission.waiting(model)
            except BusError as error:
                log.debug("waiting.not_counted", error=repr(error))
            metrics.waiting_jobs.clear()  # also of what nobody knows now
            for model, count in counted.items():
                metrics.waiting_jobs.labels(model).set(count)
            await asyncio.sleep(WAITING_INTERVAL)


async def main(settings: ControlSettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set, then drain and return."""
    okome = Okome(settings)
    try:
        await unless(stop, okome.live())
        log.info("control.stopping", id=okome.id)
    finally:
        await okome.close()
