"""The nats-server that a benchmark starts and ends by itself."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

from bench.contender import LOOPBACK, free_port, listens, process
from compose import nats_server


class Nats:
    """One server in a directory, on loopback: `async with` it, or `start` and `stop` it, again and again on the same
    port and store. `pid` is that of the newest start.

    `config_dir`: its configuration, else the one that `okome up` uses.
    """

    def __init__(self, directory: Path, config_dir: Path = nats_server.CONFIG_DIR) -> None:
        port, self._monitor = free_port(), free_port()
        self.url = f"nats://{LOOPBACK}:{port}"
        self.pid = 0
        self._log = directory / "nats.log"
        self._arguments = nats_server.arguments(
            name="nats-1",
            store=directory / "store",
            host=LOOPBACK,
            port=port,
            monitor_port=self._monitor,
            config_dir=config_dir,
        )
        self._running = AsyncExitStack()

    async def start(self) -> None:
        """Returns when it serves. Raises NotStarted."""
        server = await self._running.enter_async_context(process([nats_server.program(), *self._arguments], self._log))
        await listens(self._monitor, server, self._log, "/healthz")
        self.pid = server.pid

    async def stop(self) -> None:
        """Idempotent."""
        await self._running.aclose()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
