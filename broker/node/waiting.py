"""Waiting for one answer: `POST …/generations` that streams it (Accept: text/event-stream) or returns it (?wait=)."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from broker.bus.errors import Refusal
from broker.bus.operations import GenerationCreated
from broker.bus.subjects import parse_cursor
from broker.node import sse
from broker.node.access import Principal
from broker.node.events import closed
from broker.node.start import Start
from broker.node.subscriber import Subscriber
from broker.node.viewers import Viewers


class Waiting:
    """Opens subscribers for a single generation: from the position before its `start` to its end."""

    def __init__(self, viewers: Viewers) -> None:
        self._viewers = viewers

    async def stream(self, who: Principal, sid: str, created: GenerationCreated, headers: dict[str, str]) -> Response:
        """The generation has been accepted, so trouble with the log is told within the stream."""
        fields = [(name.encode(), value.encode()) for name, value in headers.items()]
        try:
            subscriber = await self._open(who, sid, created)
        except Refusal as refusal:
            return _Refused(refusal, fields)
        return _Stream(self._viewers, subscriber, fields)

    async def until_ended(self, who: Principal, sid: str, created: GenerationCreated, seconds: float) -> None:
        """Returns when the generation has ended, or when the time is over. Raises BusError, and Refusal where
        this node leaves, or the token does not count any more, before."""
        subscriber = await self._open(who, sid, created)
        try:
            async with asyncio.timeout(seconds):
                async with aclosing(subscriber.events()) as batches:
                    async for _ in batches:
                        pass
        except TimeoutError:
            return
        finally:
            self._viewers.closed(subscriber)
        match subscriber.end_reason:
            case "done":
                return
            case "token_expired" | "token_revoked" as code:
                raise Refusal(code, "the token does not count any more; the answer goes on")
        raise Refusal("unavailable", "this node cannot wait for the answer any longer; it goes on", retry_after=1)

    async def _open(self, who: Principal, sid: str, created: GenerationCreated) -> Subscriber:
        start = Start("cursor", parse_cursor(created.cursor))
        return await self._viewers.open(who, sid, start, "sse", until_done=True, gid=created.generation_id)


class _Stream(Response):
    """A response that is the subscriber's stream."""

    def __init__(self, viewers: Viewers, subscriber: Subscriber, headers: sse.Headers) -> None:
        super().__init__()
        self._viewers = viewers
        self._subscriber = subscriber
        self._fields = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await sse.stream(self._subscriber, receive, send, self._fields)
        finally:
            self._viewers.closed(self._subscriber)


class _Refused(Response):
    def __init__(self, refusal: Refusal, headers: sse.Headers) -> None:
        super().__init__()
        self._refusal = refusal
        self._fields = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await sse.refuse(
            send, self._fields, closed(self._refusal.code, self._refusal.message, self._refusal.retry_after)
        )
