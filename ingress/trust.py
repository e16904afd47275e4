"""The ingress's word to a node about a request: who asks, and how it came. Signed under KV `keys/internal`.

Without the key (OKOME has not made it yet) nothing is said: the node then treats the request as if it had come to it
directly, which grants less, never more.
"""

from __future__ import annotations

from typing import Any

from broker.bus import credentials
from broker.bus.clock import now_ms
from ingress.headers import RELAY, Field
from ingress.request import Request

INTERNAL_KEY = "internal"


class Trust:
    def __init__(self, ingress: str) -> None:
        self._ingress = ingress
        self._key = b""

    def learn(self, key: str, value: bytes | None) -> None:
        """A change in bucket `keys`; all but the internal key are ignored."""
        if key == INTERNAL_KEY and value is not None:
            self._key = credentials.internal_key(value)

    def word(self, request: Request, clock_ahead: int) -> list[Field]:
        """The relay header; made anew for every leg, since a node believes it for 30 s only.

        `clock_ahead`: ms that the node's clock is ahead of ours. The word is dated by the clock that will judge it.
        """
        return self._said({"proto": request.proto, "loopback": request.loopback, "ip": request.ip}, clock_ahead)

    def greeting(self, clock_ahead: int) -> list[Field]:
        """The same for a connection of the ingress's own, which is for nobody's request yet."""
        return self._said({"proto": "http", "loopback": False, "ip": ""}, clock_ahead)

    def _said(self, what: dict[str, Any], clock_ahead: int) -> list[Field]:
        if not self._key:
            return []
        said = {"ingress": self._ingress, **what, "t": now_ms() + clock_ahead}
        return [(RELAY, credentials.seal(self._key, said, purpose=credentials.RELAY).encode())]
