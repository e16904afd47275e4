"""A store that acknowledges nothing is a reason not to be ready; one that was slow once is none."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from broker.bus import log, store_health
from broker.bus.errors import BusUnavailable
from broker.bus.health import Health
from broker.bus.nats import Bus, Heard
from broker.bus.storing import FORGOTTEN, PATIENCE, Storing
from tests.broker.bus.conftest import make_stream

PROPOSED = b'{"error":{"code":400,"err_code":10164,"description":"a message is being proposed"}}'
FENCED = b'{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 7"}}'


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


@pytest.mark.parametrize(("answer", "stands"), [(PROPOSED, True), (FENCED, False)], ids=["proposed", "fenced"])
async def test_what_is_being_proposed_for_ever_is_not_stored_and_a_fence_that_holds_is_an_answer(
    local_bus: Bus, monkeypatch: pytest.MonkeyPatch, answer: bytes, stands: bool
) -> None:
    monkeypatch.setattr("broker.bus.storing.PATIENCE", 0.0)
    monkeypatch.setattr(local_bus, "call", lambda *call: call[-1](Heard("tok.07.x", "", answer)))
    for _ in range(2):
        log.store_soon(local_bus, "tok.07.x", b"x", 1, lambda answer: None)
    trouble = local_bus.storing.trouble(asyncio.get_running_loop().time())
    assert ("tok.07" in (trouble or "")) == stands


def test_a_role_says_once_that_nothing_is_stored_and_once_that_this_is_over() -> None:
    health, storing = Health("sample", "s1"), Storing()
    storing.failed("tok.07.x", 100.0, "no space left on device")
    storing.failed("tok.07.y", 100.0 + PATIENCE, "no space left on device")
    with capture_logs() as said:
        for now in (106.0, 107.0):
            store_health.tell(health, storing, now)
            assert "NATS stores nothing in tok.07" in health.reasons["store"]
            assert REGISTRY.get_sample_value("okome_store_failing") == 1
        storing.worked("tok.07.x")
        for now in (108.0, 109.0):
            store_health.tell(health, storing, now)
            assert "store" not in health.reasons
            assert REGISTRY.get_sample_value("okome_store_failing") == 0
    assert [(line["event"], line["log_level"]) for line in said] == [
        ("store.stalled", "warning"),
        ("store.stall_ended", "info"),
    ]
