"""A connection to a log that answers when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from nats.aio.client import Client

from broker.bus.chain import Chain
from broker.bus.errors import BusUnavailable
from broker.bus.frames import START, Frame, decode_frame
from broker.bus.nats import Bus, Heard, Msg
from gpu_worker.cadence import Cadence
from gpu_worker.metrics import Measured
from gpu_worker.outbox import Outbox
from gpu_worker.publisher import Publisher
from gpu_worker.publishing import Publishing
from gpu_worker.turns import Turns
from tests.gpu_worker.bed import SID

STARTED = (START, {"epoch": 1, "model": "m", "worker": "w1", "input": [], "t": 0})


class Slow(Bus):
    """A connection to a log that answers when the test says so, one after another; what was sent, by subject."""

    def __init__(self, client: Client, name: str) -> None:
        super().__init__(client, name)
        self.sent: list[tuple[str, Frame]] = []
        self.news = asyncio.Event()
        self.gone = False
        self.unsendable = ""  # a subject
        self._asking: list[Callable[[Msg | None], None]] = []

    def call(
        self, subject: str, payload: bytes, headers: dict[str, str] | None, on_reply: Callable[[Msg | None], None]
    ) -> None:
        if self.gone:
            raise BusUnavailable("not connected")
        if subject == self.unsendable:
            raise ValueError("not to be sent")
        self.sent.append((subject, decode_frame(payload, len(self.sent) + 1)))
        self._asking.append(on_reply)
        self.news.set()

    @property
    def unanswered(self) -> int:
        return len(self._asking)

    def lose(self) -> None:
        """No answer to anything that is on its way."""
        asking, self._asking = self._asking, []
        for on_reply in asking:
            on_reply(None)

    def answer(self, seq: int) -> None:
        self._asking.pop(0)(Heard("_INBOX", "", b'{"stream":"TOK_00","seq":%d}' % seq))


def publisher_on(slow: Slow, *, turns: Turns | None = None, cadence: Cadence | None = None) -> Publisher:
    """Of an answer that has not begun."""
    outbox = Outbox("g1", 1, "a", Chain())
    return Publisher(Publishing(slow, turns=turns, cadence=cadence), SID, outbox, Measured("test"))
