"""Every error that crosses a boundary of the system, in one tree.

    OkomeError
    ├── Refusal                 a request is answered "no": HTTP status, code and field of the public API
    ├── BusError
    │   ├── BusUnavailable      no answer within the deadline, no responder, or not connected: nothing is known
    │   ├── WrongLastSequence   the fence: the subject's last sequence is not the expected one
    │   ├── StoreRejected       the stream answered with any other error (full, sealed, bad request)
    │   └── BucketConflict      a compare-and-set lost, or a create found the key present
    ├── FrameMalformed          bytes that are not a frame of a version that we know
    ├── ChainBroken             a frame that does not follow the one before it
    ├── CursorInvalid           text that is not a cursor
    ├── CredentialInvalid       a token, ticket or signature that is not to be believed
    └── SettingsInvalid         one or more settings are wrong; all of them are named

An error carries data, not prose to be parsed; its cause is chained. "Not found" and "not yet" are values, not errors.
"""

from __future__ import annotations

from math import ceil
from typing import Any


class OkomeError(Exception):
    """Root of the tree."""


# The public table of api.md: code -> HTTP status.
STATUS = {
    "malformed": 400,
    "unauthenticated": 401,
    "token_expired": 401,
    "token_revoked": 401,
    "forbidden": 403,
    "unknown_session": 404,
    "unknown_generation": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "generation_running": 409,
    "idempotency_mismatch": 409,
    "too_large": 413,
    "unknown_model": 422,
    "unsupported": 422,
    "context_length_exceeded": 422,
    "rate_limited": 429,
    "internal": 500,
    "overloaded": 503,
    "unavailable": 503,
}


class Refusal(OkomeError):
    """A request that is answered "no", in the words of the public API.

    `retry_after` is in seconds and accompanies 429 and 503 only. `status`: where HTTP has a better one than the code's
    own (408, 426, 431).
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.status = status or STATUS.get(code, 500)  # another version's code is passed on as it is

    def answer(self, request_id: str) -> dict[str, Any]:
        """The body of an HTTP answer: api.md's one shape of an error, whoever finds it."""
        error: dict[str, Any] = {"code": self.code, "message": self.message, "request_id": request_id}
        if self.param:
            error["param"] = self.param
        return {"error": error}

    @property
    def retry_after_header(self) -> str | None:
        """Whole seconds for `Retry-After`, at least 1; None where it is not said."""
        return None if self.retry_after is None else str(max(1, ceil(self.retry_after)))


class BusError(OkomeError):
    """Something between this process and NATS."""


class BusUnavailable(BusError):
    """No answer, no responder or no connection. Whether the request took effect is unknown."""


class WrongLastSequence(BusError):
    """The store refused a fenced publish (err_code 10071, or 10164 while another one is being proposed).

    `last` is the subject's last sequence as the server told it, None where it did not (10164).
    """

    def __init__(self, last: int | None) -> None:
        super().__init__(f"wrong last sequence: {last}")
        self.last = last


class StoreRejected(BusError):
    """Any other error answer of JetStream; `err_code` is the server's number (10077: the stream is full)."""

    def __init__(self, err_code: int, description: str) -> None:
        super().__init__(f"{err_code}: {description}")
        self.err_code = err_code
        self.description = description


class BucketConflict(BusError):
    """Somebody else changed the key first."""

    def __init__(self, bucket: str, key: str) -> None:
        super().__init__(f"{bucket}/{key} changed meanwhile")
        self.bucket = bucket
        self.key = key


class FrameMalformed(OkomeError):
    """Bytes in a session log that are not a frame of a version that we know."""


class ChainBroken(OkomeError):
    """A frame that does not follow the one before it: a hole, a repeat, a stale epoch or something after the end."""


class CursorInvalid(OkomeError):
    """Text that is not `<incarnation>-<sequence>`."""


class CredentialInvalid(OkomeError):
    """A credential that is not to be believed; `code` is one of the 401/403 codes of the public API."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class SettingsInvalid(OkomeError):
    """All mistakes in a role's settings at once: `problems` maps the environment variable to what is wrong."""

    def __init__(self, problems: dict[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {why}" for name, why in problems.items()))
        self.problems = problems
