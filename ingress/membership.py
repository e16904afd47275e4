"""The stream nodes: who they are (KV `nodes`), how they are (asked four times a second), which one serves a session."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import TypeVar
from urllib.parse import urlsplit

import structlog

from broker.bus.clock import SKEW, now_ms
from broker.bus.health import NATS, reasons_in
from broker.bus.records import Node, decode
from broker.bus.subjects import partition_name, random_id
from ingress.headers import CLOCK, Field, value
from ingress.judgement import Health, Span, cut_off, judge
from ingress.metrics import Metrics
from ingress.mux import NodeMux, NoMux
from ingress.mux_stream import MuxedStream
from ingress.node_socket import NodeSocket, Socket
from ingress.placement import Placement
from ingress.settings import IngressSettings
from ingress.upstream import Connection, NodeConnection, NodeLost

log = structlog.get_logger("ingress.nodes")

Stream = TypeVar("Stream", bound=MuxedStream)

TICK = 0.1
LATE = 0.2  # a tick that comes later than this says that we were stopped ourselves: then silence proves nothing
FORGET_AFTER = 12.0  # the bucket keeps a node for 10 s
DOWN_CHECK_TIMEOUT = 5.0
IDLE_CONNECTIONS = 64
MUX_AGAIN = 5.0  # after a node said no to many streams on one connection: until then each has its own


def clock_ahead(fields: list[Field], now: int) -> int:
    """Pure: by how many ms the clock of a node that just answered so is ahead of `now`; 0 where it does not say.

    Never more than SKEW: a word that is dated by a node's clock is good for the time that the node says, and somebody
    who plays a node must not be given one for next year.
    """
    said = value(fields, CLOCK)
    ahead = int(said) - now if said.isdigit() and len(said) < 20 else 0
    return max(-int(SKEW * 1000), min(ahead, int(SKEW * 1000)))


class Member:
    """One node and the connections to it."""

    def __init__(self, record: Node, now: float) -> None:
        self.id = record.id
        self.url = record.url
        parts = urlsplit(record.url)
        self.host = parts.hostname or ""
        self.port = parts.port or 80
        self.draining = record.state == "draining"
        self.health = Health.UNREADY
        self.heard_at = now
        self.recorded_at = now
        self.clock_ahead = 0  # ms that its clock is ahead of ours, as it said when it was last asked
        self.ready = False
        self.refused = False
        self.answered_at = 0.0  # when it was asked, for its newest answer
        self.well: Span | None = None  # its first "ready" in a row, and when it was asked for the last one
        self.deaf_since: float | None = None  # the first of its answers in a row that it does not hear NATS
        self.open: set[Connection] = set()
        self.mux: NodeMux | None = None
        self.joining: asyncio.Task[NodeLost | None] | None = None
        self.mux_again = 0.0  # loop time before which it is not asked for one
        self.idle: list[NodeConnection] = []
        self.closers: set[Callable[[], None]] = set()  # of connections that are not NodeConnections (WebSocket)
        self.streams: set[Callable[[], None]] = set()  # moves one away that is served here
        self.check: asyncio.Task[None] | None = None

    @property
    def live(self) -> bool:
        return self.health is Health.UP and not self.draining

    def answered(self, asked_at: float, now: float, *, ready: bool, deaf: bool) -> None:
        self.answered_at = asked_at
        self.refused = False
        self.ready = ready
        self.well = (self.well[0] if self.well else now, asked_at) if ready else None
        self.deaf_since = (self.deaf_since or now) if deaf else None


class Nodes:
    """All members. `start` and `close` bracket its life; `update` is fed by the watch of KV `nodes`.

    `greeting` makes the fields by which a node knows this ingress, for a clock so many ms ahead; without any there is
    no connection that streams share.
    """

    def __init__(
        self, settings: IngressSettings, metrics: Metrics, greeting: Callable[[int], list[Field]] = lambda _: []
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._greeting = greeting
        self._partitions = [partition_name(index) for index in range(settings.partitions)]
        self._members: dict[str, Member] = {}
        self._placement = Placement(self._partitions, (), ())
        self._changed = asyncio.Event()
        self._ticker: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        self._ticker = asyncio.create_task(self._tick(), name="nodes-tick")

    async def close(self) -> None:
        members = self._members.values()
        own = [self._ticker, *(member.check for member in members), *(member.joining for member in members)]
        tasks = [task for task in own if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for member in self._members.values():
            for connection in list(member.open):
                connection.abort()
            self._part(member)
        self._members.clear()

    # -- what KV says ------------------------------------------------------------------------------------------------

    def update(self, key: str, value: bytes | None) -> None:
        """A change of KV `nodes`."""
        member = self._members.get(key)
        if value is None:
            if member is not None:
                member.draining = True  # it said good-bye; forgotten once it is silent, too
                self._place()
            return
        record = decode(value, Node)
        now = self._loop.time()
        if member is not None and member.url != record.url:
            self._forget(member)
            member = None
        if member is None:
            member = self._members[key] = Member(record, now)
            member.check = asyncio.create_task(self._checks(member), name=f"check-{member.id}")
            log.info("node.learned", node=member.id, url=member.url)
        member.recorded_at = now
        member.draining = record.state == "draining"
        self._place()

    def _forget(self, member: Member) -> None:
        del self._members[member.id]
        if member.check is not None:
            member.check.cancel()
        self._drop(member)
        self._part(member)
        log.info("node.forgotten", node=member.id)

    # -- choosing ----------------------------------------------------------------------------------------------------

    @property
    def live(self) -> frozenset[str]:
        return self._placement.live

    @property
    def members(self) -> dict[str, Member]:
        return self._members

    def choose(self, partition: str, excluding: Collection[str] = ()) -> Member | None:
        """The live node for a partition ("": any)."""
        chosen = self._placement.choose(partition or random_id(2), excluding)
        return self._members[chosen] if chosen is not None else None

    async def changed(self, timeout: float) -> None:
        """Returns when the live nodes change, or after `timeout`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._changed.wait()

    def _place(self) -> None:
        live = {member.id for member in self._members.values() if member.live}
        self._placement = Placement(self._partitions, self._members, live)
        for health in Health:
            self._metrics.nodes.labels(health.value).set(sum(m.health is health for m in self._members.values()))
        self._changed.set()
        self._changed = asyncio.Event()

    # -- connections -------------------------------------------------------------------------------------------------

    async def stream(self, member: Member, *, fresh: bool = False) -> Connection:
        """For one stream: on the connection that all of them share, where the node has such, else one of its own.

        Raises NodeLost.
        """
        mux = await self._shared(member)
        return await self.connect(member, fresh=fresh) if mux is None else self._opened(member, mux.stream())

    async def socket(self, member: Member, target: str, offered: list[str]) -> Socket:
        """For one WebSocket, as `stream`; not yet greeted. Raises NodeLost."""
        mux = await self._shared(member)
        if mux is not None and mux.serves_sockets:
            return self._opened(member, mux.socket(target, offered))
        with self._reaching(member):
            async with asyncio.timeout(self._settings.connect_timeout):
                _, made = await self._loop.create_connection(
                    lambda: NodeSocket(member, target, offered), member.host, member.port
                )
        return made

    @staticmethod
    def _opened(member: Member, stream: Stream) -> Stream:
        member.open.add(stream)
        return stream

    async def _shared(self, member: Member) -> NodeMux | None:
        """The connection that streams share, if there is one. Raises NodeLost."""
        if (joining := self._begin_to_join(member)) is not None:
            try:
                lost = await asyncio.shield(joining)  # who gives up waiting does so for himself
            except asyncio.CancelledError:
                asker = asyncio.current_task()
                if not joining.cancelled() or (asker is not None and asker.cancelling()):
                    raise
                raise NodeLost("the node was forgotten", unsent=True) from None
            if lost is not None:
                raise lost
        return member.mux if member.mux is not None and not member.mux.lost else None

    def _begin_to_join(self, member: Member) -> asyncio.Task[NodeLost | None] | None:
        """None where there is nothing to wait for: it is joined, or has no such connection for us."""
        if member.mux is not None and not member.mux.lost:
            return None
        if member.joining is None or member.joining.done():
            fields = self._greeting(member.clock_ahead)
            if not fields or self._loop.time() < member.mux_again:
                return None
            member.joining = asyncio.create_task(self._join(member, fields), name=f"join-{member.id}")
        return member.joining

    async def _join(self, member: Member, fields: list[Field]) -> NodeLost | None:
        """Get the connection that streams share, unless the node has none for us. Why there is no node, where not."""
        mux = NodeMux(member, self._settings.down_after, member.open.discard)
        try:
            with self._reaching(member):
                await mux.connect(fields, self._settings.connect_timeout)
        except NoMux as refused:
            if not member.mux_again:
                log.info("node.mux_refused", node=member.id, why=str(refused))
            member.mux_again = self._loop.time() + MUX_AGAIN
            return None
        except NodeLost as lost:
            return lost
        member.mux = mux
        return None

    def _part(self, member: Member) -> None:
        """Without telling anybody."""
        if member.joining is not None:
            member.joining.cancel()
        if member.mux is not None:
            member.mux.close()

    async def connect(self, member: Member, *, fresh: bool = False) -> NodeConnection:
        """A connection to the node: one that is idle, unless `fresh`; raises NodeLost."""
        while member.idle and not fresh:
            connection = member.idle.pop()
            if not connection.lost:
                return connection
        made: NodeConnection
        with self._reaching(member):
            async with asyncio.timeout(self._settings.connect_timeout):
                _, made = await self._loop.create_connection(
                    lambda: NodeConnection(member, member.open.discard), member.host, member.port
                )
        if not made.lost:
            member.open.add(made)
        return made

    @contextlib.contextmanager
    def _reaching(self, member: Member) -> Iterator[None]:
        """Whatever keeps a connection to the node from being made is NodeLost."""
        try:
            yield
        except ConnectionRefusedError as error:
            self._refused(member)
            raise NodeLost("refused", refused=True, unsent=True) from error
        except (OSError, TimeoutError) as error:
            raise NodeLost(f"cannot connect: {error or type(error).__name__}", unsent=True) from error

    def release(self, member: Member, connection: Connection) -> None:
        """Give a connection back after a whole response; anything else is broken off."""
        if (
            isinstance(connection, NodeConnection)
            and connection.reusable
            and not connection.lost
            and len(member.idle) < IDLE_CONNECTIONS
        ):
            member.idle.append(connection)
        else:
            connection.abort()

    def _drop(self, member: Member) -> None:
        member.idle.clear()
        for connection in list(member.open):
            connection.fail()
        for close in list(member.closers):
            close()

    def _move(self, member: Member) -> None:
        """Streams, and what waits for an answer, go to another node. An answer that has begun needs no NATS."""
        for move in list(member.streams):
            move()
        for connection in list(member.open):
            if connection.waiting:
                connection.fail()

    # -- health ------------------------------------------------------------------------------------------------------

    def _refused(self, member: Member) -> None:
        if self._members.get(member.id) is member and not member.refused:
            member.refused = True
            self._judge(member)

    async def _checks(self, member: Member) -> None:
        """Ask one node for ever. One that is down is asked once and waited for, so that its backlog does not fill."""
        request = f"GET /readyz HTTP/1.1\r\nhost: {member.host}:{member.port}\r\n\r\n".encode()
        connection: NodeConnection | None = None
        while True:
            started = self._loop.time()
            try:
                if connection is None or connection.lost:
                    connection = await self.connect(member, fresh=True)
                down = member.health is Health.DOWN
                head = await connection.ask(request, DOWN_CHECK_TIMEOUT if down else self._settings.down_after)
                whole: asyncio.Future[NodeLost | None] = self._loop.create_future()
                said: list[bytes] = []
                connection.take(said.append, whole.set_result)
                async with asyncio.timeout(self._settings.down_after):
                    await whole
                if not connection.reusable:
                    connection.abort()
                    connection = None
                ready = head.status == 200
                deaf = not ready and NATS in reasons_in(b"".join(said))
                member.answered(started, self._loop.time(), ready=ready, deaf=deaf)
                if ready:
                    self._begin_to_join(member)  # before anybody wants a stream
                member.clock_ahead = clock_ahead(head.fields, now_ms())
            except (NodeLost, TimeoutError):
                member.ready = member.ready and not member.refused
                member.well = None
                if connection is not None:
                    connection.abort()
                    connection = None
            self._judge(member)
            await asyncio.sleep(max(0.0, started + self._settings.check_interval - self._loop.time()))

    async def _tick(self) -> None:
        before = self._loop.time()
        while True:
            await asyncio.sleep(TICK)
            now = self._loop.time()
            for member in self._members.values():
                if member.mux is not None:
                    member.mux.look(member.answered_at)
            muxes = [member.mux for member in self._members.values()]
            self._metrics.shared.set(sum(mux is not None and not mux.lost for mux in muxes))
            if now - before > TICK + LATE:
                for member in self._members.values():
                    member.heard_at = max(member.heard_at, now - self._settings.suspect_after / 2)
            self._metrics.loop_lag.observe(max(0.0, now - before - TICK))
            before = now
            for member in list(self._members.values()):
                self._judge(member)
                if member.health in (Health.DOWN, Health.SUSPECT) and now - member.recorded_at > FORGET_AFTER:
                    self._forget(member)
                    self._place()

    def _judge(self, member: Member) -> None:
        if self._members.get(member.id) is not member:
            return
        others = [other for other in self._members.values() if other is not member and other.live]
        health = judge(
            self._loop.time() - member.heard_at,
            ready=member.ready,
            refused=member.refused,
            suspect_after=self._settings.suspect_after,
            down_after=self._settings.down_after,
            others_up=bool(others),
            alone=cut_off(member.deaf_since, [other.well for other in others], self._settings.cut_off_after),
        )
        if health is member.health:
            return
        log.info("node.judged", node=member.id, health=health.value, before=member.health.value)
        member.health = health
        self._place()
        if health is Health.DOWN:
            self._drop(member)
        elif health is Health.CUT_OFF:
            self._move(member)
