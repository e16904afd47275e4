"""HTTP/1.1 to a llama.cpp listener on this machine: one request, one connection.

Over bare asyncio streams because cancelling must close the socket at once and synchronously: a closed connection is
how llama.cpp learns that nobody wants the answer. Knows nothing of models or of who asks.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import msgspec

MAX_BODY = 64 * 1024 * 1024
"""Bytes of an answer that is not a stream; the longest is the token list of a 1 MiB prompt."""

_LINE_LIMIT = 4 * 1024 * 1024


class Unreachable(Exception):
    """Nobody listens there: nothing was sent, so asking again is safe."""


class Broken(Exception):
    """The connection ended, or said something that is not HTTP, before the answer was whole."""


class Refused(Exception):
    """A status other than 200. `kind` and `message` are llama.cpp's own."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(f"{status} {kind}: {message}")
        self.status = status
        self.kind = kind
        self.message = message


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where one incarnation of the child listens, and the key it asks for."""

    host: str
    port: int
    key: str
    incarnation: int


class _ErrorBody(msgspec.Struct):
    type: str = ""
    message: str = ""


class _ErrorAnswer(msgspec.Struct):
    error: _ErrorBody


_error = msgspec.json.Decoder(_ErrorAnswer)


async def call(endpoint: Endpoint, method: str, path: str, body: object = None) -> bytes:
    """The whole answer. The caller brings the deadline. Raises Unreachable, Broken, Refused."""
    with await ask(endpoint, method, path, body) as answer:
        return await answer.whole()


async def ask(endpoint: Endpoint, method: str, path: str, body: object = None) -> "Answer":
    """Sends the request and reads the status. The caller brings the deadline. Raises Unreachable, Broken, Refused."""
    payload = b"" if body is None else msgspec.json.encode(body)
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {endpoint.host}\r\nAuthorization: Bearer {endpoint.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\nConnection: close\r\n\r\n"
    )
    try:
        reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port, limit=_LINE_LIMIT)
    except OSError as error:
        raise Unreachable(str(error)) from error
    try:
        writer.write(head.encode() + payload)
        status, headers = await _head(reader)
        answer = Answer(reader, writer, headers)
        if status != 200:
            raise _refusal(status, await answer.whole())
    except BaseException:
        writer.transport.abort()
        raise
    return answer


class Answer:
    """An answer whose body is still to come: `with`, then either `whole()` or `event()` until it says None.

    Leaving the block closes the connection at once, which cancels what was asked for wherever that is. Raises Broken
    when the connection ends early.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, headers: dict[bytes, bytes]) -> None:
        self._reader = reader
        self._writer = writer
        self._headers = headers
        self._lines: deque[bytes] = deque()
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.transport.abort()  # no lingering: unread tokens are of no use to anyone

    async def whole(self) -> bytes:
        """The body in one piece."""
        if self._chunked:
            body = bytearray()
            while chunk := await self._chunk():
                body += chunk
                if len(body) > MAX_BODY:
                    raise Broken(f"more than {MAX_BODY} bytes")
            return bytes(body)
        with _broken():
            length = int(self._headers.get(b"content-length", b"0"))
            if length > MAX_BODY:
                raise Broken(f"{length} bytes announced")
            return await self._reader.readexactly(length)

    async def event(self) -> bytes | None:
        """The next payload of a server-sent event stream, None when the server has ended it. An `error:` line counts
        as one.
        """
        while True:
            while self._lines:
                name, _, value = self._lines.popleft().partition(b":")
                # No name is a comment (ping), an empty line the end of an event: both carry nothing.
                if name in (b"data", b"error"):
                    return value.strip()
            if not self._chunked:
                raise Broken("a stream was asked for, a document came")
            chunk = await self._chunk()
            if not chunk:
                return None
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            self._lines.extend(lines)
            if len(self._rest) > _LINE_LIMIT:
                raise Broken("an event without end")

    @property
    def _chunked(self) -> bool:
        return self._headers.get(b"transfer-encoding") == b"chunked"

    async def _chunk(self) -> bytes:
        """The next chunk of the transfer coding, empty at the end."""
        with _broken():
            size = int((await self._reader.readuntil(b"\r\n")).split(b";", 1)[0], 16)
            return (await self._reader.readexactly(size + 2))[:-2]


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[bytes, bytes]]:
    with _broken():
        lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        version, status, *_ = lines[0].split(b" ", 2)
        if not version.startswith(b"HTTP/1."):
            raise Broken("not HTTP")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            headers[name.strip().lower()] = value.strip()
        return int(status), headers


def _refusal(status: int, body: bytes) -> Refused:
    try:
        told = _error.decode(body).error
    except msgspec.DecodeError:
        told = _ErrorBody(message="no reason given")
    return Refused(status, told.type, told.message)


@contextmanager
def _broken() -> Iterator[None]:
    try:
        yield
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
        raise Broken(str(error) or type(error).__name__) from error
