"""One event stream of one client, over as many legs as it takes.

A leg ends when its node dies, falls silent, is cut off, leaves or stops; the next one begins at the last cursor that
was forwarded. The client sees whole events, each once, and one `served_by` per leg; never the seam.
"""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import replace
from enum import StrEnum

import structlog

from broker.bus.errors import Refusal
from ingress import answer
from ingress.client import ClientConnection
from ingress.headers import ADMISSION, REQUEST_ID, Field, to_client
from ingress.http import Exchange, payload
from ingress.judgement import Health
from ingress.leg import Leg, NoNode, Undecided, reach, read_problem
from ingress.membership import Nodes
from ingress.metrics import Metrics
from ingress.request import Kind, Request
from ingress.settings import IngressSettings
from ingress.sse_leg import EventTooLarge, Splice, Splitter, Turn
from ingress.trust import Trust
from ingress.upstream import NodeLost

log = structlog.get_logger("ingress.stream")

RETRY = 1.0
"""Seconds after which a client that was put off comes back."""
LEAVE_SPREAD_MS = 500


class End(StrEnum):
    """Why a leg, or the stream, is over."""

    LOST = "lost"  # reset, cut off or not HTTP: another leg
    STOPPED = "stopped"  # a clean end without `closed`: another leg
    SILENT = "silent"  # not even a heartbeat: another leg
    DRAIN = "drain"  # the node is leaving: another leg
    CUT_OFF = "cut_off"  # the node does not hear NATS: another leg
    REFUSED = "refused"  # `closed`, come again later: another node first
    CLOSED = "closed"  # the node said so, and why
    FINISHED = "finished"  # the terminal event of until=done
    UNAVAILABLE = "unavailable"  # no node within the deadline
    LEAVING = "leaving"  # this ingress drains
    GONE = "gone"  # the client went away
    ANSWERED = "answered"  # no stream at all: an ordinary answer


_AGAIN = frozenset({End.LOST, End.STOPPED, End.SILENT, End.DRAIN, End.CUT_OFF, End.REFUSED})
ELSEWHERE = frozenset({"unavailable", "overloaded"})  # codes of a `closed` that another node may not say


