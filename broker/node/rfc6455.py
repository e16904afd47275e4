"""WebSocket frames as a server writes them: whole messages, nothing masked (RFC 6455, section 5.2)."""

from __future__ import annotations

TEXT, BINARY = 1, 2


def frame(opcode: int, data: bytes) -> bytes:
    """One whole message."""
    size = len(data)
    first = 0x80 | opcode
    if size < 126:
        return b"%c%c%b" % (first, size, data)
    if size < 1 << 16:
        return b"%c\x7e%b%b" % (first, size.to_bytes(2, "big"), data)
    return b"%c\x7f%b%b" % (first, size.to_bytes(8, "big"), data)
