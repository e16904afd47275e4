"""The names of bucket `revoked`: of sessions that were deleted, tokens and API keys. What bears one is void.

Every node keeps all of them for two days, so they are kept as what is asked of them: a sorted array of 64-bit hashes
for every few hours. A name costs 8 bytes, where a dictionary of names took 150; that a name which nobody revoked is
taken for one of a million that are is as likely as 1 in 10^13.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left

import msgspec

from broker.bus import clock
from broker.bus.credentials import REVOKED_FOR, Claims
from broker.bus.records import Revocation

SPAN = 4 * 3600
"""Seconds of one array, which is forgotten as a whole: by so much later than the bucket forgets. The names of sessions,
tokens and API keys are never given again, so nobody is refused by that."""
_MASK = 2**64 - 1


class Revocations:
    """The entries of bucket `revoked`, kept by whoever watches it. What has no entry is not revoked.

    No times are compared: the names of sessions, tokens and API keys are never given again, so whatever bears a revoked
    one is void, also what a clock that runs ahead says was issued later.
    """

    def __init__(self) -> None:
        self._spans: dict[int, array[int]] = {}  # by when they were revoked, in SPANs since the epoch

    def __len__(self) -> int:
        self._forget()
        return sum(map(len, self._spans.values()))

    def take(self, key: str, value: bytes | None) -> None:
        """Entry `key` changed or went away."""
        name = hash(key) & _MASK
        for span in self._spans.values():
            if (at := _find(span, name)) >= 0:
                del span[at]
        if value is None:
            return
        try:
            t = msgspec.json.decode(value, type=Revocation).t
        except (msgspec.DecodeError, UnicodeDecodeError):
            t = clock.now_ms()  # somebody meant to revoke: believe the key
        span = self._spans.setdefault(t // (SPAN * 1000), array("Q"))
        span.insert(bisect_left(span, name), name)
        self._forget()

    def revoked(self, claims: Claims) -> bool:
        """Whether this token, its session or the API key behind it was revoked."""
        self._forget()
        names = [hash(name) & _MASK for name in (f"jti.{claims.jti}", f"sid.{claims.sid}", f"key.{claims.subject}")]
        return any(_find(span, name) >= 0 for span in self._spans.values() for name in names)

    def _forget(self) -> None:
        """The bucket forgets without saying so."""
        oldest = int(clock.now() - REVOKED_FOR) // SPAN
        for span in [span for span in self._spans if span < oldest]:
            del self._spans[span]


def _find(span: array[int], name: int) -> int:
    """Where it is, or -1."""
    at = bisect_left(span, name)
    return at if at < len(span) and span[at] == name else -1
