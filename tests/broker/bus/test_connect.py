"""How a connection to NATS begins: what an address may say, who one is, and what is said where it comes to nothing."""

from __future__ import annotations

import time

import pytest

from broker.bus.errors import BusUnavailable
from broker.bus.nats import Bus
from tests.broker.bus.conftest import at
from tests.fixtures.nats_server import NatsServer


async def test_no_server_is_said_in_time_and_without_the_password(guarded_nats: NatsServer) -> None:
    wrong = guarded_nats.url.replace("nats://", "nats://worker:hunter2@")
    began = time.monotonic()
    with pytest.raises(BusUnavailable, match="Authorization") as caught:
        await Bus.connect(wrong, "test", timeout=1.5)
    assert "hunter2" not in str(caught.value)
    guarded_nats.kill()
    with pytest.raises(BusUnavailable, match=at(guarded_nats)):
        await Bus.connect(guarded_nats.url, "test", timeout=0.5)
    assert time.monotonic() - began < 8


@pytest.mark.parametrize("url", ["", ",", "nats://a:b", "nats://none"])
async def test_an_address_that_is_none_is_said_at_once(url: str) -> None:
    """nats-py itself fails at the last, and cannot be closed then either."""
    with pytest.raises(BusUnavailable, match="no NATS server"):
        await Bus.connect(url, "test")
