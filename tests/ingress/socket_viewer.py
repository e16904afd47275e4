"""A client's WebSocket through an ingress, and all that it was told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.ingress.conftest import DEADLINE, Ingress
from tests.ingress.fake_node import SID


class Viewer:
    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.messages: list[dict[str, Any]] = []

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(DEADLINE):
            message: dict[str, Any] = json.loads(await self.socket.recv())
        self.messages.append(message)
        return message

    async def say(self, event: str, **data: str) -> None:
        await self.socket.send(json.dumps({"event": event, "data": data}, separators=(",", ":")))

    async def until(self, event: str) -> dict[str, Any]:
        while (message := await self.next())["event"] != event:
            pass
        return message

    async def tokens(self, total: int) -> None:
        while sum(m["event"] == "token" for m in self.messages) < total:
            await self.next()

    @property
    def names(self) -> list[str]:
        return [message["event"] for message in self.messages]

    @property
    def transcript(self) -> str:
        return "".join(m["data"]["text"] for m in self.messages if m["event"] == "token")

    async def closed(self) -> int:
        """The close code, after whatever still comes."""
        with pytest.raises(ConnectionClosed) as closed:
            await self.until("nothing has this name")
        assert closed.value.rcvd is not None
        return closed.value.rcvd.code


@asynccontextmanager
async def viewer(relay: Ingress, query: str = "", **options: Any) -> AsyncIterator[Viewer]:
    url = f"ws://127.0.0.1:{relay.port}/v1/sessions/{SID}/ws" + (f"?{query}" if query else "")
    async with connect(url, **{"subprotocols": ["okome.v1", "bearer.jwt"], "proxy": None, **options}) as socket:
        yield Viewer(socket)
