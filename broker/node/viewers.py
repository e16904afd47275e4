"""The viewers of this node: opening a subscriber for an admitted client, and all that concerns every open one.

Heartbeats, revocations, expiry, demand to workers and the drain go over this one set, so none needs a timer per viewer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from typing import NamedTuple

import structlog

from broker.bus import clock
from broker.bus.credentials import LEEWAY
from broker.bus.errors import BusError, BusUnavailable, Refusal
from broker.bus.garbage import Turnover
from broker.bus.nats import Bus
from broker.bus.subjects import partition_of, worker_subject
from broker.node import metrics
from broker.node.access import Access, Principal
from broker.node.beats import Beats
from broker.node.events import Event, closed
from broker.node.history import History
from broker.node.pacer import Pacer
from broker.node.ring import Ring
from broker.node.settings import NodeSettings
from broker.node.start import Start
from broker.node.subscriber import Demand, Subscriber
from broker.node.tails import Tails

log = structlog.get_logger("node")

DEMAND_INTERVAL = 2.0
MOST_TOLD = 1000  # sessions in one message to a worker
PIECE = 256  # viewers that are looked at without a break
RECONNECT_SPREAD_MS = 500  # clients of a leaving node do not come back all at once
REVOKED = "this credential has been revoked"


class Viewer(NamedTuple):
    """One open connection."""

    subscriber: Subscriber
    principal: Principal
    transport: str
    opened_at: float


class Viewers:
    """All open connections of this node."""

    def __init__(
        self,
        bus: Bus,
        tails: Tails,
        history: History,
        access: Access,
        beats: Beats,
        settings: NodeSettings,
        node: str,
    ) -> None:
        self.draining = False
        self.stale = ""  # why new streams are put off, "" while they are not
        self._bus = bus
        self._tails = tails
        self._history = history
        self._access = access
        self._beats = beats
        self._settings = settings
        self._node = node
        self._turnover = Turnover()
        self.empty = asyncio.Event()
        self.empty.set()
        self._viewers: dict[Subscriber, Viewer] = {}
        self._by_session: dict[str, list[Subscriber]] = {}  # what concerns one session must not cost a look at all
        self._demanded: dict[str, tuple[Demand, str, float]] = {}  # sid -> what was said last, to whom, and when

    def __len__(self) -> int:
        return len(self._viewers)

    # -- opening and closing ---------------------------------------------------------------------------------------

    async def open(
        self,
        who: Principal,
        sid: str,
        start: Start,
        transport: str,
        *,
        until_done: bool = False,
        gid: str = "",
        paced: bool = True,
    ) -> Subscriber:
        """A subscriber, counted until `closed`. Raises Refusal `overloaded` or `unavailable`: come back later."""
        self._check_takes_new()
        try:
            async with asyncio.timeout(self._settings.attach_timeout):
                tail = await self._tails.get(partition_of(sid))
        except (BusError, TimeoutError) as error:
            raise Refusal("unavailable", "the log does not answer; try again", retry_after=1) from error
        if tail.lost:
            raise Refusal("unavailable", "the log's leader does not answer; try again", retry_after=1)
        self._check_takes_new()  # again: whoever is not among the viewers yet is told nothing that was said meanwhile
        if self._is_revoked(who, sid):
            raise Refusal("token_revoked", REVOKED)
        loop = asyncio.get_running_loop()
        pacer = Pacer(self._settings.pacer_window) if paced and self._settings.pacer_window else None
        subscriber = Subscriber(
            tail,
            self._history,
            who.tenant,
            sid,
            start,
            self._node,
            until_done=until_done,
            gid=gid,
            pacer=pacer,
            on_flowing=lambda ring: self._tell(ring, Demand.FLOWING),  # at once: it may be what a worker waits for
        )
        subscriber.sent_at = loop.time()
        self._viewers[subscriber] = Viewer(subscriber, who, transport, loop.time())
        self._by_session.setdefault(sid, []).append(subscriber)
        self.empty.clear()
        metrics.subscribers.labels(transport).inc()
        metrics.attaches.labels(transport, start.word).inc()
        log.info("subscriber.opened", sid=sid, transport=transport, start=start.word)
        return subscriber

    def _check_takes_new(self) -> None:
        """Raises Refusal."""
        if self.draining:
            raise Refusal("unavailable", "this node is leaving", retry_after=0.1)
        if self.stale:
            raise Refusal("unavailable", self.stale, retry_after=1)
        if len(self._viewers) >= self._settings.max_subscribers:
            raise Refusal("overloaded", "this node holds as many streams as it may", retry_after=2)

    def closed(self, subscriber: Subscriber) -> None:
        viewer = self._viewers.pop(subscriber, None)
        if viewer is None:
            return
        others = self._by_session[subscriber.sid]
        others.remove(subscriber)
        if not others:
            del self._by_session[subscriber.sid]
        if not self._viewers:
            self.empty.set()
        self._turnover.ended(len(self._viewers))
        metrics.subscribers.labels(viewer.transport).dec()
        metrics.ends.labels(viewer.transport, subscriber.end_reason).inc()
        log.info(
            "subscriber.closed",
            sid=subscriber.sid,
            transport=viewer.transport,
            why=subscriber.end_reason,
            seconds=round(asyncio.get_running_loop().time() - viewer.opened_at, 3),
            last=subscriber.seq,
        )

    def renew(self, subscriber: Subscriber, who: Principal) -> None:
        """The client showed another token: it is this one that expires or is revoked now, or was meanwhile."""
        viewer = self._viewers.get(subscriber)
        if viewer is not None:
            self._viewers[subscriber] = viewer._replace(principal=who)
            self._judge(subscriber, who)

    def _judge(self, subscriber: Subscriber, who: Principal) -> None:
        if self._is_revoked(who, subscriber.sid):
            subscriber.end("token_revoked", closed("token_revoked", REVOKED))

    def _is_revoked(self, who: Principal, sid: str) -> bool:
        return self._access.revocations.revoked(who._replace(sid=sid).claims())

    # -- what concerns all -----------------------------------------------------------------------------------------

    async def beat(self) -> None:
        """Once a second: heartbeats where it was quiet, ends where a token ran out, demand where it is due.

        In pieces of PIECE viewers, between which tokens go on: in one piece 5 000 viewers would hold them up for 30 ms.
        """
        now = asyncio.get_running_loop().time()
        seconds = clock.now()
        for number, subscriber in enumerate(list(self._viewers)):
            if number % PIECE == PIECE - 1:
                await asyncio.sleep(0)
            if (viewer := self._viewers.get(subscriber)) is None:
                continue
            if now - subscriber.sent_at >= self._settings.heartbeat_interval:
                subscriber.sent_at = now
                subscriber.heartbeat()
            expires = viewer.principal.expires_at
            if expires and seconds >= expires + LEEWAY:
                subscriber.end("token_expired", closed("token_expired", "the token has expired"))
        await self._demand()

    def revoke(self, key: str) -> None:
        """Entry `key` came into the bucket of revocations: end what it concerns. A session that was deleted concerns
        those who watch it, of whom there are few; a token or an API key may be anybody's."""
        kind, _, name = key.partition(".")
        for subscriber in self._of(name) if kind == "sid" else list(self._viewers):
            self._judge(subscriber, self._viewers[subscriber].principal)

    def end_session(self, sid: str, reason: str) -> None:
        for subscriber in self._of(sid):
            subscriber.end("token_revoked", closed("token_revoked", f"the session has ended: {reason}"))

    def queued(self, sid: str, gid: str, event: Event) -> None:
        for subscriber in self._of(sid):
            subscriber.notice(event, gid)

    def put_off(self, why: str) -> None:
        """End every stream for a while: this node cannot answer for them."""
        for subscriber in list(self._viewers):
            subscriber.end("put_off", closed("unavailable", why, retry_after=1))

    def drain(self) -> None:
        """Say `reconnect` to everybody and take nobody new."""
        self.draining = True
        for subscriber in self._viewers:
            subscriber.leave(random.randrange(RECONNECT_SPREAD_MS))

    def _of(self, sid: str) -> list[Subscriber]:
        return list(self._by_session.get(sid, ()))

    async def _demand(self) -> None:
        """Tell workers whether anybody keeps up. Who attaches just now is nobody who does or does not."""
        read: set[str] = set()
        holders: dict[str, str] | None = None
        again: dict[tuple[str, Demand], list[str]] = {}  # what is only repeated, in one message for each worker
        number = 0
        for tail in list(self._tails.running()):
            for ring, readers in tail.sessions():
                number += 1
                if number % PIECE == 0:
                    await asyncio.sleep(0)
                read.add(ring.sid)
                if ring.chain.open and not ring.worker:  # the ring began behind the `start` that names it
                    holders = self._beats.by_generation() if holders is None else holders
                    ring.worker = holders.get(ring.chain.gid, "")
                known = [reader for reader in readers if isinstance(reader, Subscriber) and reader.demand]
                for subscriber in known:
                    subscriber.measure(ring)
                if known:
                    lag = all(subscriber.demand is Demand.LAGGING for subscriber in known)
                    self._tell(ring, Demand.LAGGING if lag else Demand.FLOWING, again)
        for (worker, state), sids in again.items():
            # Of whom there was no news meanwhile.
            same = [sid for sid in sids if self._demanded.get(sid, ("", ""))[:2] == (state, worker)]
            for first in range(0, len(same), MOST_TOLD):
                self._say(worker, state, same[first : first + MOST_TOLD])
        for sid in self._demanded.keys() - read:
            del self._demanded[sid]

    def _tell(self, ring: Ring, state: Demand, again: dict[tuple[str, Demand], list[str]] | None = None) -> None:
        """On change at once, and every DEMAND_INTERVAL: that is put into `again`. What is not said pauses no worker."""
        if not ring.worker or not ring.chain.open:
            self._demanded.pop(ring.sid, None)
            return
        now = asyncio.get_running_loop().time()
        said, to, at = self._demanded.get(ring.sid, (None, "", 0.0))
        changed = (said, to) != (state, ring.worker)
        if changed or again is None:
            if changed or now - at >= DEMAND_INTERVAL:
                self._say(ring.worker, state, [ring.sid])
        elif now - at >= DEMAND_INTERVAL:
            again.setdefault((ring.worker, state), []).append(ring.sid)

    def _say(self, worker: str, state: Demand, sids: list[str]) -> None:
        payload = json.dumps({"sids": sids, "node": self._node, "state": state}).encode()
        with contextlib.suppress(BusUnavailable):
            self._bus.publish_now(worker_subject(worker, "demand"), payload)
            now = asyncio.get_running_loop().time()
            for sid in sids:
                self._demanded[sid] = (state, worker, now)
