"""The role `worker` as a process: settings, health, connection, engines, worker; ended in the reverse order."""

from __future__ import annotations

import asyncio
import functools

import structlog

from broker.bus import health, lifecycle
from broker.bus.health import Health
from broker.bus.nats import Bus
from broker.bus.subjects import random_id
from broker.bus.unless import unless
from gpu_worker import engines
from gpu_worker.engines import Engine, EngineFailed, EngineUnavailable, Say
from gpu_worker.settings import WorkerSettings
from gpu_worker.worker import Worker

log = structlog.get_logger("worker")


def run() -> int:
    """Serve until told to stop; returns the exit code (see `broker.bus.lifecycle`)."""
    return lifecycle.launch("worker", WorkerSettings, main, holds_streams=True)


async def main(settings: WorkerSettings, stop: asyncio.Event) -> None:
    """Raises OSError where the port is busy or the engine cannot start, BusUnavailable where NATS does not answer."""
    id = settings.id or f"worker-{random_id(6)}"
    status = Health("worker", id)
    running: list[Engine] = []
    status.extra = lambda: {"engines": [{"id": name, "pid": pid} for e in running for name, pid in e.children()]}
    async with health.serve(status, settings.host, settings.port) as port:
        log.info("worker.listening", worker=id, port=port)
        bus = await unless(stop, Bus.of(settings, id))
        if bus is None:
            return
        try:
            for name, engine in _engines(settings).items():
                status.set("starting", f"the engine {name} starts")
                running.append(engine)
                say = functools.partial(status.set, "starting")
                await unless(stop, _start(engine, say))  # which may wait for a server for as long as a minute
            if not stop.is_set():
                await Worker(bus, id, running, settings, status).run(stop)
        finally:
            for engine in reversed(running):
                await engine.close()
            await bus.close()


def _engines(settings: WorkerSettings) -> dict[str, Engine]:
    """The chosen engine, and `scripted` beside it, by name."""
    names = dict.fromkeys((settings.engine, "scripted"))
    try:
        return {name: engines.create(name, settings.for_engine()) for name in names}
    except EngineUnavailable as error:
        raise OSError(str(error)) from error


async def _start(engine: Engine, say: Say) -> None:
    try:
        await engine.start(say)
    except EngineFailed as error:
        raise OSError(f"the engine does not start: {error.message}") from error
