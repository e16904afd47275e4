"""One connection through a link: two sockets, and what is on its way from one to the other.

What one side does not take, the other side is not read for: a pair keeps a bounded piece of each direction, and the
rest waits in the kernel, where it slows the writer down as a real line would. Without a fault, bytes go straight from
one socket to the other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

from compose.chaos import endings
from compose.chaos.endings import Ending

if TYPE_CHECKING:
    from compose.chaos.link import Link

HIGH_WATER = 64 * 1024
"""Bytes of one direction that are kept before its writer is left waiting."""
DELAYED_HIGH_WATER = 1024 * 1024
"""The same on a delayed link, where what is under way is longer: 5 MB/s at 200 ms."""
SLICE = 0.05
"""Seconds between two portions of a throttled direction."""
GRAIN = 0.001
"""Seconds by which something delayed may come too early, so that a timer serves for more than one chunk."""
FIN = b""

Filter = Callable[[bytes], bytes]


class Wire(Protocol):
    """What understands the protocol on a link, made once for each connection. Bytes in, bytes out."""

    def to_client(self, data: bytes) -> bytes: ...

    def to_server(self, data: bytes) -> bytes: ...


class Bucket:
    """What a throttled direction may pass now: two slices at once, and never more than its rate over time."""

    def __init__(self) -> None:
        self._room = 0.0
        self._at = float("-inf")

    def take(self, wanted: int, rate: float, now: float) -> int:
        """How many of the `wanted` bytes may pass, at `rate` bytes per second; `now` in seconds."""
        self._room = min(max(1.0, rate * 2 * SLICE), self._room + (now - self._at) * rate)
        self._at = now
        given = min(wanted, int(self._room))
        self._room -= given
        return given


class End(asyncio.Protocol):
    """One socket of a pair. What it reads goes out at the other one, or waits here. `up`: it goes to the server."""

    def __init__(self, pair: Pair, wire: Filter | None, *, up: bool) -> None:
        self.up = up
        self.transport: asyncio.Transport | None = None
        self.other: End
        """The other socket of the pair."""
        self.size = 0
        """Bytes that were read and wait here."""
        self.finished = False
        """The FIN that this side has said was handed on."""
        self._pair = pair
        self._link = pair.link
        self._wire = wire
        self._waiting: deque[tuple[float, bytes]] = deque()  # when it is due, and what
        self._bucket = Bucket()
        self._timer: asyncio.TimerHandle | None = None
        self._stuffed = False  # the other socket takes no more now
        self._ended = False  # it has said FIN

    # -- what the loop calls -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.transport.set_write_buffer_limits(high=HIGH_WATER)
        self._pair.made(self)

    def data_received(self, data: bytes) -> None:
        transport = self.transport
        if transport is not None and not (transport.is_reading() or transport.is_closing()):
            # Python 3.11.2's asyncio reads after connection_made although it was told to pause there, and says it does
            # not: it is told again.
            transport.resume_reading()
            transport.pause_reading()
        if self._wire is not None:
            data = self._wire(data)
        if data:
            self._hand_on(data)

    def eof_received(self) -> bool:
        self._ended = True
        self._hand_on(FIN)
        return True  # the other direction may go on

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self.stop()
        self._pair.lost(broken=error is not None)

    def pause_writing(self) -> None:
        self.other._stuffed = True
        self.other.regulate()

    def resume_writing(self) -> None:
        self.other._stuffed = False
        self.other.pump()

    # -- handing on --------------------------------------------------------------------------------------------------

    def _hand_on(self, data: bytes) -> None:
        link = self._link
        out = self.other.transport
        free = not (self._waiting or link.silent or link.delay or (link.throttle is not None and not self.up))
        if free and out is not None:
            self._put(out, data)
            return
        due = 0.0
        if link.delay:
            due = link.now() + link.delay
            link.counters.delayed += len(data)
        self._waiting.append((due, data))
        self.size += len(data)
        self.pump()

    def _put(self, out: asyncio.Transport, data: bytes) -> None:
        if data == FIN:
            assert not self.finished, "nobody ends twice"
            self.finished = True
            with contextlib.suppress(OSError):  # it has just broken, and `lost` will say so
                out.write_eof()
            self._pair.finished()
            return
        out.write(data)
        if self.up:
            self._link.counters.up += len(data)
        else:
            self._link.counters.down += len(data)

    def pump(self, *, waited: bool = False) -> None:
        """Hand on what is due and may pass. `waited`: it was held back until now."""
        out = self.other.transport
        while self._waiting and not (self._timer or self._stuffed or self._link.silent or out is None):
            due, data = self._waiting[0]
            now = self._link.now()
            if due > now + GRAIN:
                self._wake_in(due - now)
                break
            rate = None if self.up else self._link.throttle
            passing = len(data) if rate is None else self._bucket.take(len(data), rate, now)
            if passing == len(data):
                self._waiting.popleft()
            elif passing:
                self._waiting[0] = (due, data[passing:])
            else:
                self._wake_in(SLICE)
                break
            self.size -= passing
            if rate is not None and waited:
                self._link.counters.throttled += passing
            self._put(out, data[:passing])
        self.regulate()

    def _wake_in(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._woken)

    def _woken(self) -> None:
        self._timer = None
        self.pump(waited=True)

    def regulate(self) -> None:
        """Read from the socket only while what was read can go on."""
        transport = self.transport
        if transport is None or self._ended or transport.is_closing():
            return
        limit = DELAYED_HIGH_WATER if self._link.delay else HIGH_WATER
        # Asked of the transport, not remembered: uvloop begins to read after connection_made, whatever that said.
        if self._stuffed or self._link.silent or self.size >= limit:
            if transport.is_reading():
                transport.pause_reading()
        elif not transport.is_reading():
            transport.resume_reading()

    # -- ends --------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Hand on nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._waiting.clear()
        self.size = 0

    @property
    def unread(self) -> int:
        """Bytes that this side has sent and that the kernel keeps."""
        return endings.unread(self.transport) if self.transport is not None else 0


class Pair:
    """A connection: `client` is the end that was accepted, `server` the one that was dialled for it."""

    def __init__(self, link: Link) -> None:
        self.link = link
        wire = link.wire() if link.wire else None
        self.client = End(self, wire.to_server if wire else None, up=True)
        self.server = End(self, wire.to_client if wire else None, up=False)
        self.client.other, self.server.other = self.server, self.client
        self.dialling: asyncio.Task[None] | None = None
        self.reached = False
        """The upstream has accepted: from here on the dialling is soon over."""
        self._how: Ending | None = None  # how it was ended
        self.bereaved = False
        """It lost a side in silence, and the other one has not been told."""

    def made(self, end: End) -> None:
        if end is self.client:
            self.link.accepted(self)
        elif self._how is not None and end.transport is not None:
            self._how(end.transport)
        else:
            self.client.pump()
        end.regulate()

    def finished(self) -> None:
        """One direction has ended. Two that have are the end of the connection: asyncio would keep it open."""
        if self.client.finished and self.server.finished:
            self.end(endings.let_go)

    def lost(self, *, broken: bool) -> None:
        """One side is gone, and the other one follows in the same way; but in silence it is not told."""
        if self.link.silent and not self.ending:
            self.bereaved = True
        else:
            self.end(endings.break_off if broken else endings.cut_off)

    def end(self, how: Ending) -> None:
        """End what is left of it; the link hears of it when nothing is. Idempotent."""
        if self._how is None:
            self._how = how
            if self.dialling is not None and not self.reached:
                self.dialling.cancel()
            for end in (self.client, self.server):
                end.stop()
                if end.transport is not None:
                    how(end.transport)
        self.link.left(self)

    @property
    def ending(self) -> bool:
        return self._how is not None

    @property
    def broken(self) -> bool:
        """It was ended by RST."""
        return self._how is endings.break_off

    @property
    def gone(self) -> bool:
        return self.ending and self.client.transport is None and self.server.transport is None and not self.dialling
