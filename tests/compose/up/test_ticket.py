"""The ticket that opens the page `okome up` names."""

from __future__ import annotations

import asyncio

from broker.bus.retry import PAUSE
from compose.up.system import login_ticket
from tests.control.okome import replica, settings
from tests.fixtures.nats_server import NatsServer


async def test_it_is_asked_for_until_okome_answers(fresh_nats: NatsServer) -> None:
    asking = asyncio.create_task(login_ticket(settings(fresh_nats.url)))
    await asyncio.sleep(2 * PAUSE)
    assert not asking.done()
    async with replica(fresh_nats.url), asyncio.timeout(20):
        assert await asking
