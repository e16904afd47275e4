"""What standing pulls have in common: the request, the acknowledgement subject, and how a pull ends. Pure.

nats-server 2.15: a pull with `idle_heartbeat` is answered by messages, by `100 Idle Heartbeat` while there are none,
and at its end by 408 (expired) or 409 (batch done or full, consumer deleted, leadership change). 503: no such consumer.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

HEARTBEAT = 0.5  # seconds; two missed ones mean that the consumer is gone
EXPIRES = 30.0  # seconds until the server ends an unfilled pull
MAX_BYTES = 10 * 1024 * 1024
"""Of one pull, which then ends: above the largest message that a server takes (8 MB), and so far below what it holds
for one connection (64 MB, `compose/nats/limits.conf`) that it does not cut the whole connection for a few of them."""
_NANOSECONDS = 1_000_000_000


class Delivered(NamedTuple):
    """The parts of an acknowledgement subject that anybody needs."""

    consumer: str
    attempts: int  # how often this message has been delivered, this time included
    seq: int  # of the stream
    consumer_seq: int
    pending: int


class End(Enum):
    """What a status means for whoever pulls."""

    HEARTBEAT = "heartbeat"
    PULL_OVER = "pull over"  # ask again
    CONSUMER_GONE = "consumer gone"  # make another one


def request(batch: int, *, expires: float = EXPIRES, heartbeat: float = HEARTBEAT) -> bytes:
    return b'{"batch":%d,"max_bytes":%d,"expires":%d,"idle_heartbeat":%d}' % (
        batch,
        MAX_BYTES,
        int(expires * _NANOSECONDS),
        int(heartbeat * _NANOSECONDS),
    )


def parse_reply(reply: str) -> Delivered | None:
    """Take `$JS.ACK.…` apart; None if it is none.

    `$JS.ACK.<stream>.<consumer>.<delivered>.<sseq>.<cseq>.<time>.<pending>`; version 2 has domain and account hash in
    front (>= 11 tokens). Only what is needed is read: nats-py's `Msg.metadata` would make a date of every message.
    """
    tokens = reply.split(".")
    if len(tokens) < 9 or len(tokens) == 10 or tokens[0] != "$JS" or tokens[1] != "ACK":
        return None
    base = 3 if len(tokens) == 9 else 5
    return Delivered(
        tokens[base], int(tokens[base + 1]), int(tokens[base + 2]), int(tokens[base + 3]), int(tokens[base + 5])
    )


def reply_prefix(stream: str, consumer: str) -> str:
    """How acknowledgement subjects (version 1) of a consumer begin: what a message is told by that often comes."""
    return f"$JS.ACK.{stream}.{consumer}."


def ack_subject(stream: str, consumer: str, seq: int, consumer_seq: int) -> str:
    """An acknowledgement subject (version 1) made up for a message that somebody else was given."""
    return f"{reply_prefix(stream, consumer)}1.{seq}.{consumer_seq}.0.0"


def read_status(headers: dict[str, str]) -> End:
    status = headers.get("Status", "")
    description = headers.get("Description", "").lower()
    if status == "100":
        return End.HEARTBEAT
    if status in ("404", "408") or (status == "409" and "deleted" not in description and "shutdown" not in description):
        return End.PULL_OVER
    return End.CONSUMER_GONE
