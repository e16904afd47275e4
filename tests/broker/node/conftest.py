"""A node with an OKOME and a played worker beside it, on a server of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import httpx
import pytest

from broker.bus.log import stream_info
from broker.bus.nats import Bus
from broker.bus.subjects import new_session_id
from broker.node import role
from control.app import Okome
from tests.control.okome import PlayedWorker, connected, replica, until, worker
from tests.fixtures.nats_server import NatsServer
from tests.fixtures.node import RunningNode, running_node

LOGS = ("TOK_00", "TOK_01", "JOBS")


class Plane(NamedTuple):
    """What an API client talks to."""

    node: RunningNode
    okome: Okome
    worker: PlayedWorker
    bus: Bus

    @property
    def http(self) -> httpx.AsyncClient:
        return self.node.http

    @property
    def key(self) -> dict[str, str]:
        """Headers of a program."""
        return {"authorization": f"Bearer {self.node.api_key}"}

    async def session(self, **body: Any) -> dict[str, Any]:
        answer = await self.http.post("/v1/sessions", json=body, headers=self.key)
        assert answer.status_code == 201, answer.text
        self.http.cookies.clear()  # a program has none
        made: dict[str, Any] = answer.json()
        return made

    async def jobs(self) -> int:
        """Generations that wait for a worker, or are held by one."""
        return (await stream_info(self.bus, "JOBS")).messages

    async def written(self) -> list[int]:
        """The last sequence of every log and of the queue: what a refused request must not change."""
        return [(await stream_info(self.bus, stream)).last_seq for stream in LOGS]


@pytest.fixture(autouse=True)
def nodes_leave_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """No ingress reads that they are leaving; the one test about that says how long they wait."""
    monkeypatch.setattr(role, "DRAIN_NOTICE", 0.01)


@pytest.fixture
async def plane(fresh_nats: NatsServer) -> AsyncIterator[Plane]:
    async with (
        running_node(fresh_nats, "node-p") as node,
        replica(fresh_nats.url) as okome,
        connected(fresh_nats.url, "w") as bus,
        worker(okome, bus) as played,
    ):
        made = Plane(node, okome, played, bus)
        await until(lambda: _believes(made), "the node has heard of OKOME's signing key")
        yield made


async def _believes(plane: Plane) -> bool:
    """Whether the node believes a token of OKOME's: it is of a session that does not exist."""
    sid = new_session_id("00")
    token = plane.okome.keyring.signing.session("acme", "key1", sid, "read", "finish", 600)[0]
    answer = await plane.http.get(f"/v1/sessions/{sid}", headers={"authorization": f"Bearer {token}"})
    return answer.status_code == 404
