"""The stream node as a process: what is started in which order, watched while it serves, and ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
from contextlib import AsyncExitStack

import structlog

from broker.bus.errors import BusError, BusUnavailable
from broker.bus.health import NATS, Health, serve
from broker.bus.kv import Watch
from broker.bus.lifecycle import launch
from broker.bus.log import get
from broker.bus.mux import PIECE
from broker.bus.nats import Bus, Msg
from broker.bus.retry import retry
from broker.bus.subjects import node_subject, random_id
from broker.bus.unless import unless
from broker.node import api, metrics
from broker.node.access import Access
from broker.node.app import App
from broker.node.beats import Beats
from broker.node.cache import HotCache
from broker.node.history import History, queued
from broker.node.operations import Operations
from broker.node.presence import Presence
from broker.node.settings import NodeSettings
from broker.node.tails import Tails
from broker.node.viewers import Viewers
from broker.node.waiting import Waiting
from broker.node.warmth import Warmth

log = structlog.get_logger("node")

STALE_TIMEOUT = 1.0  # between two comparisons of revocations with the leader; twice as long without one: no new streams
STALE_LIMIT = 30.0  # so long without one: running ones are put off, too
DRAIN_NOTICE = 0.2  # ingresses read that this node is leaving before its viewers are told to go
WATCHED = ("keys", "jwks", "revoked")


def run() -> int:
    """Serve as `okome role node` until told to stop; returns the exit code."""
    return launch("node", NodeSettings, main, holds_streams=True)


async def main(settings: NodeSettings, stop: asyncio.Event) -> None:
    """Serve until `stop`, then say `reconnect` to every viewer and end within `drain_timeout`."""
    node = settings.id or f"node-{random_id(6)}"
    health = Health("node", node)
    async with AsyncExitStack() as stack:
        bus = await unless(stop, Bus.of(settings, node))
        if bus is None:
            return
        stack.push_async_callback(bus.close)
        access = Access(settings.origins, settings.trust_loopback)
        history = History(bus)
        cache = HotCache(settings.redis_url)
        stack.push_async_callback(cache.close)
        warmth = Warmth(cache)
        stack.push_async_callback(warmth.close)
        tails = Tails(bus, settings, warmth.ended)
        stack.push_async_callback(tails.close)
        beats = Beats(bus)
        viewers = Viewers(bus, tails, history, access, beats, settings, node)
        operations = Operations(bus, history, beats, warmth)
        app = App(
            api.build(operations, access, Waiting(viewers), tails, settings),
            access,
            viewers,
            operations,
            health,
            settings,
        )
        port = await stack.enter_async_context(
            serve(
                app,
                settings.host,
                settings.port,
                shared=(settings.shared_host or settings.host, settings.shared_port)
                if settings.shared_port >= 0
                else None,
                ws="websockets-sansio",
                ws_per_message_deflate=False,
                ws_max_size=max(4 * settings.body_limit, 2 * PIECE),  # what is between is refused in words: 4400
            )
        )
        revoked = await unless(stop, _watch(stack, bus, node, access, viewers, health))
        if revoked is None:
            return
        await beats.start()
        stack.push_async_callback(beats.close)
        presence = Presence(bus, node, settings.public_url or f"http://{settings.host}:{port}")
        await _listen(bus, node, viewers, tails, stop)
        # Ingresses ask for it, and compare: at once, so that nodes that are cut off together say so together.
        health.looks[NATS] = lambda: None if bus.round_trip_ok else "NATS does not answer"
        health.set("starting", None)
        presence.set("ready", 0)
        log.info("node.ready", id=node, port=port)
        async with asyncio.TaskGroup() as tasks:
            work = [
                tasks.create_task(presence.run(), name="presence"),
                tasks.create_task(_tick(viewers, tails, presence, health), name="tick"),
                tasks.create_task(_judge_revocations(bus, revoked, viewers), name="revocations"),
                tasks.create_task(_measure_lag(), name="loop-lag"),
            ]
            await stop.wait()
            with contextlib.suppress(BusUnavailable):  # a hint: without it the first viewer of each waits a little
                bus.publish_now(node_subject("all", "leaving"), _leaving(node, tails))
            await _drain(viewers, presence, health, settings.drain_timeout)
            for task in work:
                task.cancel()
        await presence.leave()
        log.info("node.ended", id=node)


async def _watch(stack: AsyncExitStack, bus: Bus, node: str, access: Access, viewers: Viewers, health: Health) -> Watch:
    """Follow what decides who may, as soon as OKOME has made it; returns the watch of revocations."""

    def revoke(key: str, value: bytes | None) -> None:
        access.revocations.take(key, value)
        viewers.revoke(key)

    takers = {"keys": access.take_key, "jwks": access.verifier.take, "revoked": revoke}
    # Revocations forget by themselves what is too old; and what a lost bucket had revoked stays revoked.
    watches = {
        name: Watch(bus, name, f"{node}-{name}", on_change=takers[name], remember=name != "revoked") for name in WATCHED
    }

    def waiting(error: Exception) -> None:
        health.set("starting", "waiting for keys and revocations")
        log.info("node.waiting", error=str(error))

    for watch in watches.values():
        await retry(watch.start, again=lambda error: isinstance(error, BusError), unanswered=waiting)
        stack.push_async_callback(watch.close)
    return watches["revoked"]


async def _listen(bus: Bus, node: str, viewers: Viewers, tails: Tails, stop: asyncio.Event) -> None:
    """Nudges: `queued`, `ended` and `leaving` for every node, `drain` for this one."""

    async def on_queued(msg: Msg) -> None:
        said = json.loads(msg.data)
        event = queued(said["generation_id"], said["input"], said["position"])
        viewers.queued(said["sid"], said["generation_id"], event)

    async def on_ended(msg: Msg) -> None:
        said = json.loads(msg.data)
        viewers.end_session(said["sid"], said["reason"])

    async def on_leaving(msg: Msg) -> None:
        said = json.loads(msg.data)
        if said["node"] != node and not viewers.draining:
            tails.warm(said["partitions"])  # by the time its viewers are told to go, their rings are here

    async def on_drain(msg: Msg) -> None:
        stop.set()

    await bus.subscribe(node_subject("all", "queued"), on_queued)
    await bus.subscribe(node_subject("all", "ended"), on_ended)
    await bus.subscribe(node_subject("all", "leaving"), on_leaving)
    await bus.subscribe(node_subject(node, "drain"), on_drain)


def _leaving(node: str, tails: Tails) -> bytes:
    """Which partitions' viewers will go elsewhere."""
    return json.dumps({"node": node, "partitions": [tail.partition for tail in tails.running() if tail.read]}).encode()


