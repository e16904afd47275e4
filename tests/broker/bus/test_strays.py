"""What stands in a session's log and is a frame of no version is taken out; what another version wrote stays."""

from __future__ import annotations

import asyncio

import pytest

from broker.bus import log
from broker.bus.errors import BusUnavailable, FrameMalformed
from broker.bus.frames import START, encode_frame
from broker.bus.nats import Bus
from broker.bus.strays import last_frame
from broker.bus.subjects import log_stream, log_subject, partition_of, random_id
from tests.broker.bus.conftest import make_stream


async def session(bus: Bus) -> str:
    """The id of one whose log has a stream, and is empty."""
    sid = random_id(20)
    partition = partition_of(sid)
    await make_stream(bus, name=log_stream(partition), subjects=[f"tok.{partition}.*"])
    return sid


async def begin(bus: Bus, sid: str) -> int:
    return await log.store(bus, log_subject(sid), encode_frame(START, "g1", 1, "aaaaaaaa", 0, 0, 0, {}), expect_last=0)


async def test_the_last_frame_is_the_one_before_the_strays_and_they_are_gone(bus: Bus) -> None:
    sid = await session(bus)
    seq = await begin(bus, sid)
    for stray in (b"hello", b"", b"\x00" * 1000):
        await log.store(bus, log_subject(sid), stray)
    frames = await asyncio.gather(*(last_frame(bus, sid) for _ in range(4)))
    assert [frame and frame.seq for frame in frames] == [seq] * 4, "however many take them out at once"
    assert [each.seq for each in await log.read_all(bus, log_stream(partition_of(sid)), log_subject(sid))] == [seq]
    await log.store(bus, log_subject(sid), b"okome/1", expect_last=seq)  # the fence is what it was


async def test_of_strays_alone_there_is_no_frame(bus: Bus) -> None:
    sid = await session(bus)
    assert await last_frame(bus, sid) is None
    await log.store(bus, log_subject(sid), b"hello")
    assert await asyncio.gather(*(last_frame(bus, sid) for _ in range(4))) == [None] * 4
    await begin(bus, sid)


async def test_who_leaves_more_and_more_is_not_followed_for_ever(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.bus.strays.MOST", 3)
    sid = await session(bus)
    for _ in range(4):
        await log.store(bus, log_subject(sid), b"hello")
    with pytest.raises(BusUnavailable):
        await last_frame(bus, sid)
    assert await last_frame(bus, sid) is None


async def test_what_another_version_wrote_is_left_to_it(bus: Bus) -> None:
    sid = await session(bus)
    await begin(bus, sid)
    seq = await log.store(bus, log_subject(sid), b"okome/2 token\n{}")
    with pytest.raises(FrameMalformed):
        await last_frame(bus, sid)
    stored = await log.last(bus, log_stream(partition_of(sid)), log_subject(sid))
    assert stored is not None
    assert stored.seq == seq
