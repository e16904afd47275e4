"""The sockets of an ingress, its client connections, their deadlines, and the memory that their bodies may take.

Two ports: its own, and one that all ingresses of a machine share (SO_REUSEPORT: the kernel spreads the connections).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable

import structlog

from broker.bus.errors import Refusal
from broker.bus.garbage import Turnover
from ingress.client import ClientConnection, Phase
from ingress.headers import is_loopback, networks
from ingress.metrics import Metrics
from ingress.request import Request
from ingress.settings import IngressSettings
from ingress.tls import server_context

log = structlog.get_logger("ingress.listener")

SWEEP = 1.0
BACKLOG = 1024

Handler = Callable[[Request, ClientConnection], Awaitable[None]]


class Listener:
    """`open`, `stop_accepting`, `close`. `handler` answers one request; it is run as a task of this listener."""

    def __init__(self, settings: IngressSettings, metrics: Metrics, handler: Handler) -> None:
        self.settings = settings
        self.trusted = networks(settings.trusted_proxies)
        self.draining = False
        self.port = 0
        self.shared_port = 0
        self._turnover = Turnover()
        self._metrics = metrics
        self._handler = handler
        self._servers: list[asyncio.Server] = []
        self._connections: set[ClientConnection] = set()
        self._held = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Bind and listen; raises OSError where a port is busy or not ours to use."""
        settings = self.settings
        context = None
        if settings.tls_cert is not None and settings.tls_key is not None:
            context = server_context(settings.tls_cert, settings.tls_key)
        self.port = await self._listen(settings.host, settings.port, context, shared=False)
        if settings.shared_port >= 0:
            host = settings.shared_host or settings.host
            self.shared_port = await self._listen(host, settings.shared_port, context, shared=True)
        self._sweeper = asyncio.create_task(self._sweep(), name="listener-sweep")

    async def _listen(self, host: str, port: int, context: ssl.SSLContext | None, *, shared: bool) -> int:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            try:
                sock.bind(address)
            except OSError as error:
                raise OSError(error.errno, f"{host}:{port}: {error.strerror}") from error
            sock.setblocking(False)
            loopback = is_loopback(sock.getsockname()[0])
            server = await loop.create_server(
                lambda: ClientConnection(self, tls=context is not None, loopback=loopback),
                sock=sock,
                ssl=context,
                ssl_handshake_timeout=self.settings.header_timeout if context else None,
                backlog=BACKLOG,
            )
        except BaseException:
            sock.close()
            raise
        self._servers.append(server)
        bound: int = sock.getsockname()[1]
        return bound

    # -- what connections tell ---------------------------------------------------------------------------------------

    def took(self, connection: ClientConnection) -> bool:
        """Whether there is room for this one. It is kept either way, until it is lost."""
        self._connections.add(connection)
        self._metrics.connections.set(len(self._connections))
        return len(self._connections) <= self.settings.max_connections

    def lost(self, connection: ClientConnection) -> None:
        self._connections.discard(connection)
        self._metrics.connections.set(len(self._connections))
        self._turnover.ended(len(self._connections))

    def hold(self, size: int) -> bool:
        """Whether there is room for so many more bytes of a body, which are then held until they are let go."""
        if self._held + size > self.settings.body_memory:
            return False
        self._held += size
        self._metrics.bodies.set(self._held)
        return True

    def let_go(self, size: int) -> None:
        if size:
            self._held -= size
            self._metrics.bodies.set(self._held)

    def handle(self, request: Request, connection: ClientConnection) -> asyncio.Task[None]:
        task = asyncio.ensure_future(self._handle(request, connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _handle(self, request: Request, connection: ClientConnection) -> None:
        try:
            await self._handler(request, connection)
        except Exception as error:  # the safety net of one request: it is broken off, the others go on
            log.error("request.failed", path=request.path, request_id=request.id, exc_info=error)
            connection.abort()

    def refused(self, refusal: Refusal, ip: str) -> None:
        self._metrics.refused.labels(refusal.code).inc()
        log.info("request.refused", code=refusal.code, status=refusal.status, why=refusal.message, ip=ip)

    # -- time and end --------------------------------------------------------------------------------------------------

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        interval = min(
            SWEEP, self.settings.header_timeout / 4, self.settings.body_timeout / 4, self.settings.idle_timeout / 4
        )
        while True:
            await asyncio.sleep(interval)
            now = loop.time()
            for connection in [c for c in self._connections if c.deadline < now]:
                connection.expire()

    def stop_accepting(self) -> None:
        """No new connections; those that are idle are closed, the others after their answer."""
        self.draining = True
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            if connection.phase is Phase.IDLE:
                connection.close()

    async def finish(self, deadline: float) -> int:
        """Wait for the requests under way until `deadline` (loop time); returns how many are left."""
        try:
            async with asyncio.timeout_at(deadline):
                if self._tasks:
                    await asyncio.wait(set(self._tasks))
                for connection in list(self._connections):
                    await connection.flushed()  # the last words of a stream, to a client that reads slowly
        except TimeoutError:
            log.warning("listener.drain_timed_out", requests=len(self._tasks))
        return len(self._tasks)

    async def close(self) -> None:
        """Idempotent: break off whatever is left."""
        self.stop_accepting()
        if self._sweeper is not None:
            self._sweeper.cancel()
        tasks = [*self._tasks, *([self._sweeper] if self._sweeper else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        connections = list(self._connections)
        for connection in connections:
            connection.abort()
        for connection in connections:
            await connection.gone.wait()
        for server in self._servers:
            await server.wait_closed()
        self._servers.clear()
