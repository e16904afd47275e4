"""An ordinary request: one question to a node, one answer back, repeated on another node where that does no harm."""

from __future__ import annotations

import asyncio
import functools

from broker.bus.errors import Refusal
from ingress import answer
from ingress.client import ClientConnection
from ingress.headers import REQUEST_ID, Field, to_client, to_node, value
from ingress.leg import Leg, NoNode, Undecided, reach
from ingress.membership import Member, Nodes
from ingress.metrics import Metrics
from ingress.request import Request
from ingress.settings import IngressSettings
from ingress.trust import Trust
from ingress.upstream import NodeLost

_ACCEPTED = (b"x-okome-session", b"x-okome-generation")  # with them it is known that a generation was accepted
WHOLE = 64 * 1024
"""An answer up to this size is sent when it is whole: until then the request can still be repeated."""


def payload(request: Request, trust: Trust, member: Member, *, extra: tuple[Field, ...] = ()) -> bytes:
    """The request as bytes for a node."""
    word = trust.word(request, member.clock_ahead)
    fields = [*to_node(request.headers), (REQUEST_ID, request.id.encode()), *word, *extra]
    if request.body or request.method in ("POST", "PUT", "PATCH"):
        fields.append((b"content-length", b"%d" % len(request.body)))
    lines = [b"%b: %b\r\n" % field for field in fields]
    return b"".join([f"{request.method} {request.target} HTTP/1.1\r\n".encode(), *lines, b"\r\n", request.body])


class Exchange:
    """One ordinary request. `run` answers the client and returns the status for the log."""

    def __init__(
        self,
        request: Request,
        client: ClientConnection,
        *,
        nodes: Nodes,
        trust: Trust,
        settings: IngressSettings,
        metrics: Metrics,
    ) -> None:
        self._request = request
        self._client = client
        self._nodes = nodes
        self._trust = trust
        self._settings = settings
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self.node = ""

    async def run(self) -> int:
        """Raises Refusal `unavailable` where no node can be had or the outcome is not known."""
        request = self._request
        request.ensure_idempotency_key()
        began = self._loop.time()
        deadline = began + self._settings.leg_timeout
        tried: set[str] = set()
        while True:
            try:
                leg = await reach(
                    self._nodes,
                    request.partition,
                    functools.partial(payload, request, self._trust),
                    deadline=deadline,
                    timeout=self._settings.response_timeout,
                    repeatable=request.repeatable,
                    bodiless=request.method == "HEAD",
                    excluding=tried,
                )
            except NoNode as error:
                raise Refusal("unavailable", "no stream node can be reached", retry_after=1) from error
            except Undecided as error:
                raise Refusal("unavailable", "it is not known whether this was carried out", retry_after=1) from error
            if self._must_wait_elsewhere(leg, tried):
                leg.connection.abort()
                self._metrics.repeats.inc()
                tried.add(leg.member.id)
                now = self._loop.time()
                self._request.accepted[:] = [field for field in leg.head.fields if field[0] in _ACCEPTED]
                request = self._request.waiting_less(now - began)
                deadline = now + self._settings.leg_timeout
                continue
            try:
                return await self.relay(leg)
            except NodeLost as error:
                if not request.repeatable:
                    raise Refusal(
                        "unavailable", "it is not known whether this was carried out", retry_after=1
                    ) from error
                self._metrics.repeats.inc()
                tried.add(leg.member.id)

    def _must_wait_elsewhere(self, leg: Leg, tried: set[str]) -> bool:
        """The node has had it accepted, under its key, and cannot wait for the answer, as it was asked to."""
        accepted = leg.head.status == 503 and bool(value(leg.head.fields, _ACCEPTED[1]))
        others = tried | {leg.member.id}
        return accepted and self._request.repeatable and self._nodes.choose(self._request.partition, others) is not None

    async def relay(self, leg: Leg) -> int:
        """Forward the leg's answer. Raises NodeLost while nothing of it is sent; later the client is broken off."""
        self.node = leg.member.id
        out = _Out(self._request, self._client, leg, self._loop.create_future())
        try:
            leg.connection.take(out.body, out.end)
            error = await out.ended
        except BaseException:
            leg.connection.abort()
            raise
        finally:
            self._client.on_pause = self._client.on_resume = None
        if error is not None:
            leg.connection.abort()
            if not out.started:
                raise error
            self._client.abort()  # an answer that broke must not look like one that ended
            return leg.head.status
        out.finish()
        self._nodes.release(leg.member, leg.connection)
        return leg.head.status


class _Out:
    """The answer on its way to the client."""

    def __init__(
        self, request: Request, client: ClientConnection, leg: Leg, ended: asyncio.Future[NodeLost | None]
    ) -> None:
        self._request = request
        self._client = client
        self._leg = leg
        self.ended = ended
        self.started = False
        self._parts: list[bytes] = []
        self._size = 0
        self._chunked = False
        client.on_pause = leg.connection.pause
        client.on_resume = leg.connection.resume
        if leg.is_event_stream:
            client.stream()
            self._start(None)

    def body(self, data: bytes) -> None:
        if self.started:
            self._client.write(answer.chunk(data) if self._chunked else data)
            return
        self._parts.append(data)
        self._size += len(data)
        if self._size > WHOLE:
            length = value(self._leg.head.fields, b"content-length")
            self._start(int(length) if length else None)

    def end(self, error: NodeLost | None) -> None:
        if not self.ended.done():
            self.ended.set_result(error)

    def finish(self) -> None:
        if not self.started:
            head = self._leg.head
            length: int | None = self._size
            if head.status == 204:  # which may not say a length, 0 neither
                length = None
            elif self._request.method == "HEAD" or head.status == 304:
                told = value(head.fields, b"content-length")
                length = int(told) if told else (None if head.status == 304 else 0)
            self._start(length, bodiless=length is None)
        elif self._chunked:
            self._client.write(answer.LAST_CHUNK)
        if self._leg.is_event_stream:
            self._client.stream_over()

    def _start(self, length: int | None, *, bodiless: bool = False) -> None:
        self.started = True
        request = self._request
        fields = [*to_client(self._leg.head.fields), (REQUEST_ID, request.id.encode())]
        if self._leg.head.status >= 400:
            fields += [told for told in request.accepted if not value(fields, told[0])]
        if length is not None:
            fields.append((b"content-length", b"%d" % length))
        elif not bodiless:
            self._chunked = request.chunked_ok
            if self._chunked:
                fields.append((b"transfer-encoding", b"chunked"))
            else:
                request.keep_alive = False  # the body ends with the connection
        if not request.keep_alive:
            fields.append((b"connection", b"close"))
        body = b"".join(self._parts)
        self._parts.clear()
        if body and self._chunked:
            body = answer.chunk(body)
        self._client.write(answer.head(self._leg.head.status, fields) + body)
