"""`GET /v1/sessions/{sid}/events` as raw ASGI: one write per batch, without the task group of a StreamingResponse.

After the first byte nothing is a clean end but what the log says: trouble is `closed`, and the client comes back.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import structlog

from broker.bus.errors import BusError
from broker.bus.frames import json_decode
from broker.bus.health import Receive, Send
from broker.node import metrics
from broker.node.events import HEARTBEAT_SSE, Event, body_of, log_unavailable
from broker.node.pipe import LiveSink, Pipe
from broker.node.subscriber import Subscriber

log = structlog.get_logger("node")

RETRY_MS = 1000  # what EventSource waits before it comes back

Headers = list[tuple[bytes, bytes]]

STREAM_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
    (b"x-content-type-options", b"nosniff"),
]

_events_sent = metrics.events_sent.labels("sse")


async def stream(
    subscriber: Subscriber, receive: Receive, send: Send, headers: Headers, pipe: Pipe | None = None
) -> None:
    """Write the subscriber's batches until it ends or the client has gone.

    uvicorn's `send` silently does nothing after the client has left, so somebody has to listen for that.
    """
    listener = asyncio.create_task(_gone(subscriber, receive), name="sse-listener")
    begun = False
    loop = asyncio.get_running_loop()
    try:
        try:
            async with aclosing(subscriber.events()) as batches:
                async for batch in batches:
                    if not begun:
                        await begin(send, headers)
                        begun = True
                        subscriber.sink = LiveSink(subscriber, pipe, _events_sent) if pipe is not None else None
                    body = body_of(batch) if batch else HEARTBEAT_SSE
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                    subscriber.sent_at = loop.time()
                    _events_sent.inc(len(batch))
        except BusError as error:
            log.warning("node.stream_put_off", sid=subscriber.sid, error=repr(error))
            subscriber.end_reason = "log_unavailable"
            if not begun:
                await refuse(send, headers, log_unavailable())
                return
            await send({"type": "http.response.body", "body": log_unavailable().sse, "more_body": True})
        if begun:
            await send({"type": "http.response.body", "body": b""})
    finally:
        subscriber.sink = None  # the two would keep each other until the garbage collector looks
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)


async def _gone(subscriber: Subscriber, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    subscriber.end("client_gone")


async def begin(send: Send, headers: Headers) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [*STREAM_HEADERS, *headers]})
    await send({"type": "http.response.body", "body": b"retry: %d\n" % RETRY_MS, "more_body": True})


async def refuse(send: Send, headers: Headers, event: Event) -> None:
    """A temporary refusal of a stream: 200, `retry:`, `closed`. Any other status would end EventSource for good."""
    await send({"type": "http.response.start", "status": 200, "headers": [*STREAM_HEADERS, *headers]})
    wait = _retry_ms(event)
    await send({"type": "http.response.body", "body": b"retry: %d\n" % wait + event.sse})


def _retry_ms(event: Event) -> int:
    data: dict[str, Any] = json_decode(event.data)
    return int(data.get("retry_after_ms", RETRY_MS))
