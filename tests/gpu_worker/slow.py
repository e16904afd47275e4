"""A connection to a log that answers when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
from nats.aio.client import Client

from broker.bus.chain import Chain
from broker.bus.errors import BusUnavailable
from broker.bus.frames import START, Frame, decode_frame
from broker.bus.nats import Bus, Heard, Msg
from gpu_worker.metrics import Measured
from gpu_worker.outbox import Outbox
from gpu_worker.publisher import Publisher
from gpu_worker.publishing import Publishing
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
        self._counts: list[int] = []  # of messages that each of them asks for
        self._unasked = 0

    def call(
        self, subject: str, payload: bytes, headers: dict[str, str] | None, on_reply: Callable[[Msg | None], None]
    ) -> None:
        if self.gone:
            raise BusUnavailable("not connected")
        if subject == self.unsendable:
            raise ValueError("not to be sent")
        self.sent.append((subject, decode_frame(payload, len(self.sent) + 1)))
        self._asking.append(on_reply)
        self._counts.append(self._unasked + 1)
        self._unasked = 0
        self.news.set()

    call_patiently = call

    def publish_now(self, subject: str, payload: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
        if self.gone:
            raise BusUnavailable("not connected")
        self.sent.append((subject, decode_frame(payload, len(self.sent) + 1)))
        self._unasked += 1

    @property
    def unanswered(self) -> int:
        return len(self._asking)

    def lose(self) -> None:
        """No answer to anything that is on its way."""
        asking, self._asking, self._counts = self._asking, [], []
        for on_reply in asking:
            on_reply(None)

    def next_asked(self) -> list[tuple[str, Frame]]:
        """What the next answer is for."""
        first = len(self.sent) - sum(self._counts) - self._unasked
        return self.sent[first : first + self._counts[0]]

    def answer(self, seq: int, *, lacking: int = 0) -> None:
        """All that is asked for is stored, the last one as `seq`; or it says so of fewer."""
        count = self._counts.pop(0) - lacking
        self._asking.pop(0)(Heard("_INBOX", "", b'{"stream":"TOK_00","seq":%d,"count":%d}' % (seq, count)))

    def refuse(self, err_code: int, description: str = "no") -> None:
        error = {"code": 400, "err_code": err_code, "description": description}
        self._counts.pop(0)
        self._asking.pop(0)(Heard("_INBOX", "", msgspec.json.encode({"error": error})))


def publisher_on(publishing: Publishing) -> Publisher:
    """Of an answer that has not begun."""
    return Publisher(publishing, SID, Outbox("g1", 1, "a", Chain()), Measured("test"))
