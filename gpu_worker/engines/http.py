"""HTTP/1.1 as engines need it: one request, one connection, and events that cost little each.

A protocol and not asyncio's streams: cancelling must close the socket at once and synchronously, because a closed
connection is how an engine learns that nobody wants the answer; and a token that is there already must not cost a
coroutine, a timer and a future of its own. Knows nothing of models or of who asks.
"""

import asyncio
import functools
import re
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, cast

import msgspec

from gpu_worker.engines import refused
from gpu_worker.engines.edge import Edges, EdgeTransport
from gpu_worker.engines.event_stream import Chunks, Malformed, Payloads

MAX_BODY = 64 * 1024 * 1024
"""Bytes of an answer that is not a stream; the longest is the token list of a 1 MiB prompt."""
MAX_REFUSAL = 256 * 1024
"""The same of a refusal."""
REFUSAL_TIMEOUT = 5.0
"""Seconds that the reason of a refusal is waited for."""
ALIVE = 5
"""Times the silence that is allowed in which a server may say that it is there, and nothing else."""
MAX_HEAD = 64 * 1024
DIGITS = 18
"""Of a length that is worth reading."""
INTERIM = 100
"""Heads with a status below 200 before the answer's."""
READS = 8
"""Of what was left, at the end."""
HIGH, LOW = 256, 64
"""Payloads nobody has asked for yet: above the first the socket is left alone until the second is reached."""

Take = Callable[[list[bytes]], bool]
"""Takes payloads, one at least; True: the last one is among them."""


class Unreachable(Exception):
    """Nobody listens there: nothing was sent, so asking again is safe."""


class Broken(Exception):
    """The connection ended, or said something that is not HTTP, before the answer was whole."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an engine listens and the key it asks for. `incarnation`: of the child behind it, where there is one."""

    host: str
    port: int
    key: str
    incarnation: int = 0
    tls: bool = False


_HEAD_END = re.compile(rb"\r?\n\r?\n")


@functools.cache
def _tls() -> ssl.SSLContext:
    """Once: it reads every certificate of the system, and the loop stands meanwhile."""
    return ssl.create_default_context()


async def call(endpoint: Endpoint, method: str, path: str, body: object = None) -> bytes:
    """The whole answer. The caller brings the deadline. Raises Unreachable, Broken, Refused."""
    with await ask(endpoint, method, path, body) as answer:
        return await answer.whole()


async def ask(
    endpoint: Endpoint,
    method: str,
    path: str,
    body: object = None,
    *,
    silence_timeout: float | None = None,
    edges: Edges | None = None,
) -> "Answer":
    """Send the request and read the head of its answer. Raises Unreachable, Broken, Refused.

    `silence_timeout`: seconds that the server may say nothing while somebody waits for it, now or later: TimeoutError.
    For ALIVE times as long may it say only that it is there: comments, heads before the answer's, a piece of a head.
    None leaves the deadline to the caller. `edges`: where the connection is one that can be left unread.
    """
    payload = b"" if body is None else msgspec.json.encode(body)
    key = f"Authorization: Bearer {endpoint.key}\r\n" if endpoint.key else ""
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {host}:{endpoint.port}\r\n{key}Accept-Encoding: identity\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\nConnection: close\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    tls = _tls() if endpoint.tls else None
    try:
        async with asyncio.timeout(silence_timeout):
            answer = Answer(loop, silence_timeout)
            transport: asyncio.Transport
            if edges is None or endpoint.tls:
                transport, _ = await loop.create_connection(lambda: answer, endpoint.host, endpoint.port, ssl=tls)
            else:
                transport = await edges.connect(answer, endpoint.host, endpoint.port)
    except OSError as error:
        if isinstance(error, TimeoutError) and error.errno is None:  # ours, not the network's
            raise
        raise Unreachable(str(error)) from error
    try:
        transport.write(head.encode() + payload)
        await answer.head()
        if answer.status != 200:
            raise refused.read(answer.status, answer.headers, await _reason(answer))
    except BaseException:
        answer.leave()
        raise
    return answer


async def _reason(answer: "Answer") -> bytes:
    """What comes with a refusal, which is one without it, too."""
    try:
        async with asyncio.timeout(REFUSAL_TIMEOUT):
            return await answer.whole()
    except (Broken, TimeoutError):
        return b""


