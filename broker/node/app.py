"""The node's front door: raw ASGI that hands streams to the hot path and everything else to FastAPI."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import MutableMapping
from typing import Any

import structlog
from fastapi import FastAPI, Response
from starlette.requests import ClientDisconnect

from broker.bus import mux
from broker.bus.clock import now_ms
from broker.bus.credentials import ADMISSION_HEADER, CLOCK_HEADER
from broker.bus.errors import BusError, CredentialInvalid, Refusal
from broker.bus.health import Health, Receive, Scope, Send, respond
from broker.node import metrics, sse
from broker.node.access import Access, Caller, Principal, check_opens, check_session_id, read_caller
from broker.node.api import as_refusal, refuse, request_id, set_session_cookie
from broker.node.cors import Cors
from broker.node.events import closed, log_unavailable
from broker.node.mux import Mux, protocol_under
from broker.node.operations import Operations
from broker.node.page import Page
from broker.node.pipe import Pipe, pipe_under
from broker.node.settings import NodeSettings
from broker.node.start import Start, read_start, read_until
from broker.node.viewers import Viewers
from broker.node.ws import CODES, WebSocketStream, chosen_protocol

log = structlog.get_logger("node")

_STREAM = re.compile(r"/v1/sessions/([^/]*)/(events|ws)\Z")
UPGRADE = {"upgrade": "websocket", "connection": "upgrade", "sec-websocket-version": "13"}
TEMPORARY = frozenset({"overloaded", "unavailable", "rate_limited"})


class App:
    """One ASGI application for a whole node."""

    def __init__(
        self,
        api: FastAPI,
        access: Access,
        viewers: Viewers,
        operations: Operations,
        health: Health,
        settings: NodeSettings,
    ) -> None:
        self._api = api
        self._access = access
        self._viewers = viewers
        self._operations = operations
        self._health = health
        self._settings = settings
        self._page = Page()
        self._cors = Cors(access)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return
        path: str = scope["path"]
        caller = read_caller(scope)
        stream = _STREAM.match(path)
        if (starting := self._health.reasons.get("starting")) and path.startswith("/v1/"):
            # Keys and revocations are not known yet: any other answer could be a wrong "no" that a client believes.
            await self._put_off(scope, receive, send, caller, Refusal("unavailable", starting, retry_after=1))
            return
        if scope["type"] == "websocket" and path == mux.PATH:
            await self._streams(scope, caller, receive, send)
            return
        if scope["type"] == "websocket":
            if stream is None or stream[2] != "ws":
                await send({"type": "websocket.close", "code": 4404})  # before accept: the upgrade is answered with 403
                return
            await self._websocket(stream[1], caller, receive, send)
            return
        method: str = scope["method"]
        if found := self._health.answer(path):
            if method in ("GET", "HEAD"):
                await respond(send, *found, (CLOCK_HEADER.encode(), str(now_ms()).encode()))
            else:
                refusal = Refusal("method_not_allowed", "GET it")
                await refuse(refusal, request_id(caller), {"allow": "GET, HEAD"})(scope, receive, send)
            return
        if self._page.has(path) and method in ("GET", "HEAD"):
            await self._page.serve(path, caller.headers.get("if-none-match", ""), send, head=method == "HEAD")
            return
        pipe = pipe_under(send)
        send = self._cors.answering(caller, send)
        if method == "OPTIONS" and self._cors.is_preflight(caller):
            await self._cors.preflight(send)
        elif stream is not None and method == "GET" and stream[2] == "events":
            await self._events(stream[1], caller, scope, receive, send, pipe)
        elif stream is not None and method != "GET":
            refusal = Refusal("method_not_allowed", f"{stream[2]} is for GET")
            await refuse(refusal, request_id(caller), {"allow": "GET"})(scope, receive, send)
        elif stream is not None and stream[2] == "ws":
            why = "this is not a WebSocket upgrade; a proxy may not pass `Upgrade` on"
            refusal = Refusal("malformed", why, status=426)
            await refuse(refusal, request_id(caller), UPGRADE)(scope, receive, send)
        else:
            await self._call_api(caller, scope, receive, send)

    async def _streams(self, scope: Scope, caller: Caller, receive: Receive, send: Send) -> None:
        """All streams of one ingress. It is refused to anybody else, who may ask for each as everybody does."""
        await receive()
        protocol = protocol_under(send)
        if protocol is None or self._access.relay(caller) is None:
            await send({"type": "websocket.close", "code": 4403})  # before accept: the upgrade is answered with 403
            return
        await Mux(self, scope, protocol).run(receive, send)

    async def _put_off(self, scope: Scope, receive: Receive, send: Send, caller: Caller, refusal: Refusal) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept", "subprotocol": chosen_protocol(caller.subprotocols)})
            await send({"type": "websocket.close", "code": CODES[refusal.code], "reason": refusal.message})
        elif _STREAM.match(scope["path"]):
            await sse.refuse(send, [], closed(refusal.code, refusal.message, refusal.retry_after))
        else:
            await refuse(refusal, request_id(caller))(scope, receive, send)

    async def _call_api(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        status = 0  # nothing was answered: the client has gone

        async def noting(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._api(scope, receive, noting)
        except ClientDisconnect:
            return  # in the middle of its request: there is nobody to answer
        except Exception as error:  # the safety net of a request: FastAPI logs nothing and has its own shape of 500
            log.error("node.request_failed", path=scope["path"], exc_info=error)
            with contextlib.suppress(RuntimeError):  # the answer had begun
                await refuse(Refusal("internal", "the request could not be carried out"), request_id(caller))(
                    scope, receive, noting
                )
        finally:
            metrics.requests.labels(str(status)).observe(loop.time() - began)

    # -- streams ---------------------------------------------------------------------------------------------------

    async def _admit(self, caller: Caller, sid: str) -> tuple[Principal, sse.Headers]:
        """Who asks for this stream, and headers for the answer. Raises Refusal, CredentialInvalid, BusError."""
        check_session_id(sid)
        headers: sse.Headers = []
        try:
            principal = self._access.principal(caller, sid)
        except (Refusal, CredentialInvalid):
            if not (ticket := caller.query.get("ticket", "")):
                raise
            redeemed = await self._operations.redeem(ticket, sid)
            principal = self._access.token(redeemed.token)
            jar = Response()
            set_session_cookie(jar, redeemed, secure=self._access.secure(caller))
            headers += [(name, value) for name, value in jar.raw_headers if name == b"set-cookie"]
        check_opens(principal, sid)
        if not principal.sid:  # a key or a login: is this session of that tenant?
            await self._operations.session(principal, sid)
        if self._access.relay(caller) is not None:
            headers.append((ADMISSION_HEADER.encode(), self._access.admission(principal, sid).encode()))
        return principal, headers

    async def _events(
        self, sid: str, caller: Caller, scope: Scope, receive: Receive, send: Send, pipe: Pipe | None
    ) -> None:
        headers: sse.Headers = [(b"x-request-id", request_id(caller).encode())]
        try:
            principal, more = await self._admit(caller, sid)
            headers += more
            last_event_id = caller.headers.get("last-event-id")
            start = read_start(caller.query.get("after"), last_event_id)
            until_done = read_until(caller.query.get("until"))
            paced = caller.query.get("pace") != "0"
            subscriber = await self._viewers.open(principal, sid, start, "sse", until_done=until_done, paced=paced)
        except (Refusal, CredentialInvalid, BusError) as error:
            refusal = as_refusal(error)
            if refusal.status == 401:
                metrics.auth_failures.labels(refusal.code).inc()
            if refusal.code in TEMPORARY:
                await sse.refuse(send, headers, closed(refusal.code, refusal.message, refusal.retry_after))
            else:
                await refuse(refusal, request_id(caller))(scope, receive, send)
            return
        try:
            if until_done and start.word == "cursor" and await subscriber.nothing_left():
                await respond(send, 204, "text/plain", b"")
                return
            await sse.stream(subscriber, receive, send, headers, pipe)
        except BusError as error:
            log.warning("node.stream_put_off", sid=sid, error=repr(error))
            await sse.refuse(send, headers, log_unavailable())
        finally:
            self._viewers.closed(subscriber)

    async def _websocket(self, sid: str, caller: Caller, receive: Receive, send: Send) -> None:
        if (await receive())["type"] != "websocket.connect":
            return

        async def admit() -> tuple[Principal | None, sse.Headers]:
            try:
                principal, headers = await self._admit(caller, sid)
            except Refusal as refusal:
                shown = self._access.bearer(caller) or caller.query.get("ticket")  # raises for what is no Bearer, again
                if refusal.code == "unauthenticated" and not shown:
                    return None, []  # the first message may bring a token
                raise
            self._access.may_act(caller, principal)
            return principal, headers

        paced = caller.query.get("pace") != "0"
        stream = WebSocketStream(sid, self._access, self._viewers, self._operations, receive, send, paced=paced)

        def start() -> tuple[Start, bool]:
            start = read_start(caller.query.get("after"), caller.headers.get("last-event-id"))
            return start, read_until(caller.query.get("until"))

        await stream.run(
            admit,
            start,
            caller.subprotocols,
            self._settings.auth_timeout,
        )
