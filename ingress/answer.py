"""What the ingress itself answers, as bytes: errors, refused streams, chunks. Pure.

An error has api.md's shape, whoever finds it. A temporary refusal of an event stream is 200 + `retry:` + `closed`,
because EventSource gives up for good on any other status.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from broker.bus import cors
from broker.bus.errors import Refusal
from ingress.headers import REQUEST_ID, Field, value

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"

EVENT_STREAM: list[Field] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]


def chunk(data: bytes) -> bytes:
    """`data`, which is not empty, as one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def head(status: int, fields: Sequence[Field]) -> bytes:
    """Status line and header fields, with the empty line."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    lines = [f"HTTP/1.1 {status} {phrase}".encode()]
    lines += [b"%b: %b" % field for field in fields]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def whole(status: int, fields: Sequence[Field], body: bytes, *, keep_alive: bool, bodiless: bool = False) -> bytes:
    """A complete response. `bodiless`: the answer to a HEAD, which tells the length only."""
    framing: list[Field] = [(b"content-length", b"%d" % len(body))]
    if not keep_alive:
        framing.append((b"connection", b"close"))
    return head(status, [*fields, *framing]) + (b"" if bodiless else body)


def refused(refusal: Refusal, request_id: str, *, allow: bytes = b"") -> tuple[int, list[Field], bytes]:
    """(status, fields, body) of a refusal; `allow`: the methods that would not have been refused."""
    fields: list[Field] = [
        (b"content-type", b"application/json"),
        (b"cache-control", b"no-store"),
        (REQUEST_ID, request_id.encode()),
    ]
    if (wait := refusal.retry_after_header) is not None:
        fields.append((b"retry-after", wait.encode()))
    if allow:
        fields.append((b"allow", allow))
    return refusal.status, fields, json.dumps(refusal.answer(request_id), separators=(",", ":")).encode()


def readable(fields: Sequence[Field], origins: frozenset[str]) -> list[Field]:
    """CORS: so that a page of an allowed origin can read what is answered here to a request with these fields."""
    origin = value(fields, b"origin")
    if not origin or origin.decode("latin-1").rstrip("/") not in origins:
        return []
    return cors.readable(origin)


def closed_event(code: str, message: str, retry_after: float | None = None) -> bytes:
    """The event `closed`; with `retry_after` (seconds) also the `retry:` that EventSource obeys."""
    data: dict[str, Any] = {"code": code, "message": message}
    retry = ""
    if retry_after is not None:
        data["retry_after_ms"] = int(retry_after * 1000)
        retry = f"retry: {int(retry_after * 1000)}\n"
    return f"{retry}event: closed\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def served_by(node: str, ingress: str) -> bytes:
    return f'event: served_by\ndata: {{"node":"{node}","ingress":"{ingress}"}}\n\n'.encode()


def reconnect(cursor: bytes, after_ms: int) -> bytes:
    return b'event: reconnect\ndata: {"cursor":"%b","after_ms":%d}\n\n' % (cursor, after_ms)
