"""Ring, catch-up and live join: what any client sees is the log, whatever happens between the two."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis.stateful import invariant

from broker.bus import log as jetstream
from broker.bus import pull
from broker.bus.frames import Frame
from broker.bus.subjects import Cursor, log_subject
from broker.node.log_reader import LogReader, Page, linked
from broker.node.ring import Added, Ring
from broker.node.start import Start
from broker.node.tail import Tail
from tests.models.machine import finds, plays
from tests.models.reading_world import ReadingWorld
from tests.models.viewer_model import WRONG


class Reading(ReadingWorld):
    """Nothing is ever taken away from the log, so nobody may be told `reset`."""

    def start(self, place: int) -> Start:
        word = ("fresh", "first", "now", "cursor")[place % 4]
        places = [0, *(frame.seq for frame in self.session.stored)]
        return Start(word, Cursor(self.session.incarnation, places[place % len(places)]) if word == "cursor" else None)

    @invariant()
    def nobody_is_reset(self) -> None:
        for viewer in self.viewers:
            assert viewer.told.resets == 0, f"nothing was ever taken away: {viewer.told.names}"


def test_every_client_sees_every_frame_once_in_order_and_never_a_reset() -> None:
    """Frames lost on the wire, consumers that die, lagging replicas, a silent leader, rings that are cut, slow clients,
    clients that change nodes at any moment."""
    plays(Reading, examples=230)


# -- the rules, taken out one by one -----------------------------------------------------------------------------------


def a_frame_is_shown_although_the_one_before_it_is_missing(patch: pytest.MonkeyPatch) -> None:
    add = Ring.add

    def careless(ring: Ring, frame: Frame) -> Added:
        if ring.floor is not None and frame.prev > ring.last:
            ring.chain.known = False
            ring.chain.last = ring.last
            frame = msgspec.structs.replace(frame, prev=ring.chain.last)
        return add(ring, frame)

    patch.setattr(Ring, "add", careless)


def a_lagging_replica_is_believed(patch: pytest.MonkeyPatch) -> None:
    async def read(reader: LogReader, sid: str, after: int, size: int) -> Page:
        return linked(await jetstream.page(reader._bus, reader._stream, log_subject(sid), after, batch=size), after)

    patch.setattr(LogReader, "_read", read)


def holes_are_not_filled(patch: pytest.MonkeyPatch) -> None:
    async def fill(tail: Tail, sid: str) -> None:
        tail._filling.pop(sid, None)

    patch.setattr(Tail, "_fill", fill)


def the_last_frame_lost_on_the_wire_is_never_missed(patch: pytest.MonkeyPatch) -> None:
    """Neither by the heartbeat that counts more than arrived, nor by asking the leader once a second."""

    def deaf(headers: dict[str, str]) -> pull.End:
        return pull.End.HEARTBEAT if headers.pop("Nats-Last-Consumer", "") else read_status(headers)

    async def content(tail: Tail) -> bool:
        return False

    read_status = pull.read_status
    patch.setattr(pull, "read_status", deaf)
    patch.setattr(Tail, "_behind", content)


JUDGED = WRONG + "|nothing was ever taken away|'reset'"
RULES = [
    a_frame_is_shown_although_the_one_before_it_is_missing,
    a_lagging_replica_is_believed,
    holes_are_not_filled,
    the_last_frame_lost_on_the_wire_is_never_missed,
]


@pytest.mark.parametrize("broken", RULES)
def test_the_model_notices_when(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch)
    finds(Reading, JUDGED)
