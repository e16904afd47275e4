"""A viewer that remembers: one session over SSE or WebSocket, through whatever happens, with the moment of every event.

It does what a good client does: it comes back with its cursor, at once the first time, then with a little jitter, and
waits as long as it is told to. What it saw is judged by `checker.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import ssl
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any, NamedTuple
from urllib.parse import urlencode

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from broker.bus.frames import ATTEMPT, START, TERMINAL, TOKEN
from compose.chaos.http import Connection

UNSTORED = frozenset({"hello", "served_by", "queued", "caught_up", "reset", "reconnect", "closed"})
PLACE = re.compile(r".+-(\d{1,20})", re.ASCII)
"""The id of a stored event: its log's incarnation, and its sequence in it."""
HEARTBEATS_MISSED = 25.0
"""Seconds of silence after which a connection is given up: the system sends something every 10 s."""
CONNECT_TIMEOUT = 10.0
TRY_AGAIN_LATER = 1013
"""The code of a WebSocket that is closed because it cannot be served now (RFC 6455, registered with IANA)."""
LONGEST_PAUSE = 0.5
STAY = 0.3
"""Seconds that it stays behind the last end: what comes there is seen as well."""


class Transport(StrEnum):
    SSE = "sse"
    WS = "ws"

    @property
    def other(self) -> Transport:
        return Transport.WS if self is Transport.SSE else Transport.SSE


class Seen(NamedTuple):
    """One event as it arrived. `at`: loop time, to the microsecond (uvloop's is in milliseconds). `data`: its JSON."""

    at: float
    name: str
    id: str
    data: bytes

    @property
    def stored(self) -> bool:
        return self.name not in UNSTORED

    @property
    def seq(self) -> int:
        """0 where its id has none."""
        place = PLACE.fullmatch(self.id)
        return int(place[1]) if place is not None else 0

    def fields(self) -> dict[str, Any]:
        """Its data as it is read; {} where that is no JSON object."""
        try:
            told = json.loads(self.data)
        except ValueError:
            return {}
        return told if isinstance(told, dict) else {}


class ViewerRefused(Exception):
    """The system said no for good: a status that no reconnect mends."""


