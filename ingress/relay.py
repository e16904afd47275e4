"""What happens to a request: counted against its limits, sent its way, logged. Owns the open streams, for the drain.

The access log never holds a query string or a credential.
"""

from __future__ import annotations

import asyncio
import time
from urllib.parse import unquote

import structlog

from broker.bus.errors import Refusal
from broker.bus.health import Health
from ingress import answer
from ingress.client import ClientConnection
from ingress.headers import REQUEST_ID, Field
from ingress.http import Exchange
from ingress.limits import Limits
from ingress.membership import Nodes
from ingress.metrics import Metrics
from ingress.request import OWN_METHODS, Kind, Request, allowed
from ingress.settings import IngressSettings
from ingress.stream import RETRY, EventStream
from ingress.trust import Trust
from ingress.websocket import UPGRADE, SocketStream

log = structlog.get_logger("ingress.access")


class Relay:
    def __init__(
        self,
        settings: IngressSettings,
        *,
        ingress: str,
        nodes: Nodes,
        trust: Trust,
        limits: Limits,
        metrics: Metrics,
        health: Health,
    ) -> None:
        self._settings = settings
        self._ingress = ingress
        self._nodes = nodes
        self._trust = trust
        self._limits = limits
        self._metrics = metrics
        self._health = health
        self._origins = settings.origins
        self._streams: set[EventStream | SocketStream] = set()
        self._draining = False

    async def handle(self, request: Request, client: ClientConnection) -> None:
        """Answer one request. A client that goes away cancels it."""
        task = asyncio.current_task()
        assert task is not None
        started = time.monotonic()
        facts: dict[str, object] = {"status": 0}
        if request.kind is not Kind.SOCKET:
            client.on_gone = task.cancel
        del task  # a cancelled task holds this frame: the two would keep each other
        try:
            await self._dispatch(request, client, facts)
        except asyncio.CancelledError:
            facts["end"] = "gone" if client.gone.is_set() else "cut"
            raise
        finally:
            client.on_gone = None
            self._metrics.requests.labels(request.kind.name.lower(), str(facts["status"])).inc()
            if request.kind is not Kind.OWN:
                log.info(
                    "request.served",
                    method=request.method,
                    path=request.path,
                    ip=request.ip,
                    request_id=request.id,
                    seconds=round(time.monotonic() - started, 4),
                    **facts,
                )

    def drain(self) -> None:
        """Tell every open stream to go elsewhere."""
        self._health.set("drain", "draining")
        self._draining = True
        for stream in list(self._streams):
            stream.leave()

    async def _dispatch(self, request: Request, client: ClientConnection, facts: dict[str, object]) -> None:
        if request.kind is Kind.OWN:
            self._own(request, client, facts)
            return
        refusal: Refusal | None = None
        try:
            await self._limits.admit(request)
            match request.kind:
                case Kind.EVENTS | Kind.ANSWER:
                    await self._events(request, client, facts)
                case Kind.SOCKET:
                    await self._socket(request, client, facts, None)
                case _:
                    exchange = Exchange(
                        request,
                        client,
                        nodes=self._nodes,
                        trust=self._trust,
                        settings=self._settings,
                        metrics=self._metrics,
                    )
                    facts["status"] = await exchange.run()
                    facts["node"] = exchange.node
        except Refusal as error:
            refusal = error
        if refusal is None:
            return
        self._metrics.refused.labels(refusal.code).inc()
        facts["code"] = refusal.code
        if request.kind is Kind.SOCKET and refusal.code == "rate_limited":
            try:
                await self._socket(request, client, facts, refusal)
                return
            except Refusal as error:  # it is no upgrade either
                refusal = error
        self._refuse(request, client, refusal, facts)

    # -- kinds ---------------------------------------------------------------------------------------------------------

    async def _events(self, request: Request, client: ClientConnection, facts: dict[str, object]) -> None:
        request.ensure_idempotency_key()
        stream = EventStream(
            request,
            client,
            ingress=self._ingress,
            nodes=self._nodes,
            trust=self._trust,
            settings=self._settings,
            metrics=self._metrics,
        )
        self._enter(stream)
        log.info("stream.opened", sid=request.sid, transport="sse", request_id=request.id)
        try:
            facts["end"] = (await stream.run()).value
        finally:
            self._streams.discard(stream)
            facts |= {"status": stream.status, "node": stream.node, "legs": stream.legs, "bytes": stream.bytes}

    def _enter(self, stream: EventStream | SocketStream) -> None:
        self._streams.add(stream)
        if self._draining:  # since it was asked for
            stream.leave()

    async def _socket(
        self, request: Request, client: ClientConnection, facts: dict[str, object], refusal: Refusal | None
    ) -> None:
        stream = SocketStream(
            request,
            client,
            ingress=self._ingress,
            nodes=self._nodes,
            trust=self._trust,
            settings=self._settings,
            metrics=self._metrics,
        )
        self._enter(stream)
        log.info("stream.opened", sid=request.sid, transport="ws", request_id=request.id)
        facts["status"] = 101
        try:
            end, code = await stream.run(refusal)
            facts |= {"end": end.value, "close": code}
        finally:
            self._streams.discard(stream)
            facts |= {"node": stream.node, "legs": stream.legs, "bytes": stream.bytes}

    def _own(self, request: Request, client: ClientConnection, facts: dict[str, object]) -> None:
        """/livez, /readyz, /metrics, /version: ready when there is a node to send anything to."""
        live = self._nodes.live
        self._health.set("nodes", None if live else "no stream node is live")
        if request.method not in OWN_METHODS:
            self._refuse(request, client, Refusal("method_not_allowed", "GET it"), facts)
            return
        found = self._health.answer(unquote(request.path))
        assert found is not None, "one of OWN_PATHS"
        status, kind, body = found
        facts["status"] = status
        fields: list[Field] = [(b"content-type", kind.encode()), (b"cache-control", b"no-store")]
        self._answer(request, client, status, fields, body)

    # -- what is answered here -----------------------------------------------------------------------------------------

    def _refuse(self, request: Request, client: ClientConnection, refusal: Refusal, facts: dict[str, object]) -> None:
        """A status with api.md's error; for an event stream that may come back: 200, `retry:`, `closed`."""
        if request.kind is Kind.EVENTS and refusal.status in (429, 503):
            event = answer.closed_event(refusal.code, refusal.message, refusal.retry_after or RETRY)
            status, fields, body = 200, [*answer.EVENT_STREAM, (REQUEST_ID, request.id.encode())], event
        else:
            allow = allowed(request.path) if refusal.code == "method_not_allowed" else b""
            status, fields, body = answer.refused(refusal, request.id, allow=allow)
            if status == 426:
                fields += UPGRADE
        facts["status"] = status
        self._answer(request, client, status, [*fields, *request.accepted], body)

    def _answer(
        self, request: Request, client: ClientConnection, status: int, fields: list[Field], body: bytes
    ) -> None:
        fields = [*fields, *answer.readable(request.headers, self._origins)]
        client.write(
            answer.whole(status, fields, body, keep_alive=request.keep_alive, bodiless=request.method == "HEAD")
        )