class EventStream:
    def __init__(
        self,
        request: Request,
        client: ClientConnection,
        *,
        ingress: str,
        nodes: Nodes,
        trust: Trust,
        settings: IngressSettings,
        metrics: Metrics,
    ) -> None:
        self._request = request
        self._client = client
        self._ingress = ingress
        self._nodes = nodes
        self._trust = trust
        self._settings = settings
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._splice = Splice(until_done=request.until_done, after=request.after.encode())
        if request.kind is Kind.ANSWER:
            # This answer and nothing else: a later leg's history is not to be announced, and its terminal ends it.
            self._splice = Splice(until_done=True)
            self._splice.caught_up = True
        self._splitter = Splitter()
        self._ended: asyncio.Future[End] = self._loop.create_future()
        self._leg: Leg | None = None
        self._admission = b""
        self._started = False
        self._leaving = False
        self._joined = False  # the present leg has said `hello`
        self._lost_at = 0.0
        self._lost_why = ""
        self._heard_at = 0.0
        self._closed = b""  # the `closed` of a node that refused, in case no other one takes it
        self._frame = answer.chunk if request.chunked_ok else _plain
        self.node = ""
        self.legs = 0
        self.bytes = 0
        self.status = 200

    # -- from first to last ------------------------------------------------------------------------------------------

    async def run(self) -> End:
        """Serve the stream to its end. Raises Refusal where not even a first leg can be had (nothing is sent)."""
        end = End.GONE
        try:
            end = await self._serve()
        finally:
            self._drop_leg()
            self._client.on_pause = self._client.on_resume = None
            if self._started:
                self._metrics.streams.labels("sse").dec()
                self._metrics.stream_ends.labels("sse", end.value).inc()
                self._metrics.relayed.inc(self.bytes)
        return end

    def leave(self) -> None:
        """This ingress drains: tell the client where to go on, and end."""
        self._leaving = True
        self._over(End.LEAVING)

    async def _serve(self) -> End:
        tried: set[str] = set()
        deadline = self._loop.time() + self._settings.leg_timeout
        while True:
            before = self.bytes
            try:
                leg = await self._open(deadline, tried)
            except NoNode as error:
                if not self._started:
                    raise Refusal("unavailable", "no stream node can be reached", retry_after=RETRY) from error
                self._finish(self._closed or answer.closed_event("unavailable", "no stream node can be reached", RETRY))
                return End.UNAVAILABLE
            if leg is None:
                return End.FINISHED if self._started else End.ANSWERED
            end = await self._follow(leg)
            match end:
                case End.CLOSED | End.FINISHED:
                    self._finish(b"")
                    return end
                case End.LEAVING:
                    spread = random.randrange(LEAVE_SPREAD_MS)
                    retry = b"retry: %d\n" % spread
                    self._finish(retry + answer.reconnect(self._splice.cursor, spread))
                    return end
            if end is End.STOPPED and self._splice.until_done and self._splice.caught_up:
                self._finish(b"")  # until=done with nothing running ends at `caught_up`
                return End.FINISHED
            if end is End.REFUSED and self._nodes.choose(self._request.partition, tried | {leg.member.id}) is None:
                self._finish(self._closed)
                return End.CLOSED
            assert end in _AGAIN
            if self.bytes != before:  # it was a leg, not an attempt: the search begins anew
                deadline = self._loop.time() + self._settings.leg_timeout
            tried = {leg.member.id} if end is not End.REFUSED else tried | {leg.member.id}
            if self._joined or not self._lost_why:
                self._lost_at, self._lost_why = self._loop.time(), end.value
            log.info(
                "stream.spliced",
                sid=self._request.sid,
                node=leg.member.id,
                reason=end.value,
                request_id=self._request.id,
            )

    async def _open(self, deadline: float, tried: set[str]) -> Leg | None:
        """The next leg, its response begun; None where the node had an ordinary answer, which the client has got.
        Raises Refusal where every node fails to give the first one, and NoNode.
        """
        request = self._leg_request()
        while True:
            timeout = max(0.05, deadline - self._loop.time())
            if request.method == "POST":  # the node itself waits for OKOME as long, and then says what is wrong
                timeout = self._settings.response_timeout
            try:
                leg = await reach(
                    self._nodes,
                    request.partition,
                    lambda member: payload(request, self._trust, member, extra=self._extra()),
                    deadline=deadline,
                    timeout=timeout,
                    repeatable=request.repeatable,
                    shared=request.method == "GET" and not request.body,
                    excluding=tried,
                )
            except Undecided as error:
                raise NoNode("the first node was lost on the way") from error
            if leg.head.status == 200 and leg.is_event_stream:
                return leg
            if leg.head.status >= 500 and (self._started or request.kind is not Kind.ANSWER):
                tried.add(leg.member.id)
                leg.connection.abort()
                if self._nodes.choose(request.partition, tried) is None:
                    if not self._started:
                        raise Refusal("unavailable", "no stream node can serve this now", retry_after=RETRY)
                    if self._loop.time() >= deadline:  # until then: it was well before, and may be again
                        raise NoNode(f"status {leg.head.status}")
                continue
            if self._started:
                await self._refused_later(leg)
                return None
            try:
                self.status = await self._exchange(request).relay(leg)
            except NodeLost:
                tried.add(leg.member.id)
                continue
            return None

    def _exchange(self, request: Request) -> Exchange:
        return Exchange(
            request, self._client, nodes=self._nodes, trust=self._trust, settings=self._settings, metrics=self._metrics
        )

    async def _refused_later(self, leg: Leg) -> None:
        """A later leg got a status instead of a stream: 204 is the end, a refusal becomes `closed`."""
        if leg.head.status == 204:
            leg.connection.abort()
            self._finish(b"")
            return
        problem = await read_problem(leg.connection, self._settings.connect_timeout)
        code, message = "unavailable", "the stream cannot go on"
        try:
            told = json.loads(problem)["error"]
            code, message = str(told["code"]), str(told["message"])
        except (ValueError, KeyError, TypeError):
            log.warning("stream.problem_unreadable", status=leg.head.status, node=leg.member.id)
        self._finish(answer.closed_event(code, message))

    def _leg_request(self) -> Request:
        """The client's own request; for a later leg the same from the last cursor on."""
        request = self._request
        if not self._started or not self._splice.cursor:
            return request
        left_out = {b"last-event-id"}
        if self._admission:
            left_out.add(b"authorization")  # it may have expired since; what was admitted goes on
        fields = [field for field in request.headers if field[0] not in left_out]
        fields.append((b"last-event-id", self._splice.cursor))
        if request.kind is not Kind.ANSWER:
            return replace(request, headers=fields)
        # The answer to a POST goes on as the session's events: the POST itself is done.
        gone = (b"idempotency-key", b"content-type", b"content-encoding")
        path = f"/v1/sessions/{request.sid}/events"
        return replace(
            request,
            method="GET",
            path=path,
            query="until=done",
            target=f"{path}?until=done",
            headers=[field for field in fields if field[0] not in gone],
            body=b"",
        )

    def _extra(self) -> tuple[Field, ...]:
        return ((ADMISSION, self._admission),) if self._admission else ()

    # -- one leg -----------------------------------------------------------------------------------------------------

    async def _follow(self, leg: Leg) -> End:
        """Forward one leg until it is over; returns why."""
        self._leg = leg
        self._ended = self._loop.create_future()
        self._splitter = Splitter()
        self._joined = False
        self._heard_at = self._loop.time()
        self._admission = leg.admission or self._admission
        self.node = leg.member.id
        self.legs += 1
        self._metrics.legs.labels("sse").inc()
        if not self._started:
            self._start(leg)
        if self._leaving:
            self._drop_leg()
            return End.LEAVING
        self._client.on_pause = leg.connection.pause
        self._client.on_resume = self._resume
        if self._client.congested:
            leg.connection.pause()
        leg.connection.take(self._on_body, self._on_end, self._on_tokens)
        leg.member.streams.add(self._move)
        if leg.member.health is Health.CUT_OFF:  # meanwhile
            self._move()
        try:
            return await self._until_ended()
        finally:
            leg.member.streams.discard(self._move)
            self._drop_leg()

    def _start(self, leg: Leg) -> None:
        self._started = True
        self._metrics.streams.labels("sse").inc()
        self._client.stream()
        fields = [*to_client(leg.head.fields), (REQUEST_ID, self._request.id.encode())]
        if self._request.chunked_ok:
            fields.append((b"transfer-encoding", b"chunked"))
        else:
            self._request.keep_alive = False
        if not self._request.keep_alive:
            fields.append((b"connection", b"close"))
        self._client.write(answer.head(200, fields))

    async def _until_ended(self) -> End:
        silence = self._settings.silence_timeout
        while True:
            try:
                async with asyncio.timeout_at(self._heard_at + silence):
                    return await asyncio.shield(self._ended)  # the next round waits for the same future
            except TimeoutError:
                now = self._loop.time()
                if self._client.congested:
                    self._heard_at = now  # it is we who do not read
                elif now - self._heard_at >= silence:
                    return End.SILENT

    def _move(self) -> None:
        self._over(End.CUT_OFF)

    def _drop_leg(self) -> None:
        leg, self._leg = self._leg, None
        if leg is not None:
            leg.connection.abort()

    def _resume(self) -> None:
        self._heard_at = self._loop.time()
        if self._leg is not None:
            self._leg.connection.resume()

    def _over(self, end: End) -> None:
        if not self._ended.done():
            self._ended.set_result(end)

    def _on_end(self, error: NodeLost | None) -> None:
        self._over(End.STOPPED if error is None else End.LOST)

    def _on_tokens(self, data: bytes, cursor: bytes) -> None:
        """The hot path: whole token events, of which only the last cursor matters here."""
        if self._splitter.held:
            self._on_body(data)
        elif not self._ended.done():
            self._heard_at = self._loop.time()
            self._splice.cursor = cursor
            self.bytes += len(data)
            self._client.write(self._frame(data))

    def _on_body(self, data: bytes) -> None:
        """Once for each piece that comes of it."""
        if self._ended.done():
            return
        self._heard_at = self._loop.time()
        try:
            events = self._splitter.feed(data)
        except EventTooLarge:
            self._over(End.LOST)
            return
        out: list[bytes] = []
        take = self._splice.take
        for event in events:
            raw, turn = take(event)
            if turn is not Turn.GO_ON:
                raw = self._turned(raw, turn, event.data)
            if raw:
                out.append(raw)
            if self._ended.done():
                break
        if out:
            data = out[0] if len(out) == 1 else b"".join(out)
            self.bytes += len(data)
            self._client.write(self._frame(data))
        if self._request.body and self._splice.cursor:
            self._client.let_go(self._request)  # later legs go on from there

    def _turned(self, raw: bytes, turn: Turn, data: bytes) -> bytes:
        match turn:
            case Turn.JOINED:
                self._joined = True
                self._closed = b""
                if self._lost_why:
                    self._metrics.splices.labels("sse", self._lost_why).inc()
                    self._metrics.gap.labels(self._lost_why).observe(self._loop.time() - self._lost_at)
                    self._lost_why = ""
                return raw + answer.served_by(self.node, self._ingress)
            case Turn.LEAVE:
                self._over(End.DRAIN)
            case Turn.FINISHED:
                self._over(End.FINISHED)
            case Turn.CLOSED:
                if _code(data) in ELSEWHERE:  # "come back later": first to another node, for the client
                    self._closed = raw
                    self._over(End.REFUSED)
                    return b""
                self._over(End.CLOSED)
        return raw

    def _finish(self, last: bytes) -> None:
        """The clean end of the response, after `last`."""
        if last:
            self._client.write(self._frame(last))
        if self._request.chunked_ok:
            self._client.write(answer.LAST_CHUNK)
        self._client.stream_over()


def _plain(data: bytes) -> bytes:
    return data


def _code(data: bytes) -> str:
    try:
        return str(json.loads(data)["code"])
    except (ValueError, KeyError, TypeError):
        return ""
