"""Our own path as a contender: `okome up` with its defaults, one of each role, its worker asking the same engine."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.contender import START_TIMEOUT, Dialect, NotStarted, Running, process
from broker.bus.version import VERSION

ENVIRONMENT = {
    # Limits that count, and refuse nobody: the load is one client.
    "OKOME_INGRESS_KEY_LIMIT": "10000000/minute",
    "OKOME_INGRESS_SESSION_LIMIT": "10000000/minute",
    "OKOME_INGRESS_IP_LIMIT": "10000000/minute",
    "OKOME_WORKER_SLOTS": "20000",
    "OKOME_WORKER_OPENAI_MODELS": "mock",
}


@dataclass(frozen=True)
class Okome:
    """The whole durable path: worker, NATS with a file store, node, ingress; and what else runs beside them."""

    websocket: bool = False
    version: str = VERSION
    missing: str = ""

    @property
    def name(self) -> str:
        return "okome over WebSocket" if self.websocket else "okome"

    @asynccontextmanager
    async def start(self, engine: str, directory: Path) -> AsyncIterator[Running]:
        ready = directory / "ready.json"
        argv = [sys.executable, "-P", "-m", "compose.cli.main", "up", "--port", "0", "--nodes", "1"]
        argv += ["--engine", "openai", "--data", str(directory / "data"), "--ready-file", str(ready)]
        environment = {**ENVIRONMENT, "OKOME_WORKER_OPENAI_URL": f"{engine}/v1"}
        log = directory / "okome.log"
        async with process(argv, log, environment) as child:
            try:
                async with asyncio.timeout(START_TIMEOUT):
                    while not ready.is_file():
                        if child.returncode is not None:
                            raise NotStarted(f"okome: {log.read_text()[-500:]}")
                        await asyncio.sleep(0.05)
            except TimeoutError as error:
                raise NotStarted(f"okome: {log.read_text()[-500:]}") from error
            told = json.loads(ready.read_text())
            processes = {one["id"]: one["pid"] for one in told["processes"]}
            dialect: Dialect = "okome-websocket" if self.websocket else "okome"
            yield Running(dialect, told["url"], told["api_key"], processes)
