"""The ingress as a process: what it watches, what it opens, and in which order it ends."""

from __future__ import annotations

import asyncio

import structlog

from broker.bus.errors import BusError
from broker.bus.health import Health
from broker.bus.kv import Watch
from broker.bus.lifecycle import launch
from broker.bus.nats import Bus
from broker.bus.retry import retry
from broker.bus.subjects import random_id
from broker.bus.unless import unless
from ingress.limits import Limits
from ingress.listener import Listener
from ingress.membership import Nodes
from ingress.metrics import Metrics
from ingress.relay import Relay
from ingress.settings import IngressSettings
from ingress.surroundings import Surroundings
from ingress.trust import INTERNAL_KEY, Trust

log = structlog.get_logger("ingress")


def run() -> int:
    """The role `ingress`; its exit code."""
    return launch("ingress", IngressSettings, serve, holds_streams=True)


async def serve(settings: IngressSettings, stop: asyncio.Event) -> None:
    """Serve until `stop`, then drain. Raises OSError for a busy port, BusUnavailable where NATS does not answer."""
    ingress = settings.id or f"ingress-{random_id(6)}"
    metrics = Metrics()
    health = Health("ingress", ingress)
    trust = Trust(ingress)
    nodes = Nodes(settings, metrics, trust.greeting if settings.multiplex else lambda _: [])
    bus = await unless(stop, Bus.of(settings, ingress))
    if bus is None:
        return
    surroundings = Surroundings(bus, ingress, metrics)
    limits = Limits(settings, metrics, surroundings.peers)
    relay = Relay(settings, ingress=ingress, nodes=nodes, trust=trust, limits=limits, metrics=metrics, health=health)
    listener = Listener(settings, metrics, relay.handle)
    watches: list[Watch] = []
    try:
        await listener.open()
        nodes.start()
        await surroundings.start()
        log.info("ingress.listening", id=ingress, port=listener.port, shared_port=listener.shared_port)
        watching = asyncio.create_task(_watch(bus, ingress, trust, nodes, health, watches), name="watching")
        try:
            await stop.wait()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        deadline = asyncio.get_running_loop().time() + settings.drain_timeout
        log.info("ingress.draining")
        listener.stop_accepting()
        relay.drain()
        left = await listener.finish(deadline)
        log.info("ingress.stopped", broken_off=left)
    finally:
        await listener.close()
        for watch in watches:
            await watch.close()
        await surroundings.close()
        await nodes.close()
        await limits.close()
        await bus.close()


async def _watch(bus: Bus, ingress: str, trust: Trust, nodes: Nodes, health: Health, watches: list[Watch]) -> None:
    """Follow the buckets; OKOME, which makes them, may start after us, so this tries until it is cancelled."""

    def waiting(error: Exception) -> None:
        health.set("starting", f"waiting for the system's buckets: {error}")

    for bucket, keys, on_change in (("keys", INTERNAL_KEY, trust.learn), ("nodes", ">", nodes.update)):
        watch = Watch(bus, bucket, f"{ingress}-{bucket}", keys=keys, on_change=on_change)
        await retry(watch.start, again=lambda error: isinstance(error, BusError), unanswered=waiting)
        watches.append(watch)
    health.set("starting", None)
    log.info("ingress.ready", id=ingress)
