"""A cut store: nats-server comes up with what is left, and goes on behind it."""

from __future__ import annotations

import pytest

from broker.bus.log import get, store, stream_info
from compose.chaos.faults.store import blocks, cut, last_sequence, records
from tests.control.okome import connected
from tests.fixtures.nats_server import NatsServer

STREAM = {"name": "TOK_00", "subjects": ["tok.00.*"], "storage": "file"}


@pytest.mark.parametrize("keep", [0, 7, 19])
async def test_a_server_started_on_a_cut_stream_has_lost_its_end_and_gives_its_sequences_to_others(
    fresh_nats: NatsServer, keep: int
) -> None:
    """Half of a message is left behind the cut: the server takes it for none."""
    async with connected(fresh_nats.url) as bus:
        await bus.api("STREAM.CREATE.TOK_00", STREAM)
        for number in range(1, 21):
            await store(bus, f"tok.00.{number % 3}", b"old %d" % number, headers={"x": "y"})
    fresh_nats.kill()
    directory = fresh_nats.store_dir / "js"
    assert last_sequence(directory, "TOK_00") == 20
    taken = cut(directory, "TOK_00", keep)
    assert [record.seq for record in taken] == list(range(keep + 1, 21))
    assert all(b"old %d" % record.seq in record.data for record in taken)
    fresh_nats.start()
    async with connected(fresh_nats.url) as bus:
        assert (await stream_info(bus, "TOK_00")).last_seq == keep
        assert await get(bus, "TOK_00", keep + 1) is None
        assert await store(bus, "tok.00.0", b"new") == keep + 1


async def test_a_cut_behind_the_end_takes_nothing(fresh_nats: NatsServer) -> None:
    async with connected(fresh_nats.url) as bus:
        await bus.api("STREAM.CREATE.TOK_00", STREAM)
        await store(bus, "tok.00.a", b"one")
    fresh_nats.kill()
    directory = fresh_nats.store_dir / "js"
    (block,) = blocks(directory, "TOK_00")
    before = block.read_bytes()
    assert cut(directory, "TOK_00", 1) == []
    assert block.read_bytes() == before
    assert [record.seq for record in records(block)] == [1]
