"""A store that acknowledges nothing is a reason not to be ready; one that was slow once is none."""

from __future__ import annotations

import asyncio

import pytest

from broker.bus import log
from broker.bus.errors import BusUnavailable
from broker.bus.nats import Bus
from broker.bus.storing import FORGOTTEN, PATIENCE, Storing
from tests.broker.bus.conftest import make_stream


def test_one_failure_is_none_and_two_far_apart_with_nothing_stored_between_are() -> None:
    storing = Storing()
    storing.failed("$KV.a.x", 100.0, "slow")
    storing.failed("$KV.a.y", 100.0 + PATIENCE - 0.1, "slow")
    storing.worked("$KV.b.x")
    assert storing.trouble(105.0) is None
    storing.failed("$KV.a.x", 100.0 + PATIENCE, "no space left on device")
    assert "$KV.a (no space left on device)" in (storing.trouble(105.0) or "")
    assert storing.trouble(105.0 + FORGOTTEN) is None, "nobody has tried since: it may be well"
    storing.failed("$KV.a.x", 1000.0, "slow")
    storing.failed("$KV.a.x", 1000.0 + PATIENCE, "slow")
    storing.worked("$KV.a.z")
    assert storing.trouble(1000.0 + PATIENCE) is None
    storing.failed("$KV.a.x", 1100.0, "slow")
    assert storing.trouble(1100.0) is None


async def test_every_store_is_noted(local_bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.bus.storing.PATIENCE", 0.0)
    stream = await make_stream(local_bus)
    with pytest.raises(BusUnavailable):
        await log.store(local_bus, "nobody.keeps.this", b"x", timeout=0.2)
    now = asyncio.get_running_loop().time()
    assert "nobody.keeps" in (local_bus.storing.trouble(now) or "")
    await make_stream(local_bus, name=f"{stream}N", subjects=["nobody.>"])
    await log.store(local_bus, "nobody.keeps.that", b"x", timeout=10)
    assert local_bus.storing.trouble(now) is None