async def _tick(viewers: Viewers, tails: Tails, presence: Presence, health: Health) -> None:
    """Once a second: everything that goes over all viewers or tails."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(1.0)
        lost = [tail for tail in tails.running() if tail.lost]
        health.set("tails", f"{len(lost)} partitions cannot be followed" if lost else None)
        health.set("revocations", viewers.stale or None)
        presence.set("draining" if viewers.draining else "ready" if health.ready else "unready", len(viewers))
        await viewers.beat()
        await tails.sweep(loop.time())


async def _missed(bus: Bus, revoked: Watch) -> bool:
    """Whether the leader holds a revocation that was not seen. Sequences alone do not tell: the newest entries age
    out, and a node that starts then never sees their sequences."""
    newest = await get(bus, "KV_revoked", revoked.seq + 1, next_by="$KV.revoked.>")
    return newest is not None and newest.seq > revoked.seq  # what came while asking was not missed


async def _judge_revocations(bus: Bus, revoked: Watch, viewers: Viewers) -> None:
    """A node that may have missed a revocation must not take new viewers, and not keep old ones for long."""
    loop = asyncio.get_running_loop()
    fresh_at = loop.time()
    while True:
        await asyncio.sleep(STALE_TIMEOUT)
        try:
            missed = await _missed(bus, revoked)
        except BusError:
            missed = None
        if missed is False:
            fresh_at = loop.time()
        elif missed:
            revoked.restart()
        age = loop.time() - fresh_at
        viewers.stale = "revocations cannot be read" if age > 2 * STALE_TIMEOUT else ""
        if age > STALE_LIMIT:
            viewers.put_off("revocations cannot be read")


async def _measure_lag() -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + 0.1
        await asyncio.sleep(0.1)
        metrics.loop_lag.observe(max(0.0, loop.time() - due))


async def _drain(viewers: Viewers, presence: Presence, health: Health, timeout: float) -> None:
    """Stop accepting → say so → send the viewers on → wait for them to go, until the deadline."""
    log.info("node.draining", subscribers=len(viewers))
    health.set("draining", "this node is leaving")
    presence.set("draining", len(viewers))
    viewers.draining = True
    await asyncio.sleep(DRAIN_NOTICE)
    viewers.drain()
    try:
        async with asyncio.timeout(timeout):
            await viewers.empty.wait()
    except TimeoutError:
        log.warning("node.drained_late", subscribers=len(viewers))
