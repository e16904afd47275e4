"""A store that acknowledges nothing is a reason not to be ready; one that was slow once is none."""

from __future__ import annotations

import pytest

from broker.bus import log
from broker.bus.errors import BusUnavailable
from broker.bus.nats import Bus
from broker.bus.storing import PATIENCE, Storing
from tests.broker.bus.conftest import make_stream


def test_one_failure_is_none_and_two_far_apart_with_nothing_stored_between_are() -> None:
    storing = Storing()
    storing.failed(100.0, "slow")
    storing.failed(100.0 + PATIENCE - 0.1, "slow")
    assert storing.trouble() is None
    storing.failed(100.0 + PATIENCE, "no space left on device")
    assert "no space left on device" in (storing.trouble() or "")
    storing.worked()
    assert storing.trouble() is None
    storing.failed(1000.0, "slow")
    assert storing.trouble() is None


async def test_every_store_is_noted(local_bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.bus.storing.PATIENCE", 0.0)
    stream = await make_stream(local_bus)
    with pytest.raises(BusUnavailable):
        await log.store(local_bus, "nobody.keeps.this", b"x", timeout=0.2)
    assert local_bus.storing.trouble() is not None
    await log.store(local_bus, f"{stream}.a", b"x", timeout=10)
    assert local_bus.storing.trouble() is None
