"""A viewer as the outside sees the system: HTTP over a plain socket, SSE, and a transcript that is checked by itself.

Lean, because two hundred of them share two cores with what they test. It reconnects with its cursor like EventSource.
"""

import asyncio
import json
import ssl
from typing import Any, NamedTuple
from urllib.parse import urlsplit

TERMINALS = {"done", "failed", "cancelled", "expired"}
UNSTORED = {"hello", "served_by", "queued", "caught_up", "reset", "reconnect", "closed"}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.body)
        return parsed


class Event(NamedTuple):
    name: str
    id: str
    data: str


class Connection:
    """One HTTP/1.1 request and its response on a connection of its own."""

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
    ) -> "Connection":
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=tls, limit=2**20)
        connection = cls(reader, writer)
        fields = {
            "host": parts.netloc,
            **headers,
            **({"content-length": str(len(body))} if body or method == "POST" else {}),
        }
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
        """The next piece of the body; b"" at its proper end. Raises ConnectionError where it is cut off."""
        if self.headers.get("transfer-encoding") == "chunked":
            line = await self._reader.readline()
            if not line:
                raise ConnectionResetError("the body was cut off")
            size = int(line, 16)
            data = await self._reader.readexactly(size + 2)
            return data[:-2]
        raise ValueError("a stream is chunked")

    async def body(self) -> bytes:
        if "content-length" in self.headers:
            return await self._reader.readexactly(int(self.headers["content-length"]))
        if self.headers.get("transfer-encoding") == "chunked":
            parts = []
            while part := await self.chunk():
                parts.append(part)
            return b"".join(parts)
        return b""

    def close(self) -> None:
        self._writer.close()


async def call(
    url: str,
    method: str,
    path: str,
    token: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """One request with a credential, whole."""
    fields = {
        "authorization": f"Bearer {token}",
        "content-type": "application/json",
        "connection": "close",
        **(headers or {}),
    }
    payload = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
    async with asyncio.timeout(20):
        connection = await Connection.open(url, method, path, fields, payload, tls)
        try:
            return Answer(connection.status, connection.headers, await connection.body())
        finally:
            connection.close()


class Viewer:
    """Watches one session over SSE through whatever happens, and keeps everything that it was told."""

    def __init__(
        self,
        url: str,
        sid: str,
        token: str,
        *,
        after: str = "0",
        ticket: str = "",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`ticket`: shown instead of the token, which opens nothing a second time."""
        self.sid = sid
        self.cursor = ""
        self.events: list[Event] = []
        self.connections = 0
        self.connected = asyncio.Event()  # the first hello has come
        self._first = after
        self._url = url
        self._token = token
        self._ticket = ticket
        self._tls = tls
        self._changed = asyncio.Event()

    async def watch(self, terminals: int = 1) -> None:
        """Until so many generations have ended; reconnects with the cursor. The caller has the deadline."""
        while self.ended < terminals:
            try:
                await self._connect(terminals)
            except (ConnectionError, asyncio.IncompleteReadError, OSError):
                await asyncio.sleep(0.05)  # a client's retry, not a wait for a state

    @property
    def ended(self) -> int:
        return sum(event.name in TERMINALS for event in self.events)

    async def seen(self, stored: int) -> None:
        """Wait until so many stored events have come."""
        while len(self.stored()) < stored:
            self._changed.clear()
            await self._changed.wait()

    def stored(self) -> list[Event]:
        return [event for event in self.events if event.name not in UNSTORED]

    def names(self) -> set[str]:
        return {event.name for event in self.events}

    async def _connect(self, terminals: int) -> None:
        query = "" if self.cursor else f"?after={self._first}" if self._first else ""
        headers = {"accept": "text/event-stream"}
        if self._ticket:
            query += f"{'&' if query else '?'}ticket={self._ticket}"
        else:
            headers["authorization"] = f"Bearer {self._token}"
        if self.cursor:
            headers["last-event-id"] = self.cursor
        connection = await Connection.open(
            self._url, "GET", f"/v1/sessions/{self.sid}/events{query}", headers, tls=self._tls
        )
        try:
            assert connection.status == 200, (connection.status, await connection.body())
            self.connections += 1
            rest = b""
            while self.ended < terminals:
                async with asyncio.timeout(30):  # heartbeats come every 10 s
                    part = await connection.chunk()
                if not part:
                    return
                *blocks, rest = (rest + part).split(b"\n\n")
                for block in blocks:
                    self._take(block.decode())
        finally:
            connection.close()

    def _take(self, block: str) -> None:
        name = id = data = ""
        for line in block.split("\n"):
            if line.startswith("id: "):
                id = line[4:]
            elif line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                data = line[6:]
        if not name:
            return
        self.events.append(Event(name, id, data))
        if id:
            self.cursor = id
        self.connected.set()
        self._changed.set()


def check_transcript(events: list[Event], *, seed: int, tokens: int) -> None:
    """What one scripted generation must have looked like to its viewer, to the byte; raises AssertionError.

    `events`: the stored ones, from `start` to the terminal. No gap, no repeat, no reorder, one terminal, nothing after.
    """
    names = [event.name for event in events]
    assert names[0] == "start", names[:3]
    assert names[-1] == "done", names[-3:]
    assert sum(name in TERMINALS for name in names) == 1
    sequences = [int(event.id.rpartition("-")[2]) for event in events]
    assert sequences == sorted(set(sequences)), "a frame came twice or out of order"
    epochs = [json.loads(event.data)["epoch"] for event in events if event.name in ("start", "attempt")]
    assert epochs == list(range(1, len(epochs) + 1)), epochs
    offset = 0
    text = []
    for event in events:
        data = json.loads(event.data)
        assert data["offset"] == offset, (event, offset)
        if event.name == "token":
            text.append(data["text"])
            offset += data["n"]
    assert offset == tokens
    assert "".join(text) == "".join(f"{seed}.{index} " for index in range(tokens))
