"""The small HTTP face that every role has: /livez /readyz /metrics /version. ASGI, served by uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, Gauge, generate_latest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from broker.bus.version import VERSION

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


SEND_BUFFER = 64 * 1024  # bytes, which the kernel doubles
HEAD_TIMEOUT = 10.0  # seconds that a request's head may take
NATS = "nats"  # what a role is not ready because of that does not hear NATS
STORE = "store"  # and because of that NATS stores nothing of what it sends

_TASKS = Gauge("okome_tasks", "asyncio tasks that have not ended, that of the question included")
_BLOCKS = Gauge("okome_python_blocks", "Blocks of memory that Python's objects hold, of up to 512 bytes each")


class Health:
    """What a role says of itself. `reasons` is empty when it is ready; alive as long as it answers."""

    def __init__(self, role: str, id: str) -> None:
        self.role = role
        self.id = id
        self.reasons: dict[str, str] = {"starting": "not started yet"}  # what -> why
        self.looks: dict[str, Callable[[], str | None]] = {}  # what -> why not, found out whenever somebody asks
        self.extra: Callable[[], dict[str, Any]] = dict  # more fields for /version

    @property
    def ready(self) -> bool:
        for what, look in self.looks.items():
            self.set(what, look())
        return not self.reasons

    def set(self, what: str, why: str | None) -> None:
        """Say why this role is not ready because of `what`, or None: that is well again."""
        if why is None:
            self.reasons.pop(what, None)
        else:
            self.reasons[what] = why

    def answer(self, path: str) -> tuple[int, str, bytes] | None:
        """Status, content type and body of one of the four paths; None for any other. Call it on the loop."""
        match path:
            case "/livez":
                return 200, "text/plain", b"ok\n"
            case "/readyz":
                if self.ready:
                    return 200, "text/plain", b"ok\n"
                return 503, "text/plain", "".join(f"{what}: {why}\n" for what, why in self.reasons.items()).encode()
            case "/metrics":
                _TASKS.set(len(asyncio.all_tasks()))
                _BLOCKS.set(sys.getallocatedblocks())
                return 200, CONTENT_TYPE_LATEST, generate_latest()
            case "/version":
                body = json.dumps({"role": self.role, "id": self.id, "version": VERSION, **self.extra()})
                return 200, "application/json", body.encode()
        return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As an ASGI application of its own, for roles that serve nothing else."""
        if scope["type"] != "http":
            return
        found = self.answer(scope["path"]) or (404, "text/plain", b"not found\n")
        await respond(send, *found)


def reasons_in(body: bytes) -> frozenset[str]:
    """Because of what a role is not ready, of its answer to /readyz."""
    return frozenset(line.partition(b":")[0].decode("latin-1") for line in body.splitlines() if b":" in line)


async def respond(send: Send, status: int, content_type: str, body: bytes, *more: tuple[bytes, bytes]) -> None:
    """A whole answer, which is of this moment; `more` are further header fields."""
    headers = [
        (b"content-type", content_type.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *more,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling: the role's lifecycle has that."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


class _Protocol(HttpToolsProtocol):
    """uvicorn's, which waits for ever for the end of a request's head, and takes trailers for header fields, among
    them who asks."""

    _whole = False  # the head is
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._whole = False
        self._expect_head()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._whole:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._whole = True
        self._expect_nothing()
        super().on_headers_complete()

    def _expect_head(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(HEAD_TIMEOUT, self._give_up)

    def _give_up(self) -> None:
        self._late = None
        if self.cycle is None or self.cycle.response_complete:  # else a stream runs, and what comes behind it can wait
            self.transport.close()

    def _expect_nothing(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


@contextlib.asynccontextmanager
async def serve(
    app: App, host: str, port: int, *, shared: tuple[str, int] | None = None, **options: Any
) -> AsyncIterator[int]:
    """Serve `app` and yield the port; a busy port is OSError.

    shared: an address that other processes of this machine listen at too, and the kernel deals connections to them.
    Leaving closes the listeners, gives open requests `timeout_graceful_shutdown` (1 s) and ends them.
    """
    listeners = [_listener(host, port)]
    try:
        if shared is not None:
            listeners.append(_listener(*shared, shared=True))
    except OSError:
        listeners[0].close()
        raise
    defaults: dict[str, Any] = {
        "http": _Protocol,
        "log_config": None,
        "access_log": False,  # it would log query strings
        "lifespan": "off",
        "server_header": False,
        "timeout_graceful_shutdown": 1,
    }
    server = _Server(uvicorn.Config(app, **(defaults | options)))
    task = asyncio.create_task(server.serve(sockets=listeners), name="http")
    try:
        while not server.started:  # uvicorn has no event for it; bounded by its own start, which fails or is quick
            if task.done():
                await task
                raise OSError("the HTTP server ended at once")
            await asyncio.sleep(0.005)
        yield listeners[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task
        for listener in listeners:
            listener.close()


def _listener(host: str, port: int, *, shared: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=1024, reuse_port=shared)
    listener.setblocking(False)
    # Inherited by every connection: else a reader that stops reading fills up to 4 MB of kernel memory (tcp_wmem).
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    return listener
