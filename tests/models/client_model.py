"""One connection to the model of NATS: what `Bus` asks of nats-py's client, and the two directions of its wire."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

from nats.aio.client import Client

from broker.bus.errors import BusUnavailable
from broker.bus.nats import Bus, Heard, Subscription
from tests.models.log_model import matches
from tests.models.virtual_loop import VirtualLoop

Callback = Callable[[Any], Awaitable[None] | None]


class Server(Protocol):
    """What is at the other end."""

    loop: VirtualLoop

    def sent(self, sent: Sent) -> None: ...
    def arrive(self, sent: Sent) -> None: ...


class Sent(NamedTuple):
    """A message on its way to the server."""

    client: ClientModel
    subject: str
    data: bytes
    reply: str
    headers: dict[str, str] | None


class MessageModel(NamedTuple):
    """One that arrives."""

    subject: str
    reply: str
    data: bytes
    headers: dict[str, str] | None

    def field(self, name: bytes) -> bytes:
        """As `Heard` has it."""
        return (self.headers or {}).get(name.decode(), "").encode()


class ClientModel:
    """What `Bus` asks of nats-py's client; one connection."""

    def __init__(self, server: Server, loop: VirtualLoop) -> None:
        self.is_connected = True
        self.is_closed = False
        self.connected_url = None
        self.max_payload = 1024 * 1024
        self.servers: list[str] = []
        self.bus: Bus | None = None
        self.loop = loop
        self._server = server
        self._pending: list[bytes] = []  # as nats-py names what it has not written
        self._pending_data_size = 0
        self._transport = None
        self._reconnection_task: asyncio.Task[None] | None = None  # a lost connection is joined again at once
        self._listeners: dict[str, Callback] = {}
        self._connection = 0  # what was on its way in an older one is lost
        self._up = Wire(server.loop)  # what has been sent has left this process, frozen or not
        self._down = Wire(loop)

    def publish(self, subject: str, payload: bytes, reply: str, headers: dict[str, str] | None) -> None:
        self._server.sent(Sent(self, subject, payload, reply, headers))

    async def subscribe(self, subject: str, queue: str = "", cb: Callback | None = None) -> SubscriptionModel:
        assert cb is not None
        self.listen(subject, cb)
        return SubscriptionModel(self, subject)

    def listen(self, subject: str, callback: Callback) -> None:
        self._listeners[subject] = callback

    def unlisten(self, subject: str) -> None:
        self._listeners.pop(subject, None)

    async def close(self) -> None:
        self.is_connected, self.is_closed = False, True

    async def force_reconnect(self) -> None:
        self.cut()
        self.join()

    async def _send_ping(self, pong: asyncio.Future[bool]) -> None:
        self.loop.call_soon(lambda: None if pong.done() else pong.set_result(True))

    async def _process_op_err(self, error: Exception) -> None: ...

    # -- what happens to it ------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """The connection is gone, and with it what was under way."""
        if self.is_connected:
            self.is_connected = False
            self._connection += 1
            assert self.bus is not None
            _now(self.bus._on_disconnected())

    def join(self) -> None:
        if not self.is_connected:
            self.is_connected = True
            assert self.bus is not None
            self.loop.call_soon(lambda: _now(self.bus._on_reconnected()))  # type: ignore[union-attr]

    def up(self, latency: float, sent: Sent) -> None:
        self._up.put(latency, partial(self._server.arrive, sent))

    def down(
        self, latency: float, to: str, subject: str, data: bytes, reply: str, headers: dict[str, str] | None
    ) -> None:
        for filter, callback in self._listeners.items():
            if matches(filter, to):
                message = MessageModel(subject, reply, data, headers)
                self._down.put(latency, partial(self._take, self._connection, callback, message))

    def _take(self, connection: int, callback: Callback, message: MessageModel) -> None:
        if connection == self._connection and self.is_connected and (waiting := callback(message)) is not None:
            _now(waiting)


class BusModel(Bus):
    """The real connection, but for its wire: what is published and heard goes through the model of the client."""

    def __init__(self, client: ClientModel, name: str) -> None:
        super().__init__(cast(Client, client), name)
        self._model = client

    def publish_now(self, subject: str, payload: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
        if self._closed or not self._model.is_connected:
            raise BusUnavailable("not connected")
        self._model.publish(subject, payload, reply, headers)

    async def listen(self, subject: str, taker: Callable[[Heard], None]) -> Subscription:
        self._model.listen(subject, taker)
        return cast(Subscription, SubscriptionModel(self._model, subject))


class Wire:
    """One direction of a connection: what is put in comes out in order, each thing not before its time."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._queue: deque[tuple[float, Callable[[], None]]] = deque()

    def put(self, latency: float, deed: Callable[[], None]) -> None:
        if not (latency or self._queue):
            self._loop.call_soon(deed)
            return
        at = max(self._loop.time() + latency, self._queue[-1][0] if self._queue else 0.0)
        self._queue.append((at, deed))
        self._loop.call_at(at, self._next)

    def _next(self) -> None:
        self._queue.popleft()[1]()


class SubscriptionModel:
    _id = 0

    def __init__(self, client: ClientModel, subject: str) -> None:
        self._client = client
        self._subject = subject

    async def unsubscribe(self, limit: int = 0) -> None:
        self._client.unlisten(self._subject)


def _now(work: Awaitable[None]) -> None:
    """Run a coroutine that waits for nothing: what the project gives to nats-py as callbacks."""
    try:
        cast(Any, work).send(None)
    except StopIteration:
        return
    raise AssertionError(f"{work} waited")
