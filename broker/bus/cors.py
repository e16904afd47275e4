"""What a page of another origin may read of an answer, whichever role gives it. Pure."""

from __future__ import annotations

EXPOSED = b"Retry-After, x-okome-session, x-okome-generation, x-request-id"


def origins(listed: str) -> frozenset[str]:
    """Of a setting that names them, separated by commas."""
    return frozenset(part.strip().rstrip("/") for part in listed.split(",") if part.strip())


def readable(origin: bytes) -> list[tuple[bytes, bytes]]:
    """Header fields of an answer to a page of this origin, which is allowed."""
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-allow-credentials", b"true"),
        (b"access-control-expose-headers", EXPOSED),
        (b"vary", b"Origin"),
    ]
