"""An answer's bytes as HTTP/1.1 brings them (RFC 9112): its head, and then its body without the lines between chunks.

A relay that has much to say fills its buffers, and begins a chunk wherever one is full: in the middle of a token.
"""

from __future__ import annotations

import re

HEAD_END = b"\r\n\r\n"
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r]*\bchunked\b", re.IGNORECASE)
_CRLF = b"\r\n"


class Body:
    """`head` is empty until it is whole. `take` is called for every read of a load: as few steps as can be."""

    def __init__(self) -> None:
        self.head = b""
        self._chunked = False
        self._left = 0  # bytes of the chunk that has begun, with the two that end its last line
        self._rest = b""  # of a head, or of the line before a chunk

    def take(self, data: bytes) -> bytes:
        """What these bytes add to the body. Raises ValueError where a chunk does not say its size."""
        if not self.head:
            data = self._begin(data)
        if not self._chunked:
            return data
        at, body = self._left, b""
        if at:
            body = data[: max(0, at - 2)]
        elif self._rest:
            data = self._rest + data
        while at < len(data):
            line_end = data.find(_CRLF, at)
            if line_end < 0:
                self._left, self._rest = 0, data[at:]
                return body
            begin = line_end + 2
            at = begin + int(data[at:line_end].partition(b";")[0], 16) + 2
            body += data[begin : at - 2]
        self._left, self._rest = at - len(data), b""
        return body

    def _begin(self, data: bytes) -> bytes:
        """Take the head; what is behind it."""
        head, end, behind = (self._rest + data).partition(HEAD_END)
        self.head, self._rest = (head + end, b"") if end else (b"", head)
        self._chunked = bool(end and _CHUNKED.search(head))
        return behind
