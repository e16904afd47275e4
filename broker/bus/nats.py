"""The connection to NATS: with `wire.py` and `service.py` all that knows nats-py.

What it works around, each with a test (tests/broker/bus/test_nats.py, test_connect.py, test_reconnect.py):
- with no server to connect to it looks for one for ever, and lets nothing else run: it is not asked then;
- it decodes no password of an address, and sends it to no server that it learned of: addresses are given without;
- a frozen peer hangs nats-py's reconnect for minutes when the send buffer is full: a watchdog pings all the time and
  aborts the transport when a ping is not answered in time;
- the late pong of a ping that was given up (`flush` with a timeout) ends nats-py's read loop for good, silently: our
  pings are never cancelled, and a connection on which nothing is read any more is let go like a frozen one;
- the cancel of its reconnecting is lost where it meets the end of an attempt (`asyncio.wait_for` raises that instead),
  which then goes on for ever and the process with it: it is cancelled until it has heard;
- what a transport raises that was closed meanwhile (uvloop: RuntimeError) ends its reconnecting for good: the watchdog
  begins it anew;
- a server cut off from the others answers pings and stores nothing: after a while (`futility.py`) another one is tried;
- `publish_async` never resolves on an error answer: one reply inbox is our own, and every attempt has its own token;
- publishes while disconnected would be buffered and sent later, behind the fence: `pending_size=0` refuses them,
  and what had not been written when the connection broke is thrown away;
- `nats.micro` runs the requests of an endpoint one after another: our handlers run as tasks, bounded (`service.py`);
- a message costs a queue and a task, a publish a coroutine and a task: the hot path goes round both (`wire.py`);
- a permission violation only shows in the error callback: it is logged as what it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec
import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.micro.request import ERROR_CODE_HEADER

from broker.bus.errors import BusUnavailable, Refusal, StoreRejected
from broker.bus.patience import MOST
from broker.bus.replies import API, MANY, PUBLISH, Replies
from broker.bus.service import Handler, Service
from broker.bus.settings import RoleSettings, nats_servers
from broker.bus.storing import Storing
from broker.bus.subjects import operation_subject, random_id
from broker.bus.wire import Heard, Inlet, Outlet
from broker.bus.wire import Message as Msg

__all__ = ["Bus", "Handler", "Heard", "Msg", "Service", "Subscription"]

Answer = TypeVar("Answer")

PING_INTERVAL = 0.25
PING_TIMEOUT = 0.75
CANCEL_INTERVAL = 0.1
READS, LONG_READS = 16, 3
"""Reads of many keys that are under way at once, of at most 1 MiB and of more: a server that has 64 MB for a connection
to read cuts it."""
GONE = (nats.errors.Error, OSError, RuntimeError)  # of a connection: the last is uvloop's word for its transport
NOT_NOW = frozenset({10006, 10008, 10009, 10118})  # API errors of a cluster that starts, has no leader, or is cut

log = structlog.get_logger("bus")


class Bus:
    """One connection, its reply inbox and its watchdog. Made by `connect`, ended by `close`."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self.id = name
        self._inbox = f"_INBOX.{random_id(12)}."
        self._replies = Replies[Heard]()
        self._inlet = Inlet(client)
        self._outlet = Outlet(client)
        client._ps = self._inlet
        self._heard_at = 0.0  # loop time of the last pong
        self._writer: asyncio.StreamWriter | None = None  # of the connection that the last ping went to
        self._watch: asyncio.Task[None] | None = None
        self.on_lame_duck: Callable[[], None] = lambda: None  # called when the server says that it leaves
        self.on_reconnected: set[Callable[[], None]] = set()  # called when another connection stands
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.storing = Storing()
        self.reads, self.long_reads = asyncio.Semaphore(READS), asyncio.Semaphore(LONG_READS)

    @classmethod
    async def connect(cls, url: str, name: str, *, user: str = "", password: str = "", timeout: float = 10.0) -> Bus:
        """Connect to one of the servers in `url` (split at commas); without user and password, as who it says one is.

        Raises BusUnavailable after `timeout` seconds, and at once where it names none: nats-py would look for one and
        let nothing else run, its timeout included.
        """
        try:
            named = nats_servers(url)
        except ValueError as error:
            raise BusUnavailable(f"no NATS server: {error}") from error
        servers = list(named.addresses)
        random.shuffle(servers)
        # Not in the addresses: nats-py sends what stands in one to no server that it hears of from another.
        credentials: dict[str, Any] = (
            {"user": user, "password": password} if user and password else {**named.credentials}
        )
        client = Client()
        bus = cls(client, name)
        try:
            await asyncio.wait_for(
                client.connect(
                    servers,
                    name=name,
                    **credentials,
                    connect_timeout=1,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=0.1,  # type: ignore[arg-type]  # annotated int, used as seconds
                    dont_randomize=True,  # round robin: a lame or frozen server is not the next one tried
                    ping_interval=30,  # ours is quicker; this one only keeps middleboxes awake
                    max_outstanding_pings=2,
                    pending_size=0,
                    flush_timeout=2,
                    error_cb=bus._on_error,
                    disconnected_cb=bus._on_disconnected,
                    closed_cb=bus._on_closed,
                    reconnected_cb=bus._on_reconnected,
                    lame_duck_mode_cb=bus._on_lame_duck,
                ),
                timeout,
            )
        except (TimeoutError, OSError, nats.errors.Error) as error:
            why = client.last_error or error  # in the end it is a timeout; what was said before is the reason
            await _give_up(client)
            raise BusUnavailable(f"no NATS server answers at {','.join(servers)}: {why}") from error
        except BaseException:
            await _give_up(client)
            raise
        await bus.listen(bus._inbox + "*", bus._on_reply)
        bus._heard_at = asyncio.get_running_loop().time()
        bus._watch = asyncio.create_task(bus._watchdog(), name="bus-watchdog")
        return bus

    @classmethod
    async def of(cls, settings: RoleSettings, name: str) -> Bus:
        """As a role's settings say."""
        password = settings.nats_password.get_secret_value()
        return await cls.connect(settings.nats_url, name, user=settings.nats_user, password=password)

    async def close(self) -> None:
        """Say good-bye and end. Idempotent; what waits for an answer gets BusUnavailable."""
        if self._closed:
            return
        self._closed = True
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._replies.close()
        reconnecting = self._client._reconnection_task
        if not (self.connected and await self._pong()):  # a round trip: what was published just now has arrived
            await self._let_go()  # nats-py's close would wait for a frozen peer to take what is buffered
        await self._client.close()
        while going := {
            task for task in (reconnecting, self._client._reconnection_task) if task is not None and not task.done()
        }:
            for task in going:
                task.cancel()
            await asyncio.wait(going, timeout=CANCEL_INTERVAL)
            if not self._client.is_closed:  # what was being made stands after all
                await self._client.close()

    # -- state -----------------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        return self._client.is_connected

    @property
    def round_trip_ok(self) -> bool:
        """Our own way to NATS and back works: what we see of others may be believed."""
        return self.connected and asyncio.get_running_loop().time() - self._heard_at < PING_INTERVAL + PING_TIMEOUT

    @property
    def server(self) -> str:
        """host:port of the server we hang on, for logs."""
        url = self._client.connected_url
        return url.netloc if url is not None else ""

    @property
    def max_payload(self) -> int:
        return self._client.max_payload

    async def kick(self) -> None:
        """Move to the next server known (or reconnect to the only one). Subscriptions are replayed.

        What was published before is with the old server first, and its answers so far are here.
        """
        if self.connected and await self._pong():
            await self._client.force_reconnect()
        elif self.connected:
            await self._let_go()

    # -- core NATS -------------------------------------------------------------------------------------------------

    @property
    def nowhere(self) -> str:
        """Where an answer may be sent that nobody reads."""
        return f"{self._inbox}0"

    def publish_now(self, subject: str, payload: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
        """Hand a message to the connection without waiting; raises BusUnavailable when not connected.

        Not a coroutine, so that the answer to one publish can send the next without a task. Raises ValueError where
        subject, reply or headers are none.
        """
        if self._closed or not self._client.is_connected:
            raise BusUnavailable("closed" if self._closed else "not connected")
        if len(payload) > self._client.max_payload:
            raise StoreRejected(10054, "message size exceeds maximum allowed")
        self._outlet.publish(subject, payload, reply, headers)

    async def publish(
        self, subject: str, payload: bytes, *, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Core publish, at most once; raises BusUnavailable when not connected."""
        self.publish_now(subject, payload, reply, headers)

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        *,
        timeout: float = 2.0,
        headers: dict[str, str] | None = None,
        publish: bool = False,
    ) -> Msg:
        """One question, one answer; raises BusUnavailable when there is no responder or no answer in time.

        publish: it is a publish that a stream is to acknowledge.
        """
        answer: asyncio.Future[Msg | None] = asyncio.get_running_loop().create_future()

        def take(msg: Msg | None) -> None:
            if not answer.done():
                answer.set_result(msg)

        kind = PUBLISH if publish else API if subject.startswith("$JS.API.") else ""
        token = self._replies.expect(take, kind)
        try:
            self.publish_now(subject, payload, self._inbox + token, headers)
            async with asyncio.timeout(timeout):
                msg = await answer
        except TimeoutError as error:
            self._replies.gave_up(token)
            raise BusUnavailable(f"no answer from {subject} in {timeout} s") from error
        finally:
            self._replies.forget(token)
        if msg is None or no_responders(msg):
            raise BusUnavailable(f"nobody answers {subject}")
        return msg

    def call(
        self, subject: str, payload: bytes, headers: dict[str, str] | None, on_reply: Callable[[Msg | None], None]
    ) -> None:
        """As a `request` to publish, without a task or a future: `on_reply` is called once, with None for no answer.

        How long it waits follows from how long answers take, see `patience.py`, and from whether what was published on
        other subjects of the same log is answered. Raises BusUnavailable when not connected; `on_reply` is then not
        called.
        """
        self._call(subject, payload, headers, on_reply, 0.0)

    def call_patiently(
        self, subject: str, payload: bytes, headers: dict[str, str] | None, on_reply: Callable[[Msg | None], None]
    ) -> None:
        """As `call`, of what takes longer: it waits a second at least, whatever others take."""
        self._call(subject, payload, headers, on_reply, MOST)

    def _call(
        self,
        subject: str,
        payload: bytes,
        headers: dict[str, str] | None,
        on_reply: Callable[[Msg | None], None],
        least: float,
    ) -> None:
        token = self._replies.expect(on_reply, PUBLISH)
        try:
            self.publish_now(subject, payload, self._inbox + token, headers)
        except BaseException:
            self._replies.forget(token)
            raise
        self._replies.time(token, subject[: subject.rfind(".")], least)

    async def collect(
        self, subject: str, payload: bytes, is_last: Callable[[Heard], bool], *, timeout: float = 2.0
    ) -> list[Heard]:
        """One question, many answers, the last of which `is_last`; raises BusUnavailable when they do not all come."""
        messages: list[Heard] = []
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def take(msg: Heard | None) -> None:
            if done.done():
                return
            if msg is None or no_responders(msg):
                done.set_result(False)
                return
            messages.append(msg)
            if is_last(msg):
                done.set_result(True)

        token = self._replies.expect(take, MANY)
        try:
            self.publish_now(subject, payload, self._inbox + token)
            async with asyncio.timeout(timeout):
                whole = await done
        except TimeoutError as error:
            raise BusUnavailable(f"{len(messages)} answers from {subject} in {timeout} s, and not the last") from error
        finally:
            self._replies.forget(token)
        if not whole:
            raise BusUnavailable(f"nobody answers {subject}")
        return messages

    async def subscribe(
        self, subject: str, callback: Callable[[Msg], Awaitable[None]], *, queue: str = ""
    ) -> Subscription:
        """Messages are given to `callback` one after another; it must not wait for long. Survives reconnects."""
        try:
            return await self._client.subscribe(subject, queue=queue, cb=callback)
        except GONE as error:
            raise BusUnavailable(f"cannot subscribe to {subject}: {error!r}") from error

    async def listen(self, subject: str, taker: Callable[[Heard], None]) -> Subscription:
        """As `subscribe`, for the hot path: `taker` is called as soon as a message was read, without a task."""

        async def never(_: object) -> None:
            raise AssertionError("a message went past its taker")

        subscription = await self.subscribe(subject, never)
        self._inlet.takers[b"%d" % subscription._id] = taker
        return subscription

    async def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription; nothing to do where the connection is gone already."""
        with contextlib.suppress(*GONE):
            await subscription.unsubscribe()
        self._inlet.takers.pop(b"%d" % subscription._id, None)  # last: until then a message may be on its way to it

    def new_inbox(self) -> str:
        return f"_INBOX.{random_id(16)}"

    # -- JetStream API and OKOME ------------------------------------------------------------------------------------

    async def api(self, verb: str, body: Mapping[str, Any] | None = None, *, timeout: float = 2.0) -> dict[str, Any]:
        """`$JS.API.<verb>`; raises StoreRejected with the server's err_code, or BusUnavailable."""
        msg = await self.request(f"$JS.API.{verb}", json.dumps(body).encode() if body else b"", timeout=timeout)
        answer: dict[str, Any] = json.loads(msg.data)
        if error := answer.get("error"):
            code = error.get("err_code", error.get("code", 0))
            raise BusUnavailable(str(error)) if code in NOT_NOW else StoreRejected(code, error.get("description", ""))
        return answer

    async def ask(
        self,
        operation: str,
        question: msgspec.Struct | Mapping[str, Any],
        answer: type[Answer],
        *,
        timeout: float = 2.0,
    ) -> Answer:
        """One of OKOME's operations; raises Refusal where OKOME says no and BusUnavailable where it does not answer."""
        msg = await self.request(operation_subject(operation), msgspec.json.encode(question), timeout=timeout)
        if msg.headers and ERROR_CODE_HEADER in msg.headers:
            raise Refusal(**json.loads(msg.data)["error"])
        return msgspec.json.decode(msg.data, type=answer)

    async def serve(
        self, name: str, version: str, description: str, endpoints: Mapping[str, Handler], *, limit: int = 256
    ) -> Service:
        """Offer `okome.v1.<operation>` for every entry as one NATS micro service, shared through a queue group.

        At most `limit` requests run at once; beyond that the answer is a refusal `overloaded`. A handler says no by
        raising Refusal.
        """
        service = Service(limit)
        await service.start(self._client, name, version, description, endpoints)
        return service

    # -- inside ----------------------------------------------------------------------------------------------------

    def _on_reply(self, msg: Heard) -> None:
        token, refused = msg.subject[len(self._inbox) :], msg.data.startswith(b'{"error"')
        self._replies.arrived(token, msg, nobody=no_responders(msg), refused=refused)

    async def _watchdog(self) -> None:
        """Notice within PING_INTERVAL + PING_TIMEOUT that the server does not answer, and let go of it."""
        while True:
            await asyncio.sleep(PING_INTERVAL)
            if self._client.is_connected:
                self._writer = self._current_writer()
                if await self._pong() or self._current_writer() is not self._writer:
                    await self._leave_if_futile()
                    continue  # well, or moved meanwhile
                log.warning("bus.server_silent", bus=self.id, server=self.server)
                await self._let_go()
            elif (task := self._client._reconnection_task) is not None and task.done() and not self._client.is_closed:
                log.warning("bus.reconnect_broke_off", bus=self.id, error=repr(task.cancelled() or task.exception()))
                self._client._status = Client.CONNECTING
                await self._client._process_op_err(nats.errors.StaleConnectionError())
            elif self._writer is not None and self._current_writer() is self._writer:
                self._writer.transport.abort()  # reconnecting waits for a frozen peer to take what is buffered

    async def _leave_if_futile(self) -> None:
        """Try another server where this one answers and stores nothing: it may be cut off from the others."""
        if self._replies.futility.look(asyncio.get_running_loop().time()) and len(self._client.servers) > 1:
            log.warning("bus.server_futile", bus=self.id, server=self.server)
            await self.kick()

    async def _pong(self) -> bool:
        """One round trip within PING_TIMEOUT.

        Not `flush`: that returns at once where the read loop is dead, and cancels a ping that was not answered in time,
        whose late pong then ends the read loop.
        """
        pong: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        try:
            await self._client._send_ping(pong)
        except (OSError, RuntimeError):  # uvloop's word for a transport that is gone
            return False
        await asyncio.wait({pong}, timeout=PING_TIMEOUT)
        if pong.done():
            self._heard_at = asyncio.get_running_loop().time()
        return pong.done()

    async def _let_go(self) -> None:
        """Drop the connection without a word and look for a server: nats-py has no public way to drop a frozen peer."""
        self._forget_unsent()
        if (writer := self._current_writer()) is not None:
            writer.transport.abort()
        await self._client._process_op_err(nats.errors.StaleConnectionError())

    def _forget_unsent(self) -> None:
        """What was not written yet is never sent: who waits for an answer repeats it, and would meet the late copy."""
        self._client._pending.clear()
        self._client._pending_data_size = 0

    def _current_writer(self) -> asyncio.StreamWriter | None:
        writer: asyncio.StreamWriter | None = getattr(self._client._transport, "_io_writer", None)
        return writer

    async def _on_error(self, error: Exception) -> None:
        if "permissions violation" in str(error).lower():
            log.error("bus.permission_denied", bus=self.id, error=str(error))
        elif isinstance(error, (OSError, nats.errors.Error, asyncio.TimeoutError)):
            log.debug("bus.connection_error", bus=self.id, error=repr(error))
        else:  # raised by one of our own callbacks: a defect, not weather
            log.error("bus.callback_failed", bus=self.id, error=repr(error), exc_info=error)

    async def _on_disconnected(self) -> None:
        self._forget_unsent()
        self._replies.disconnected()
        if not self._closed:
            log.warning("bus.disconnected", bus=self.id)

    async def _on_closed(self) -> None:
        if not self._closed:  # the server refused us in a way after which nats-py does not come back
            log.error("bus.closed", bus=self.id, error=repr(self._client.last_error))

    async def _on_reconnected(self) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        log.info("bus.reconnected", bus=self.id, server=self.server)
        for callback in list(self.on_reconnected):
            callback()

    async def _on_lame_duck(self) -> None:
        log.info("bus.server_leaving", bus=self.id, server=self.server)
        self.on_lame_duck()
        if len(self._client.servers) > 1:  # those discovered are among them
            task = asyncio.create_task(self.kick(), name="bus-lame-duck")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


def no_responders(msg: Msg) -> bool:
    return not msg.data and msg.headers is not None and msg.headers.get("Status") == "503"


async def _give_up(client: Client) -> None:
    """One that may not have begun to connect: nothing is to be closed then, and `close` fails."""
    if client._flush_queue is not None:
        await client.close()
