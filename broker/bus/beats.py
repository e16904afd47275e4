"""A beat in as many messages as it needs, and put together again. Pure; times are arguments.

What a worker holds is told to everybody who observes: a job that its beats leave out is taken for nobody's, so a beat
that is too large for one message must neither be cut nor fail. All of its parts, one after the other, are one beat; a
beat of which one is missing was not heard.
"""

from __future__ import annotations

import msgspec

from broker.bus.records import Beat, encode

PART_BYTES = 256 * 1024
"""Bytes of one part, about: well below what NATS takes (1 MiB unless told otherwise), some 2 000 held jobs."""
ENTRY = 6  # bytes of JSON around a gid and its reply


def split(beat: Beat, limit: int = PART_BYTES) -> list[Beat]:
    """The beat in parts of about `limit` bytes. What is in them besides held jobs is small, and in each of them."""
    shares: list[dict[str, str]] = [{}]
    room = left = max(1, limit - len(encode(msgspec.structs.replace(beat, held={}))))
    for gid, reply in beat.held.items():
        left -= len(gid) + len(reply) + ENTRY
        if left < 0 and shares[-1]:
            shares.append({})
            left = room - len(gid) - len(reply) - ENTRY
        shares[-1][gid] = reply
    if len(shares) == 1:
        return [beat]
    return [
        msgspec.structs.replace(beat, held=share, part=part, parts=len(shares)) for part, share in enumerate(shares)
    ]


def more(beat: Beat, held: dict[str, str]) -> Beat:
    """What is held besides what `beat` said, in a small message of its own: of a worker that holds thousands, a whole
    beat for every job that it takes would be more than everything else on the bus. To a version that does not know it,
    it is a part of a beat whose beginning was missed, and so nothing."""
    return msgspec.structs.replace(beat, models={}, held=held, warm=[], part=1, parts=2, more=True)


class Parts:
    """The beats of many workers as their parts come in."""

    def __init__(self) -> None:
        self._begun: dict[str, list[Beat]] = {}  # worker -> the parts so far, from the first one on

    def take(self, beat: Beat) -> Beat | None:
        """The whole beat, with its last part; None before, and where one was missed."""
        begun = self._begun.pop(beat.worker, [])
        if beat.parts <= 1:
            return beat
        if beat.part == 0:
            begun = []
        elif len(begun) != beat.part or not _same(begun[0], beat):
            return None
        begun.append(beat)
        if len(begun) < beat.parts:
            self._begun[beat.worker] = begun
            return None
        held = {gid: reply for part in begun for gid, reply in part.held.items()}
        return msgspec.structs.replace(beat, held=held, part=0, parts=1)

    def forget(self, worker: str) -> None:
        """Nothing was heard of it for long."""
        self._begun.pop(worker, None)


def _same(one: Beat, other: Beat) -> bool:
    return (one.instance, one.t, one.parts) == (other.instance, other.t, other.parts)
