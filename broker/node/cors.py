"""CORS for the origins that settings allow. Pure but for the `send` it wraps."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from broker.bus import cors
from broker.bus.health import Send
from broker.node.access import Access, Caller

ALLOW_HEADERS = b"Authorization, Content-Type, Idempotency-Key, Last-Event-ID"
ALLOW_METHODS = b"GET, POST, PATCH, DELETE, OPTIONS"


class Cors:
    """Which answers another origin's page may read."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def is_preflight(self, caller: Caller) -> bool:
        return "origin" in caller.headers and "access-control-request-method" in caller.headers

    def answering(self, caller: Caller, send: Send) -> Send:
        """`send` with the headers for this caller's origin; `send` itself where it has none that is allowed."""
        origin = caller.headers.get("origin", "")
        if not origin or not self._access.allowed(origin):
            return send
        headers = cors.readable(origin.encode())

        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *headers]}
            await send(message)

        return sending

    async def preflight(self, send: Send) -> None:
        headers = [
            (b"access-control-allow-methods", ALLOW_METHODS),
            (b"access-control-allow-headers", ALLOW_HEADERS),
            (b"access-control-max-age", b"600"),
        ]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})