class Viewer:
    """Watches `sid` at `door()`, an ingress's URL asked for at every connect.

    `patience`: seconds of silence that it bears before it comes back over another connection. `ticket`: shown instead
    of the token; it opens nothing a second time.
    """

    def __init__(
        self,
        door: Callable[[], str],
        sid: str,
        token: str,
        *,
        transport: Transport = Transport.SSE,
        after: str = "0",
        patience: float = HEARTBEATS_MISSED,
        ticket: str = "",
        tls: ssl.SSLContext | None = None,
        receive_buffer: int = 0,
    ) -> None:
        self.sid = sid
        self.transport = transport
        self.patience = patience
        self.cursor = ""
        self.events: list[Seen] = []
        self.connections = 0
        self.lost: list[str] = []
        """How connections ended that it had not given up, before the end, other than by "come again later"."""
        self.node = ""
        """Who serves it now, as the last `served_by` said."""
        self.ingress = ""
        self.worker = ""
        """Who writes the running answer, as the last `start` or `attempt` said."""
        self.ended = 0
        """Generations whose end it has seen; since it was last told `reset`, if it was not over then."""
        self._terminals = 1
        self._staying: asyncio.Timeout | None = None
        self._door = door
        self._token = token
        self._after = after
        self._ticket = ticket
        self._tls = tls
        self._receive_buffer = receive_buffer
        self._changed = asyncio.Event()
        self._reading = asyncio.Event()
        self._reading.set()
        self._connection: Connection | ClientConnection | None = None
        self._told_to_wait: float | None = None
        self._gave_up = False
        """The present connection, by breaking it off."""

    # -- watching ----------------------------------------------------------------------------------------------------

    async def watch(self, terminals: int = 1) -> None:
        """Until so many generations have ended, and `STAY`. The caller has the deadline. Raises ViewerRefused."""
        self._terminals = terminals
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as self._staying:
                await self._watch()

    async def _watch(self) -> None:
        pause = 0.0
        while not self.over:
            await self._reading.wait()
            before, connections, self._gave_up = len(self.events), self.connections, False
            broke: Exception | None = None
            try:
                await (self._sse() if self.transport is Transport.SSE else self._ws())
            except (OSError, EOFError, ConnectionClosed, InvalidHandshake, TimeoutError) as error:
                broke = error
            if self.connections > connections:
                self._ended(broke)
            pause = 0.0 if len(self.events) > before else min(LONGEST_PAUSE, 2 * pause + 0.02)
            wait = random.uniform(0, pause)  # a client's jitter
            if self._told_to_wait is not None:
                wait, self._told_to_wait = self._told_to_wait, None
            if wait and not self.over:
                await asyncio.sleep(wait)

    def _ended(self, broke: Exception | None) -> None:
        """A connection is over: by itself, or because it broke."""
        if self._gave_up or self._told_to_wait is not None or isinstance(broke, TimeoutError):
            return  # its own doing, or its patience; or it was told when to come back
        if isinstance(broke, ConnectionClosed) and broke.rcvd is not None and broke.rcvd.code == TRY_AGAIN_LATER:
            return
        last = f"{self.events[-1].name} {self.events[-1].id}" if self.events else "nothing"
        self._lose(f"{'ended in good order' if broke is None else repr(broke)} behind {last}")

    def _lose(self, how: str) -> None:
        if not self.over:
            self.lost.append(f"{self.transport}: {how}")

    async def seen(self, tokens: int) -> None:
        """Wait until so many token events have come, or it is over: tokens that come late come many in an event."""
        await self.changed(lambda one: one.over or sum(event.name == TOKEN for event in one.events) >= tokens)

    async def changed(self, holds: Callable[[Viewer], bool]) -> None:
        """Wait until something holds of what it has seen."""
        while not holds(self):
            self._changed.clear()
            await self._changed.wait()

    # -- what can be done to it --------------------------------------------------------------------------------------

    def kick(self) -> bool:
        """Break its connection off by RST; says whether there was one."""
        connection = self._connection
        self._gave_up = connection is not None
        if isinstance(connection, Connection):
            connection.reset()
        elif connection is not None:
            connection.transport.abort()
        return connection is not None

    def switch(self) -> bool:
        """Break off and come back over the other transport."""
        self.transport = self.transport.other
        return self.kick()

    def hold(self) -> None:
        """Stop reading: the bytes stay in the sockets. Without a connection, it stays away."""
        self._reading.clear()

    def go_on(self) -> None:
        self._reading.set()

    # -- what was seen -----------------------------------------------------------------------------------------------

    def stored(self) -> list[Seen]:
        return [event for event in self.events if event.stored]

    @property
    def over(self) -> bool:
        """It has seen all the ends that it came for, and is about to go."""
        return self.ended >= self._terminals

    def names(self) -> set[str]:
        return {event.name for event in self.events}

    # -- the two transports ------------------------------------------------------------------------------------------

    def _query(self, after: str) -> str:
        fields = {"after": after, "ticket": self._ticket}
        query = urlencode({name: value for name, value in fields.items() if value})
        return f"?{query}" if query else ""

    def _credential(self) -> dict[str, str]:
        return {} if self._ticket else {"authorization": f"Bearer {self._token}"}

    async def _sse(self) -> None:
        headers = {**self._credential(), "accept": "text/event-stream"}
        if self.cursor:
            headers["last-event-id"] = self.cursor
        path = f"/v1/sessions/{self.sid}/events{self._query('' if self.cursor else self._after)}"
        async with asyncio.timeout(CONNECT_TIMEOUT):
            connection = await Connection.open(
                self._door(), "GET", path, headers, tls=self._tls, receive_buffer=self._receive_buffer
            )
        self._connection = connection
        try:
            if connection.status != 200:
                raise ViewerRefused(f"{connection.status} {(await connection.body())[:200]!r}")
            self.connections += 1
            rest = b""
            while self._told_to_wait is None:
                await self._reading.wait()
                async with asyncio.timeout(self.patience):
                    part = await connection.chunk()
                if not part:
                    return
                *blocks, rest = (rest + part).split(b"\n\n")
                now = time.monotonic()
                for block in blocks:
                    self._take_block(now, block)
        finally:
            self._connection = None
            connection.close()

    async def _ws(self) -> None:
        path = f"/v1/sessions/{self.sid}/ws{self._query(self.cursor or self._after)}"
        async with connect(
            self._door().replace("http", "ws", 1) + path,
            additional_headers=self._credential(),
            subprotocols=["okome.v1"],  # type: ignore[list-item]
            compression=None,
            ping_interval=None,
            open_timeout=CONNECT_TIMEOUT,
            close_timeout=0.1,
            max_queue=256,
            proxy=None,
            ssl=self._tls,
        ) as connection:
            self._connection = connection
            self.connections += 1
            try:
                while self._told_to_wait is None:
                    await self._reading.wait()
                    async with asyncio.timeout(self.patience):
                        message = await connection.recv(decode=False)
                    self._take_message(time.monotonic(), message)
            finally:
                self._connection = None

    def _take_block(self, now: float, block: bytes) -> None:
        name = id = ""
        data = b""
        for line in block.split(b"\n"):
            if line.startswith(b"id: "):
                id = line[4:].decode(errors="replace")
            elif line.startswith(b"event: "):
                name = line[7:].decode(errors="replace")
            elif line.startswith(b"data: "):
                data = line[6:]
        if name:
            self._take(Seen(now, name, id, data))

    def _take_message(self, now: float, message: bytes) -> None:
        # Laid out by the node as {"event":…,"id":…,"data":…}: the data is cut out as it is, so that bytes are compared.
        head, _, rest = message.partition(b'"data":')
        name = head.partition(b'"event":"')[2].partition(b'"')[0].decode(errors="replace")
        id = head.partition(b'"id":"')[2].partition(b'"')[0].decode(errors="replace")
        if name != "hb":
            self._take(Seen(now, name, id, rest[:-1]))

    def _take(self, event: Seen) -> None:
        """Remember it, whatever it is: the judge says what is wrong with it."""
        self.events.append(event)
        if event.id:
            self.cursor = event.id
        if event.name == "served_by":
            told = event.fields()
            self.node, self.ingress = str(told.get("node", "")), str(told.get("ingress", ""))
        elif event.name in (START, ATTEMPT):
            self.worker = str(event.fields().get("worker", ""))
        elif event.name == "closed":
            self._told_to_wait = _seconds(event.fields().get("retry_after_ms"))
            if "retry_after_ms" not in event.fields():
                self._lose(f"closed for good: {event.data.decode(errors='replace')}")
        elif event.name == "reconnect":
            self._told_to_wait = _seconds(event.fields().get("after_ms"))
            self._lose("told to come back by itself")
        elif event.name == "reset" and not self.over:
            self.ended = 0  # all that there is is told anew
        elif event.name in TERMINAL:
            self.ended += 1
            if self.ended == self._terminals and self._staying is not None:
                self._staying.reschedule(asyncio.get_running_loop().time() + STAY)
        self._changed.set()


def _seconds(told: object) -> float:
    """Milliseconds that an event names; a second where it names none."""
    return told / 1000 if isinstance(told, int | float) else 1.0
