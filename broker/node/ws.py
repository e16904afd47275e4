"""`GET /v1/sessions/{sid}/ws`: the same stream over a WebSocket, and a few requests from the client. Raw ASGI.

Messages both ways are `{"event", "id"?, "data"?}`. Refusals: accept, then close with the code of api.md, because a
browser cannot read the status of a failed upgrade.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import msgspec
import structlog

from broker.bus.errors import BusError, CredentialInvalid, Refusal
from broker.bus.frames import json_decode, json_encode
from broker.bus.health import Receive, Send
from broker.bus.mux import reason
from broker.node import metrics
from broker.node.access import Access, Principal, check_opens
from broker.node.events import closed, log_unavailable
from broker.node.inputs import GenerationBody, parse
from broker.node.operations import Operations
from broker.node.pipe import LiveSink, pipe_under
from broker.node.sse import Headers
from broker.node.start import Start, read_start
from broker.node.subscriber import Subscriber
from broker.node.viewers import Viewers

log = structlog.get_logger("node")

PROTOCOL = "okome.v1"
MAX_MESSAGE = 1024 * 1024
MAX_REQUESTS = 16  # of one client at once; one more is "too fast"
MAX_REMEMBERED = 256  # answers kept, so that a request sent again after a splice is not carried out twice
CLOSED_TIMEOUT = 1.0  # seconds that `closed` may wait for a client to read what came before
HEARTBEAT = '{"event":"hb"}'

# Close codes by the reason a stream ended or was refused for.
CODES = {
    "done": 1000,
    "client_gone": 1001,
    "node_leaving": 1012,
    "put_off": 1013,
    "log_unavailable": 1013,
    "log_broken": 1011,
    "overloaded": 1013,
    "unavailable": 1013,
    "malformed": 4400,
    "unauthenticated": 4401,
    "token_expired": 4401,
    "token_revoked": 4401,
    "forbidden": 4403,
    "unknown_session": 4404,
    "auth_timeout": 4408,
    "rate_limited": 4429,
}

_events_sent = metrics.events_sent.labels("ws")


def chosen_protocol(offered: Sequence[str]) -> str | None:
    """Always ours, where it is offered: a token that was offered beside it must not be sent back."""
    return PROTOCOL if PROTOCOL in offered else None


class _Close(Exception):
    """End this connection with the code of `reason`; `retry_after` (seconds) is for who may come back."""

    def __init__(self, reason: str, message: str = "", retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.message = message
        self.retry_after = retry_after


class WebSocketStream:
    """One connection: a reader of client messages and, one at a time, a writer of the subscriber's events."""

    def __init__(
        self,
        sid: str,
        access: Access,
        viewers: Viewers,
        operations: Operations,
        receive: Receive,
        send: Send,
        *,
        paced: bool = True,
    ) -> None:
        self._sid = sid
        self._paced = paced
        self._until_done = False
        self._access = access
        self._viewers = viewers
        self._operations = operations
        self._receive = receive
        self._send = send
        self._principal: Principal | None = None
        self._subscriber: Subscriber | None = None
        self._writer: asyncio.Task[None] | None = None
        self._requests: set[asyncio.Task[None]] = set()
        self._answers: OrderedDict[str, tuple[bytes, str]] = OrderedDict()  # request_id -> request's hash, answer
        self._ended = asyncio.Event()
        self._end = _Close("client_gone")

    async def run(
        self,
        admit: Callable[[], Awaitable[tuple[Principal | None, Headers]]],
        start: Callable[[], tuple[Start, bool]],
        subprotocols: Sequence[str],
        auth_timeout: float,
    ) -> None:
        """Serve the connection until either side ends it. `start`: where to begin, and whether to end with what runs;
        raises Refusal."""
        refusal: _Close | None = None
        untold = False
        principal: Principal | None = None
        headers: Headers = []
        first = Start("fresh")
        try:
            principal, headers = await admit()
            first, self._until_done = start()
        except (Refusal, CredentialInvalid) as error:
            refusal = _Close(error.code, error.message)
        except BusError:
            refusal = _Close("unavailable", "the log does not answer")
        chosen = chosen_protocol(subprotocols)
        await self._send({"type": "websocket.accept", "subprotocol": chosen, "headers": headers})
        try:
            if refusal is not None:
                raise refusal
            if principal is None:
                principal = await self._first_message(auth_timeout)
            self._principal = principal
            await self._begin(first)
            await self._serve()
        except _Close as close:
            self._end = close
            untold = self._principal is not None and not self._ended.is_set()  # else a code says all, or `closed` did
        finally:
            await self._stop()
        with contextlib.suppress(RuntimeError, OSError):  # the client has closed already
            if untold and self._end.reason != "client_gone":
                await self._say_closed(self._end)
            code = CODES.get(self._end.reason, 1011)
            await self._send({"type": "websocket.close", "code": code, "reason": reason(self._end.message)})

    # -- the client's side -----------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        reader = asyncio.create_task(self._read(), name="ws-reader")
        ended = asyncio.create_task(self._ended.wait(), name="ws-ended")
        try:
            await asyncio.wait((reader, ended), return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                await reader
        finally:
            reader.cancel()
            ended.cancel()
            await asyncio.gather(reader, ended, return_exceptions=True)

    async def _first_message(self, timeout: float) -> Principal:
        try:
            async with asyncio.timeout(timeout):
                event, data = await self._message()
        except TimeoutError as error:
            raise _Close("auth_timeout", "no token came in time") from error
        if event != "auth" or not isinstance(token := data.get("token"), str):
            raise _Close("unauthenticated", "the first message must be auth {token}")
        return await self._believe(token)

    async def _believe(self, token: str) -> Principal:
        """Whoever shows an API key here instead of a session token must own the session, as at the front door."""
        try:
            principal = self._access.token(token)
            check_opens(principal, self._sid)
            if not principal.sid:
                await self._operations.session(principal, self._sid)
            return principal
        except (Refusal, CredentialInvalid) as error:
            raise _Close(error.code, error.message) from error
        except BusError as error:
            raise _Close("unavailable", "the log does not answer", 1.0) from error

    async def _message(self) -> tuple[str, dict[str, Any]]:
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            raise _Close("client_gone")
        text = message.get("text")
        if text is None or len(text) > MAX_MESSAGE:
            raise _Close("malformed", "messages are text of at most 1 MiB")
        try:
            parsed = json_decode(text.encode())
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:  # the last: nested too deeply
            raise _Close("malformed", "messages are JSON") from error
        if not isinstance(parsed, dict) or not isinstance(parsed.get("event"), str):
            raise _Close("malformed", "messages are {event, data}")
        data = parsed.get("data", {})
        if not isinstance(data, dict):
            raise _Close("malformed", "data is an object")
        return parsed["event"], data

    async def _read(self) -> None:
        while True:
            event, data = await self._message()
            match event:
                case "ping":
                    await self._say("pong", {})
                case "auth":
                    if not isinstance(token := data.get("token"), str):
                        raise _Close("malformed", "auth needs a token")
                    self._principal = await self._believe(token)
                    if self._subscriber is not None:
                        self._viewers.renew(self._subscriber, self._principal)
                case "resume":
                    try:
                        if not isinstance(after := data.get("after"), str | None):
                            raise Refusal("malformed", "after is a text", param="after")
                        start = read_start(after, None)
                    except Refusal as error:
                        raise _Close("malformed", error.message) from error
                    await self._stop_writer()
                    await self._begin(start)
                case "generate" | "cancel":
                    self._request(event, data)
                case _:
                    raise _Close("malformed", f"no such message: {event[:40]}")

    def _request(self, event: str, data: dict[str, Any]) -> None:
        request_id = data.get("request_id")
        if not isinstance(request_id, str) or not 1 <= len(request_id) <= 128:
            raise _Close("malformed", "request_id is a text of 1 to 128 characters")
        fingerprint = hashlib.sha256(json_encode([event, data])).digest()
        if request_id in self._answers and self._answers[request_id][0] == fingerprint:
            self._spawn(self._say_again(self._answers[request_id][1]))
            return
        if len(self._requests) >= MAX_REQUESTS:
            raise _Close("rate_limited", "too many requests at once", 1.0)
        self._spawn(self._carry_out(event, request_id, data, fingerprint))

    async def _carry_out(self, event: str, request_id: str, data: dict[str, Any], fingerprint: bytes) -> None:
        assert self._principal is not None
        said: tuple[str, dict[str, Any]]
        try:
            if event == "generate":
                fields = {name: value for name, value in data.items() if name != "request_id"}
                body = parse(GenerationBody, fields)
                created = await self._operations.generate(self._principal, self._sid, body, request_id)
                answer = {"generation_id": created.generation_id, "cursor": created.cursor}
            else:
                gid = data.get("generation_id")
                if not isinstance(gid, str):
                    raise Refusal("malformed", "generation_id is a text", param="generation_id")
                answer = await self._operations.cancel(self._principal, self._sid, gid)
            said = ("accepted", {"request_id": request_id, **answer})
        except Refusal as refusal:
            error: dict[str, Any] = {"code": refusal.code, "message": refusal.message, "status": refusal.status}
            if refusal.param:
                error["param"] = refusal.param
            if refusal.retry_after is not None:
                error["retry_after_ms"] = int(refusal.retry_after * 1000)
            said = ("rejected", {"request_id": request_id, "error": error})
        except BusError:
            error = {"code": "unavailable", "message": "try again", "status": 503, "retry_after_ms": 1000}
            said = ("rejected", {"request_id": request_id, "error": error})
        except Exception as failure:  # the safety net of a request, as over HTTP: nobody must wait for its answer
            log.error("node.request_failed", sid=self._sid, exc_info=failure)
            error = {"code": "internal", "message": "the request could not be carried out", "status": 500}
            said = ("rejected", {"request_id": request_id, "error": error})
        text = json_encode({"event": said[0], "data": said[1]}).decode()
        if said[0] == "accepted":
            self._answers[request_id] = (fingerprint, text)
            if len(self._answers) > MAX_REMEMBERED:
                self._answers.popitem(last=False)
        await self._send({"type": "websocket.send", "text": text})

    # -- the stream ------------------------------------------------------------------------------------------------

    async def _begin(self, start: Start) -> None:
        assert self._principal is not None
        try:
            self._subscriber = await self._viewers.open(
                self._principal, self._sid, start, "ws", until_done=self._until_done, paced=self._paced
            )
        except Refusal as refusal:
            raise _Close(refusal.code, refusal.message, refusal.retry_after) from refusal
        self._writer = asyncio.create_task(self._write(self._subscriber), name="ws-writer")

    async def _write(self, subscriber: Subscriber) -> None:
        loop = asyncio.get_running_loop()
        pipe = pipe_under(self._send)
        subscriber.sink = LiveSink(subscriber, pipe, _events_sent) if pipe is not None else None
        try:
            async with contextlib.aclosing(subscriber.events()) as batches:
                async for batch in batches:
                    for event in batch:
                        await self._send({"type": "websocket.send", "text": event.ws})
                    if not batch:
                        await self._send({"type": "websocket.send", "text": HEARTBEAT})
                    subscriber.sent_at = loop.time()
                    _events_sent.inc(len(batch))
        except BusError as error:
            log.warning("node.stream_put_off", sid=self._sid, error=repr(error))
            subscriber.end_reason = "log_unavailable"
            await self._send({"type": "websocket.send", "text": log_unavailable().ws})
        except (RuntimeError, OSError):  # uvicorn: the client has closed
            subscriber.end_reason = "client_gone"
        except Exception as error:  # the safety net of this task: a connection without its writer would hang
            log.error("node.stream_failed", sid=self._sid, exc_info=error)
            subscriber.end_reason = "failed"
        finally:
            subscriber.sink = None  # the two would keep each other until the garbage collector looks
            self._viewers.closed(subscriber)
        self._end = _Close(subscriber.end_reason)
        self._ended.set()

    async def _stop_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            self._ended.clear()

    async def _stop(self) -> None:
        await self._stop_writer()
        for task in list(self._requests):
            task.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)

    async def _say(self, event: str, data: dict[str, Any]) -> None:
        await self._send({"type": "websocket.send", "text": json_encode({"event": event, "data": data}).decode()})

    async def _say_closed(self, end: _Close) -> None:
        """Before the close frame, as before the end of any stream that had begun."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSED_TIMEOUT):
                text = closed(end.reason, end.message, end.retry_after).ws
                await self._send({"type": "websocket.send", "text": text})

    async def _say_again(self, answer: str) -> None:
        await self._send({"type": "websocket.send", "text": answer})

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="ws-request")
        self._requests.add(task)
        task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._requests.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, (RuntimeError, OSError)):  # those: the client has closed
            log.error("node.request_failed", sid=self._sid, exc_info=error)
