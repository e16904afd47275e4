"""What a load client asks of the mock engine, and how the tokens look that come back through every relay alike. Pure.

Token `i` is `"{i}:{t} "`, t being when the engine wrote it: microseconds of the machine's monotonic clock, which all
processes of a run share. The scripted engine says the same where a script wants its clock. So a client measures the way
from the engine's write to its own read without knowing what relayed it, and sees a gap or a repetition at once.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec
from msgspec import Meta

from broker.bus.script import Script

TOKEN = re.compile(rb"(\d+):(\d{6,}) ")
MODEL = "mock"
MAX_RATE = 10_000
MAX_TOKENS = 1_000_000
MAX_ENGINES = 99


class Ask(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last user message, as JSON. rate: tokens per second, 0 = all at once. trace: one of `traces/`, whose
    rhythm they have instead, over and over. engines: the streams of one rate are dealt to so many, which step one after
    another.
    """

    tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] = 200
    rate: Annotated[float, Meta(ge=0, le=MAX_RATE)] = 20
    trace: str = ""
    engines: Annotated[int, Meta(ge=1, le=MAX_ENGINES)] = 1

    @property
    def prompt(self) -> str:
        return msgspec.json.encode(self).decode()

    @property
    def script(self) -> str:
        """The same asked of a worker's scripted engine, which knows no traces: each stream has a clock of its own."""
        return msgspec.json.encode(Script(tokens=self.tokens, rate=self.rate, clock=True)).decode()


parse = msgspec.json.Decoder(Ask).decode


def text(index: int, microseconds: int) -> str:
    return f"{index}:{microseconds} "


def told(prefix: str) -> int:
    """How many tokens an answer that has begun holds."""
    found = TOKEN.findall(prefix.encode())
    return int(found[-1][0]) + 1 if found else 0
