"""A connection to a node that carries one answer after another, on a transport that the test plays."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from ingress.upstream import NodeConnection
from tests.ingress.test_node_socket import Wire

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"


async def test_who_did_not_read_the_last_of_an_answer_stops_nobody_after_him() -> None:
    connection = NodeConnection(cast(Any, SimpleNamespace(heard_at=0.0)), lambda _: None)
    wire = Wire()
    connection.connection_made(cast(asyncio.Transport, wire))

    async def asked() -> None:
        asking = asyncio.ensure_future(connection.ask(b"GET / HTTP/1.1\r\n\r\n", 5))
        await asyncio.sleep(0)
        connection.data_received(HEAD)
        await asking

    got: list[bytes] = []
    await asked()
    connection.take(lambda data: connection.pause(), lambda error: None)
    connection.data_received(b"full")
    assert connection.reusable
    await asked()
    connection.take(got.append, lambda error: None)
    assert wire.reading
    connection.data_received(b"next")
    assert got == [b"next"]
