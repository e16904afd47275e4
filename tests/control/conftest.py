"""One replica and a connection to its NATS server, for tests that harm neither."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from broker.bus.nats import Bus
from control.app import Okome
from tests.control.okome import connected, replica
from tests.fixtures.nats_server import NatsServer


@pytest.fixture
async def okome(fresh_nats: NatsServer) -> AsyncIterator[Okome]:
    async with replica(fresh_nats.url) as started:
        yield started


@pytest.fixture
async def bus(fresh_nats: NatsServer) -> AsyncIterator[Bus]:
    async with connected(fresh_nats.url) as connection:
        yield connection
