"""Restoring: a log that lost its end agrees again with what OKOME had recorded, whatever is left of it."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any

import pytest

from broker.bus.chain import Chain
from broker.bus.conversation import fold
from broker.bus.frames import DONE, FAILED, Frame, encode_frame
from broker.bus.kv import Bucket
from broker.bus.log import stream_info
from broker.bus.nats import Bus
from broker.bus.records import Generation, Message, Request, Status, encode
from broker.bus.subjects import log_stream, log_subject, partition_of
from compose.chaos.faults.store import cut
from control.app import Okome
from control.floors import keep_floors
from control.restoring import PIECE, missing, restore
from tests.control.okome import (
    answer,
    connected,
    ended,
    frames,
    generate,
    generation_record,
    new_session,
    replica,
    worker,
)
from tests.fixtures.nats_server import NatsServer

TEXTS = ("one ", "two ", "three ", "four")


async def recorded(bus: Bus, sid: str, *texts: str) -> str:
    """A whole answer, in the log and in its record; its gid."""
    made = await generate(bus, sid)
    await answer(bus, sid, made, *texts)
    assert await ended(bus, sid, made.generation_id) == {"closed": True}
    return made.generation_id


@pytest.mark.parametrize("left", [0, 1, 3, 5, 6, 7, 9, 11])
async def test_an_answer_recorded_as_ended_is_whole_in_its_log_again_and_more_can_follow(
    fresh_nats: NatsServer, left: int
) -> None:
    """Of two answers of six frames so many frames are left: one and a part, or a part of the first one, or nothing."""
    url = fresh_nats.url
    async with connected(url) as bus, replica(url, reconcile_interval=60) as okome, worker(okome, bus):
        sid = await new_session(bus)
        gids = [await recorded(bus, sid, *TEXTS), await recorded(bus, sid, *TEXTS)]
        running = await generate(bus, sid)
        await keep_floors(bus, [partition_of(sid)])
        before = await stream_info(bus, log_stream(partition_of(sid)))
    fresh_nats.kill()
    cut(fresh_nats.store_dir / "js", log_stream(partition_of(sid)), left)
    fresh_nats.start()
    async with replica(url, reconcile_interval=60) as okome, connected(url) as bus:
        assert (await stream_info(bus, log_stream(partition_of(sid)))).incarnation != before.incarnation
        log = await frames(bus, sid)
        chain = Chain()
        for frame in log:
            chain.advance(frame)
        turns = fold(log)
        assert [(turn.gid, turn.text, turn.tokens, turn.status) for turn in turns] == [
            (gid, "".join(TEXTS), len(TEXTS), DONE) for gid in gids
        ]
        assert sum(frame.terminal for frame in log) == 2
        for gid, turn in zip(gids, turns, strict=True):
            record = await generation_record(bus, sid, gid)
            assert record is not None
            assert (record.first_seq, record.last_seq) == (turn.first_seq, turn.last_seq)
        waits = await generation_record(bus, sid, running.generation_id)
        assert waits is not None
        assert waits.after <= left, "what was accepted behind a lost frame is behind what is left"
        await restore(bus, "okome-again", {partition_of(sid): left})
        assert len(await frames(bus, sid)) == len(log), "restoring again adds nothing"


async def test_records_of_what_is_whole_are_neither_kept_in_memory_nor_in_the_way(okome: Okome, bus: Bus) -> None:
    """They are of all the years, and a start would end when they are more than fit. One of them cannot be read."""
    async with worker(okome, bus):
        sid = await new_session(bus)
        gid = await recorded(bus, sid, *TEXTS)
    lost = await generation_record(bus, sid, gid)
    assert lost is not None
    generations = Bucket(bus, "generations")
    other = next(name for name in okome.partitions if name != partition_of(sid))
    await generations.put(f"{other}unreadable.g", b"{}")
    whole = encode(record("x" * 16_000))
    for start in range(0, 3000, 250):
        await asyncio.gather(*(generations.put(f"{other}s.g{index}", whole) for index in range(start, start + 250)))
    await bus.api(f"STREAM.PURGE.{log_stream(partition_of(sid))}", {"filter": log_subject(sid)})
    tracemalloc.start()
    try:
        await restore(bus, "okome-again", {partition_of(sid): 0})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3000 * len(whole) / 2
    (turn,) = fold(await frames(bus, sid))
    assert (turn.gid, turn.text, turn.status) == (gid, "".join(TEXTS), DONE)


# -- pure -------------------------------------------------------------------------------------------------------------


def record(text: str = "abcdef", status: Status = Status.DONE, tokens: int = 6, **fields: Any) -> Generation:
    request = Request("m", [Message("user", "x")])
    return Generation(
        "g", "00s", "t", request, 0, 0, status, text=text, completion_tokens=tokens, ended_at=7, last_seq=9, **fields
    )


def test_a_text_that_does_not_begin_with_what_is_left_ends_as_lost() -> None:
    """Two answers are never mixed into one."""
    payload = encode_frame("token", "g", 1, "a", 1, 0, 1, {"text": "zzz", "n": 1}).partition(b"\n")[2]
    left = [Frame(1, "start", "g", 1, "a", 0, 0, 0, b"{}"), Frame(2, "token", "g", 1, "a", 1, 0, 1, payload)]
    *_, end = missing(record(), left, 2, "okome")
    assert (end.kind, end.data["code"]) == (FAILED, "log_lost")


@pytest.mark.parametrize("text", ["abcdef", "abcdefghi"])
def test_what_a_record_only_begins_to_tell_ends_as_lost(text: str) -> None:
    """The log has less than the record has, or more."""
    payload = encode_frame("token", "g", 1, "a", 1, 0, 1, {"text": text, "n": 1}).partition(b"\n")[2]
    left = [Frame(1, "start", "g", 1, "a", 0, 0, 0, b"{}"), Frame(2, "token", "g", 1, "a", 1, 0, 1, payload)]
    _, *said, end = missing(record("abcdefgh", truncated=True), left, 2, "okome")
    assert "".join([text, *(one.data["text"] for one in said)]).startswith("abcdefgh")
    assert (end.kind, end.data["code"]) == (FAILED, "log_lost")


@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED, Status.EXPIRED])
def test_an_answer_ends_again_as_it_was_recorded(status: Status) -> None:
    found = missing(record(status=status, code="c", error="m"), [], 1, "okome")
    assert [one.kind for one in found] == ["start", "token", status]
    assert sum(one.n for one in found) == 6


def test_a_long_text_comes_in_pieces_with_all_its_tokens() -> None:
    text = "x" * (2 * PIECE + 1)
    found = [one for one in missing(record(text, tokens=1000), [], 1, "okome") if one.kind == "token"]
    assert "".join(one.data["text"] for one in found) == text
    assert sum(one.n for one in found) == 1000
    assert all(one.data["n"] == one.n for one in found)
