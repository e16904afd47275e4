"""HTTP/1.1 as a viewer needs it, over a plain socket: one request a connection, its body in pieces.

Lean, because hundreds of viewers share two cores with what they watch; and bare, so that a fault run can reset a
connection, stop reading it, and see how exactly it ended.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from typing import Any, NamedTuple
from urllib.parse import urlsplit

CALL_TIMEOUT = 20.0
BODY_BUFFER = 64 * 1024


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.body)
        return parsed


class Connection:
    """One request and its response. `headers` have lower-case names."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.status = 0
        self.headers: dict[str, str] = {}

    @classmethod
    async def open(
        cls,
        url: str,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes = b"",
        tls: ssl.SSLContext | None = None,
        receive_buffer: int = 0,
    ) -> Connection:
        """Raises OSError where nobody answers. The caller has the deadline.

        `receive_buffer`: bytes that the kernel keeps for a reader that does not read; 0 leaves it to the kernel.
        """
        parts = urlsplit(url)
        limit = receive_buffer or BODY_BUFFER
        if receive_buffer:
            raw = socket.socket(socket.AF_INET)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            raw.setblocking(False)
            await asyncio.get_running_loop().sock_connect(raw, (parts.hostname, parts.port))
            reader, writer = await asyncio.open_connection(sock=raw, limit=limit)
        else:
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=tls, limit=limit)
        connection = cls(reader, writer)
        sized = {"content-length": str(len(body))} if body or method == "POST" else {}
        fields = {"host": parts.netloc, **headers, **sized}
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        writer.write(head.encode() + b"\r\n" + body)
        try:
            await connection._read_head()
        except BaseException:
            connection.close()
            raise
        return connection

    async def _read_head(self) -> None:
        line = await self._reader.readline()
        if not line:
            raise ConnectionResetError("no answer")
        self.status = int(line.split()[1])
        while (line := await self._reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            self.headers[name.lower()] = value.strip()

    async def chunk(self) -> bytes:
        """The next piece of a chunked body; b"" at its proper end. Raises ConnectionError where it is cut off."""
        if self.headers.get("transfer-encoding") != "chunked":
            raise ConnectionResetError("a stream is chunked")
        line = await self._reader.readline()
        if not line:
            raise ConnectionResetError("the body was cut off")
        data = await self._reader.readexactly(int(line, 16) + 2)
        return data[:-2]

    async def body(self) -> bytes:
        if "content-length" in self.headers:
            return await self._reader.readexactly(int(self.headers["content-length"]))
        parts = []
        if self.headers.get("transfer-encoding") == "chunked":
            while part := await self.chunk():
                parts.append(part)
        return b"".join(parts)

    def close(self) -> None:
        self._writer.close()

    def reset(self) -> None:
        reset(self._writer)


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection by RST: the other side sees one that broke, not one that ended."""
    raw = writer.get_extra_info("socket")
    if raw is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def call(
    url: str,
    method: str,
    path: str,
    token: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """One request with a credential, whole. Raises OSError (also TimeoutError, after 20 s) and IncompleteReadError."""
    fields = {
        "authorization": f"Bearer {token}",
        "content-type": "application/json",
        "connection": "close",
        **(headers or {}),
    }
    payload = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
    async with asyncio.timeout(CALL_TIMEOUT):
        connection = await Connection.open(url, method, path, fields, payload, tls)
        try:
            return Answer(connection.status, connection.headers, await connection.body())
        finally:
            connection.close()
