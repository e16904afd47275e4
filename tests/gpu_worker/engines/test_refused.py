"""What an answer says that is none, wherever a server puts it."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from gpu_worker.engines.refused import read


@pytest.mark.parametrize(
    ("status", "headers", "body", "said"),
    [
        (429, {}, b'{"error": {"type": "t", "message": "m", "code": 7}}', ("t", "m", "7")),
        (400, {}, b'{"error": "who are you"}', ("", "who are you", "")),
        (400, {}, b'{"message": "m"}', ("", "m", "")),
        (422, {}, b'{"detail": "d"}', ("", "d", "")),
        (500, {}, b"<html>", ("", "no reason given", "")),
        (500, {}, b"[" * 100_000, ("", "no reason given", "")),
        (302, {b"location": b"https://elsewhere"}, b"", ("", "it is at https://elsewhere", "")),
    ],
)
def test_the_reason_is_found(status: int, headers: dict[bytes, bytes], body: bytes, said: tuple[str, str, str]) -> None:
    error = read(status, headers, body)
    assert (error.status, error.kind, error.message, error.code) == (status, *said)
    assert error.retry_after == 0


@pytest.mark.parametrize("body", [b'{"error": {"message": "m"}}', b'{"error": "m"}', b"m"])
@pytest.mark.parametrize(
    ("field", "seconds"),
    [
        ("20", 20.0),
        (" 0 ", 0.0),
        ("-5", 0.0),
        ("soon", 0.0),
        ("Mon, 01 Jan 2024 00:00:00 +99999999999999", 0.0),
        ("", 0.0),
        ("9" * 400, 0.0),
        ("²", 0.0),
        ("\xff", 0.0),
    ],
)
def test_it_says_when_to_come_back_in_seconds(body: bytes, field: str, seconds: float) -> None:
    assert read(429, {b"retry-after": field.encode("latin-1")}, body).retry_after == seconds


def test_it_says_when_to_come_back_as_a_date() -> None:
    def said(moment: datetime) -> float:
        return read(503, {b"retry-after": format_datetime(moment, usegmt=True).encode()}, b"").retry_after

    now = datetime.now(UTC)
    assert 50 < said(now + timedelta(seconds=60)) <= 60
    assert said(now - timedelta(seconds=60)) == 0