class Answer(asyncio.Protocol):
    """An answer whose body is still to come: `with`, then `whole()`, or `event()` until it says None, or `pour()`.

    Leaving the block closes the connection at once, which cancels what was asked for wherever that is. One reader;
    whatever waits raises Broken when the connection ends early and TimeoutError when the server falls silent.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, silence_timeout: float | None) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self._loop = loop
        self._silence = silence_timeout
        self._transport: asyncio.Transport | None = None
        self._rest = b""  # of a head that is not whole yet
        self._interim = 0  # heads before it
        self._chunks: Chunks | None = None
        self._left: int | None = None  # bytes of a body whose length was announced; None: it ends with the connection
        self._events: Payloads | None = None
        self._waiting: deque[bytes] = deque()  # payloads of a stream, pieces of a document
        self._size = 0
        self._ended = False
        self._why = ""  # it broke
        self._stopped = False  # the socket is left alone
        self._waiter: asyncio.Future[None] | None = None
        self._waits_since = 0.0
        self._told_at = loop.time()  # the last payload; at first, and where nobody waited for one, since when one may
        self._alarm: asyncio.TimerHandle | None = None
        self._take: Take | None = None  # who is poured for ...
        self._over: asyncio.Future[None] | None = None  # ... and until when
        self._held = False
        self._giving = False
        self._hurry: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Close the connection without lingering: unread tokens are of no use to anyone. Idempotent."""
        for timer in (self._alarm, self._hurry):
            if timer is not None:
                timer.cancel()
        self._alarm = self._hurry = None
        if self._transport is not None:
            self._transport.abort()

    # -- reading -----------------------------------------------------------------------------------------------------

    async def head(self) -> None:
        """Wait until `status` and `headers` are there."""
        while not self.status:
            await self._more()

    async def whole(self) -> bytes:
        """The body in one piece."""
        self._told_at = self._loop.time()
        while not self._ended:
            await self._more()
        return b"".join(self._waiting)

    async def event(self) -> bytes | None:
        """The next payload of an event stream; None when the server has ended it."""
        waiting = self._waiting
        if not waiting:
            self._told_at = self._loop.time()
        while not waiting:
            if self._events is None:
                raise Broken("a stream was asked for, a document came")
            if self._ended:
                return None
            await self._more()
        payload = waiting.popleft()
        if self._stopped and len(waiting) <= LOW and self._transport is not None:
            self._stopped = False
            self._transport.resume_reading()
        return payload

    @property
    def streams(self) -> bool:
        """It is an event stream, once its head is there; else a document."""
        return self._events is not None

    @property
    def source(self) -> EdgeTransport | None:
        """Where what comes can be left, if it can be."""
        return self._transport if isinstance(self._transport, EdgeTransport) else None

    def pour(self, take: Take, on_unread: Callable[[], None] | None = None) -> asyncio.Future[None]:
        """Give the payloads of an event stream to `take` as they come, from the protocol's own callback: a token then
        wakes no task, which is most of what it costs otherwise. What came in one read is given together.

        Done when the server has ended the stream, or `take` says True: the end of it was there. What it raises is the
        future's, as are Broken and TimeoutError. With `on_unread` what comes is left where it is, where that can be
        done for nothing: it is called then, and the `draw` of `source` gives it to `take`.
        """
        self._take, self._over = take, self._loop.create_future()
        if self._events is None:
            self._over.set_exception(Broken("a stream was asked for, a document came"))
        self._waits_since = self._told_at = self._loop.time()
        if self._silence is not None:
            self._alarm = self._alarm or self._loop.call_later(self._silence, self._look)
        self._deliver()
        if (source := self.source) is not None:
            source.leave_to(on_unread)
        self._go_on()
        return self._over

    def left(self) -> list[bytes]:
        """The payloads that came and were not given to anybody, for whoever does not wait for more."""
        source = self.source
        for _ in range(READS):
            if source is None or not source.draw():
                break
        payloads = list(self._waiting)
        self._waiting.clear()
        return payloads

    def hold(self, held: bool) -> None:
        """Keep what comes, and soon let nothing come; or go on."""
        if held == self._held:
            return
        self._held = held
        if held:
            if not self._stopped and self._transport is not None:
                self._stopped = True
                self._transport.pause_reading()
            return
        self._waits_since = self._told_at = self._loop.time()
        self._deliver()
        self._go_on()

    def hurry(self, timeout: float) -> None:
        """Pouring is over by then, as if `take` had said so."""
        self._hurry = self._hurry or self._loop.call_later(timeout, self._conclude)

    def _conclude(self) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    def _go_on(self) -> None:
        if self._stopped and not self._held and self._transport is not None:
            self._stopped = False
            self._transport.resume_reading()

    def _deliver(self) -> None:
        take, over, waiting = self._take, self._over, self._waiting
        if take is None or over is None or self._giving:  # the last: what is taken may make room, and that draws more
            return
        self._giving = True
        try:
            while waiting and not self._held and not over.done():
                payloads = list(waiting)
                waiting.clear()
                if take(payloads):
                    over.set_result(None)
        except Exception as error:  # noqa: BLE001  # whoever waits for `over` gets it
            over.set_exception(error)
        finally:
            self._giving = False
        if over.done() or waiting:
            return
        if self._why:
            over.set_exception(Broken(self._why))
        elif self._ended:
            over.set_result(None)

    async def _more(self) -> None:
        """Wait for something to arrive."""
        if self._why:
            raise Broken(self._why)
        self._waiter = self._loop.create_future()
        self._waits_since = self._loop.time()
        if self._alarm is None and self._silence is not None:
            self._alarm = self._loop.call_later(self._silence, self._look)
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _look(self) -> None:
        """One timer for all waits of a connection, not one for each: who waits now may have begun only just."""
        self._alarm = None
        waiter = self._over or self._waiter
        if waiter is None or waiter.done() or self._silence is None:
            return  # the next one who waits sets it again
        left_there = self.source is not None and self.source.unread and not self._stopped
        now = self._loop.time()
        left = self._silence if self._held or left_there else self._waits_since + self._silence - now
        patience = self._silence if self._held or left_there else self._told_at + ALIVE * self._silence - now
        if left > 0 and patience > 0:
            self._alarm = self._loop.call_later(min(left, patience), self._look)
        elif left <= 0:
            waiter.set_exception(TimeoutError(f"{self._silence:g} s of silence"))
        else:
            waiter.set_exception(TimeoutError(f"{ALIVE * self._silence:g} s of nothing but signs of life"))

    # -- the protocol ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by name

    def data_received(self, data: bytes) -> None:
        try:
            if not self.status:
                data = self._take_head(data)
            if data or self._left == 0:
                self._take_body(data)
        except ValueError as error:
            self._break(str(error) or "not HTTP")
        if self._take is not None:
            self._waits_since = self._loop.time()
            if self._waiting:
                self._told_at = self._waits_since
            self._deliver()
        else:
            self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if not self._ended:
            if self.status and error is None and self._chunks is None and self._left is None:
                self._ended = True
                if self._events is not None:
                    self._waiting.extend(self._events.end())
            else:
                self._break(str(error) if error else "the connection ended early")
        self._deliver()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _break(self, why: str) -> None:
        self._why = self._why or why
        if self._transport is not None:
            self._transport.abort()

    def _take_head(self, data: bytes) -> bytes:
        """The bytes behind the head, once it is whole. Raises ValueError."""
        data = self._rest + data
        while (end := _HEAD_END.search(data)) is not None:
            status, headers = _head(data[: end.start()])
            data = data[end.end() :]
            if status >= 200:
                self._rest = b""
                self._begin(status, headers)
                return data
            self._interim += 1  # it says that the answer is still to come
            if self._interim > INTERIM:
                raise Malformed("no answer but that it is still to come")
        self._rest = data
        if len(data) > MAX_HEAD:
            raise Malformed("a head without end")
        return b""

    def _begin(self, status: int, headers: dict[bytes, bytes]) -> None:
        """What the head says of the body. Raises Malformed."""
        self.headers = headers
        if status == 200 and headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise Malformed(f"the content coding {headers[b'content-encoding']!r}, which was not asked for")
        coding, length = headers.get(b"transfer-encoding"), headers.get(b"content-length")
        if coding is not None and coding.lower() != b"chunked":
            raise Malformed(f"the transfer coding {coding!r}")
        if coding is not None:
            self._chunks = Chunks()
        elif length is not None:
            if not length.isdigit() or len(length) > DIGITS or int(length) > MAX_BODY:
                raise Malformed(f"{length!r} bytes announced")
            self._left = int(length)
        self._ended = status in (204, 304)
        self.status = status
        if status == 200 and headers.get(b"content-type", b"").lower().startswith(b"text/event-stream"):
            self._events = Payloads()

    def _take_body(self, data: bytes) -> None:
        if self._ended:
            return
        if self._chunks is not None:
            data = self._chunks.feed(data)
            self._ended = self._chunks.ended
        elif self._left is not None:
            data = data[: self._left]
            self._left -= len(data)
            self._ended = not self._left
        if self._events is None:
            self._size += len(data)
            most = MAX_BODY if self.status == 200 else MAX_REFUSAL
            if self._size > most:
                raise Malformed(f"more than {most} bytes")
            self._waiting.append(data)
            return
        self._waiting.extend(self._events.feed(data))
        if self._ended:
            self._waiting.extend(self._events.end())
        asked = self._take is None or self._held  # else they are given as they come
        if len(self._waiting) > HIGH and asked and not self._stopped and self._transport is not None:
            self._stopped = True
            self._transport.pause_reading()


def _head(data: bytes) -> tuple[int, dict[bytes, bytes]]:
    """Raises Malformed."""
    first, *lines = data.replace(b"\r\n", b"\n").split(b"\n")
    version, _, rest = first.partition(b" ")
    status = rest.partition(b" ")[0]
    if not version.startswith(b"HTTP/1.") or len(status) != 3 or not status.isdigit() or status < b"100":
        raise Malformed("not HTTP")
    headers = {}
    for line in lines:
        name, _, value = line.partition(b":")
        headers[name.strip().lower()] = value.strip()
    return int(status), headers
