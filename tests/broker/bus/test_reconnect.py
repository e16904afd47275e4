"""A connection that is being made again, and what may end that for good in nats-py alone."""

from __future__ import annotations

import asyncio

import pytest
from nats.aio.client import Client

from broker.bus.nats import Bus
from tests.broker.bus.conftest import connected, eventually
from tests.fixtures.nats_server import NatsServer


async def test_reconnecting_goes_on_behind_an_error_that_nats_py_does_not_expect(
    fresh_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What uvloop raises where the server has closed between two words of the greeting."""
    async with connected(fresh_nats.url) as bus:
        greet = Client._process_connect_init
        broke_off = asyncio.Event()

        async def closed(client: Client) -> None:
            if client is bus._client and not broke_off.is_set():
                broke_off.set()
                client._status = Client.CONNECTING
                raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")
            await greet(client)

        monkeypatch.setattr(Client, "_process_connect_init", closed)
        fresh_nats.restart()
        await eventually(lambda: broke_off.is_set() and bus.connected, 10)
        assert await bus.api("INFO")


async def test_closing_ends_a_reconnect_that_did_not_hear_its_cancel(
    fresh_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A role whose supervisor and NATS were killed together once lived on for hours."""
    bus = await Bus.connect(fresh_nats.url, "test")
    trying = asyncio.Event()
    lost = False

    async def connect(client: Client, server: object) -> None:
        nonlocal lost
        trying.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if lost:
                raise
            lost = True
            raise ConnectionRefusedError from None  # what `wait_for` makes of a cancel when the attempt has just ended

    monkeypatch.setattr(Client, "_connect_to_server", connect)
    fresh_nats.kill()
    async with asyncio.timeout(10):
        await trying.wait()
        reconnecting = bus._client._reconnection_task
        await bus.close()
    assert lost
    assert reconnecting is not None
    try:
        assert reconnecting.done()
    finally:
        reconnecting.cancel()
