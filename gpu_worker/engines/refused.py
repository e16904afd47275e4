"""What a server says that does not give what it was asked for: a status and, in body or fields, the reason. Pure.

Servers put the reason where they like. What it means to whoever asked is in `refusal.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import msgspec

DIGITS = 9
"""Of seconds that are worth reading."""


class Refused(Exception):
    """A status other than 200. `kind`, `code` and `message` are the server's own; `retry_after`: seconds in which it
    does not want to be asked again.
    """

    def __init__(self, status: int, kind: str, message: str, code: str = "", retry_after: float = 0.0) -> None:
        super().__init__(f"{status} {kind}: {message}")
        self.status = status
        self.kind = kind
        self.code = code
        self.message = message
        self.retry_after = retry_after


class _ErrorBody(msgspec.Struct):
    type: str | None = None
    message: str | None = None
    code: str | int | None = None


class _ErrorAnswer(msgspec.Struct):
    """`detail` is FastAPI's."""

    error: _ErrorBody | str | None = None
    message: str | None = None
    detail: str | None = None


_error = msgspec.json.Decoder(_ErrorAnswer)


def read(status: int, headers: Mapping[bytes, bytes], body: bytes) -> Refused:
    """What an answer with such a status says. `headers`: names in lower case."""
    elsewhere = headers.get(b"location")
    if elsewhere is not None and status < 400:  # where a key is not sent after it
        return Refused(status, "", f"it is at {elsewhere.decode(errors='replace')}")
    after = _retry_after(headers.get(b"retry-after", b""))
    try:
        told = _error.decode(body)
    except (ValueError, RecursionError):  # no JSON, or another
        return Refused(status, "", "no reason given", retry_after=after)
    otherwise = told.message or told.detail or "no reason given"
    match told.error:
        case _ErrorBody(type=kind, message=message, code=code):
            return Refused(status, kind or "", message or otherwise, str(code or ""), after)
        case _:
            return Refused(status, "", told.error or otherwise, retry_after=after)


def _retry_after(value: bytes) -> float:
    """Seconds from now on (RFC 9110); 0 where it says none."""
    text = value.decode("ascii", "replace").strip()
    if text.isdecimal() and len(text) <= DIGITS:
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return 0.0
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
