"""Our own path as a contender: `okome up` with its defaults but one node and limits that refuse nobody, its worker
asking the same engine. Viewers are not paced (`bench.load`): a token's way is measured, not what a reader is spared.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.contender import START_TIMEOUT, Dialect, NotStarted, Running, process
from bench.nats import Nats
from broker.bus.version import VERSION
from compose import nats_server
from compose.up.roles import LOG_MAX_BYTES, PARTITIONS

ENVIRONMENT = {
    # Limits that count, and refuse nobody: the load is one client.
    "OKOME_INGRESS_KEY_LIMIT": "10000000/minute",
    "OKOME_INGRESS_SESSION_LIMIT": "10000000/minute",
    "OKOME_INGRESS_IP_LIMIT": "10000000/minute",
    "OKOME_WORKER_SLOTS": "20000",
    "OKOME_WORKER_SCRIPTED_SLOTS": "20000",
    "OKOME_WORKER_OPENAI_MODELS": "mock",
}
PUBLISHED = " from publish to read"
AT_ONCE = ", each token at once"
LOGS = {PARTITIONS: "8", LOG_MAX_BYTES: str(512 * 1024 * 1024)}
"""Of a NATS server that `okome up` is given."""
SYNC = "sync_interval: always"
"""The line of compose/nats/single.conf that the default stands in."""


@dataclass(frozen=True)
class Okome:
    """The whole durable path: worker, NATS with a file store, node, ingress; and what else runs beside them.

    synced: how often NATS syncs its files, as it does with three servers; "" is the default of one: before every ack.
    servers: of NATS, that `okome up` starts; all of them store every frame.
    processes: nodes, and ingresses. published: the worker makes the tokens itself, just before it publishes them.
    frames: seconds between two frames of an answer (OKOME_WORKER_FRAME_INTERVAL). collecting: as is the default; else
    tokens never collect, however many there are.
    """

    websocket: bool = False
    synced: str = ""
    servers: int = 1
    processes: int = 1
    published: bool = False
    frames: float = 0.0
    collecting: bool = True
    version: str = VERSION
    missing: str = ""

    @property
    def name(self) -> str:
        many = f", {self.processes} nodes and ingresses" * (self.processes > 1)
        what = "okome" + PUBLISHED * self.published + " over WebSocket" * self.websocket
        return (
            what
            + f", {self.servers} NATS servers" * (self.servers > 1)
            + f", synced every {self.synced}" * bool(self.synced)
            + many
            + f", a frame every {self.frames:g} s" * bool(self.frames)
            + AT_ONCE * (not self.collecting)
        )

    @asynccontextmanager
    async def start(self, engine: str, directory: Path) -> AsyncIterator[Running]:
        async with AsyncExitStack() as stack:
            argv = ["--engine", "openai", "--nodes", str(self.processes), "--ingresses", str(self.processes)]
            processes: dict[str, int] = {}
            environment: Mapping[str, str] = {}
            if self.servers > 1:
                argv += ["--nats", str(self.servers)]
            if self.synced:
                url, pid = await self._own_nats(directory, stack)
                argv += ["--nats-url", url]
                environment = LOGS
                processes["nats-1"] = pid
            if not self.collecting:
                environment = {**environment, "OKOME_WORKER_COLLECT_ABOVE": "0"}
            if self.frames:
                environment = {**environment, "OKOME_WORKER_FRAME_INTERVAL": str(self.frames)}
            environment = {**environment, "OKOME_WORKER_OPENAI_URL": f"{engine}/v1"}
            told = await stack.enter_async_context(up(directory, argv, environment))
            processes |= {one["id"]: one["pid"] for one in told["processes"]}
            dialect: Dialect = "okome-websocket" if self.websocket else "okome"
            dialect = "okome-scripted" if self.published else dialect
            metrics = {one["id"]: one["metrics"] for one in told["processes"] if one["metrics"]}
            yield Running(dialect, told["url"], told["api_key"], processes, metrics)

    async def _own_nats(self, directory: Path, stack: AsyncExitStack) -> tuple[str, int]:
        config = directory / "nats"
        shutil.copytree(nats_server.CONFIG_DIR, config)
        single = config / nats_server.SINGLE.name
        text = single.read_text()
        assert SYNC in text
        single.write_text(text.replace(SYNC, f'sync_interval: "{self.synced}"'))
        server = await stack.enter_async_context(Nats(directory, config))
        return server.url, server.pid


@asynccontextmanager
async def up(directory: Path, more: list[str], environment: Mapping[str, str]) -> AsyncIterator[Mapping[str, Any]]:
    """`okome up`; its ready file. Raises NotStarted."""
    ready, log = directory / "ready.json", directory / "okome.log"
    argv = [sys.executable, "-P", "-m", "compose.cli.main", "up", "--port", "0", *more]
    argv += ["--data", str(directory / "data"), "--ready-file", str(ready)]
    async with process(argv, log, {**ENVIRONMENT, **environment}) as child:
        try:
            async with asyncio.timeout(START_TIMEOUT):
                while not ready.is_file() and child.returncode is None:  # noqa: ASYNC110  # nothing tells of it
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pass
        if not ready.is_file():
            raise NotStarted(f"okome: {log.read_text()[-500:]}")
        told: Mapping[str, Any] = json.loads(ready.read_text())
        yield told
