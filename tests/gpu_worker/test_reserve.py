"""Tokens stop while there is still room for the ends of what runs."""

from __future__ import annotations

from broker.bus import log
from broker.bus.nats import Bus
from gpu_worker.reserve import Reserve
from tests.fixtures.nats_server import NatsServer
from tests.gpu_worker.bed import Bed

TERMINALS = 8


async def test_what_is_kept_holds_terminals(fresh_nats: NatsServer) -> None:
    bed = Bed(fresh_nats.url, await Bus.connect(fresh_nats.url, "bed"))
    await bed.make(max_bytes=200_000)
    reserve = Reserve(bed.bus)
    await reserve.learn("TOK_00")
    subject, frames = "tok.00.plainbytes", 0
    while reserve.take("TOK_00", 999):
        await log.store(bed.bus, subject, _frame(999, frames))
        frames += 1
    assert frames > 100
    for _ in range(TERMINALS):
        await log.store(bed.bus, subject, _frame(300, 0))
    await bed.close()


def _frame(size: int, number: int) -> bytes:
    return f"okome/1 token g1 1 a {number} {number} 1\n".encode().ljust(size, b"x")


async def test_a_stream_without_a_bound_or_never_asked_is_never_full(fresh_nats: NatsServer) -> None:
    bed = Bed(fresh_nats.url, await Bus.connect(fresh_nats.url, "bed"))
    await bed.make()
    reserve = Reserve(bed.bus)
    assert reserve.take("TOK_00", 10**12)
    await reserve.learn("TOK_00")
    assert reserve.take("TOK_00", 10**12)
    reserve.forget(set())
    assert reserve.take("TOK_00", 10**12)
    await bed.close()
