"""The bed on a NATS server of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from broker.bus import patience
from broker.bus.nats import Bus
from tests.fixtures.nats_server import NatsServer
from tests.gpu_worker.bed import DEADLINE, Bed
from tests.gpu_worker.slow import Slow


@pytest.fixture
async def bed(fresh_nats: NatsServer) -> AsyncIterator[Bed]:
    """Streams and buckets made, frames and beats being read."""
    bed = Bed(fresh_nats.url, await Bus.connect(fresh_nats.url, "bed"))
    await bed.make()
    yield bed
    await bed.close()


@pytest.fixture
async def slow(nats: NatsServer) -> AsyncIterator[Slow]:
    """A connection that is answered when the test says so."""
    slow = await Slow.connect(nats.url, "slow")
    assert isinstance(slow, Slow)
    yield slow
    await slow.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever connects from now on waits for answers: on a busy machine one takes 50 ms, and would count as lost."""
    monkeypatch.setattr(patience, "LEAST", DEADLINE)
    monkeypatch.setattr(patience, "MOST", DEADLINE)
