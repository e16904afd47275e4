"""A system that runs already, known by the ready file of its `okome up`: no links, and only the parts that it has.

Its supervisor starts what dies; here is only looked at. Where it restarts as a whole, `url` and all the rest follow the
file.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from broker.bus.errors import BusUnavailable
from broker.bus.nats import Bus
from compose.chaos.decoy import Decoy
from compose.chaos.link import Link
from compose.chaos.nats_wire import NatsTap
from compose.chaos.whole import NotBack, Process, answering, placed, until
from compose.chaos.world import World
from compose.up.child import alive

BACK_TIMEOUT = 75.0


class NoSystem(Exception):
    """The ready file tells of nothing that runs; the message says why."""


class Running:
    """`async with` connects to its NATS and waits until it is whole; leaving it leaves the system as it is.

    Raises NoSystem where there is none, NotBack where it does not become whole, and BusError.
    """

    def __init__(self, world: World, ready_file: Path) -> None:
        self.world = world
        self.ready_file = ready_file
        self.links: dict[str, Link] = {}
        self.taps: dict[str, NatsTap] = {}
        self.profiles: dict[str, str] = {}
        self._told: dict[str, Any] = {}
        self._bus: Bus | None = None
        self._decoy = Decoy()

    async def __aenter__(self) -> Running:
        self.look()
        try:
            await self.connect()
            await self.whole()
        except BaseException:
            await self.disconnect()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.disconnect()
        self._decoy.close()

    # -- what runs ---------------------------------------------------------------------------------------------------

    def look(self) -> dict[str, Any]:
        """The ready file as it is now. Raises NoSystem."""
        try:
            told = json.loads(self.ready_file.read_text())
            if not isinstance(told, dict) or not {"url", "api_key", "nats_url", "data", "processes"} <= told.keys():
                raise NoSystem(f"{self.ready_file} is not the ready file of `okome up`")
        except (OSError, ValueError) as error:
            raise NoSystem(f"{self.ready_file}: {error}") from error
        self._told = told
        return told

    @property
    def url(self) -> str:
        return str(self._told["url"])

    @property
    def api_key(self) -> str:
        return str(self._told["api_key"])

    @property
    def nats_url(self) -> str:
        return str(self._told["nats_url"])

    @property
    def data(self) -> Path:
        return Path(self._told["data"])

    def processes(self, role: str = "") -> list[Process]:
        """What the ready file lists, in its order. Raises NoSystem."""
        found = []
        for one in self.look()["processes"]:
            found.append(Process(one["id"], one["role"], one["pid"], one["restarts"], one["url"] or ""))
        return [one for one in found if role in ("", one.role)]

    def process(self, id: str) -> Process:
        """Raises KeyError."""
        for one in self.processes():
            if one.id == id:
                return one
        raise KeyError(id)

    def log(self, id: str) -> str:
        """What a part has written."""
        return (self.data / "logs" / f"{id}.log").read_text(errors="replace")

    def last_end(self, id: str) -> str:
        """How a part's process ended last; its supervisor alone knows, and has said so on its screen."""
        return "its supervisor has seen how"

    @property
    def decoy(self) -> Process:
        return self._decoy.process()

    @property
    def bus(self) -> Bus:
        """A connection of our own. Raises BusUnavailable where the system did not come back."""
        if self._bus is None:
            raise BusUnavailable("nothing runs")
        return self._bus

    async def connect(self) -> None:
        """Raises BusError."""
        self._bus = await Bus.connect(self.nats_url, "okome-chaos")

    async def disconnect(self) -> None:
        """Idempotent."""
        bus, self._bus = self._bus, None
        if bus is not None:
            await bus.close()

    # -- waiting -----------------------------------------------------------------------------------------------------

    async def back(self, before: Process, timeout: float = BACK_TIMEOUT) -> Process:
        """Wait until a process that died was started again and is ready. Raises NotBack."""

        async def again() -> bool:
            now = self.process(before.id)
            return now.restarts > before.restarts and alive(now.pid) and await answering([now], self.api_key)

        try:
            async with asyncio.timeout(timeout):
                await until(again)
        except TimeoutError:
            raise NotBack(f"{before.id} is not back after {timeout:.0f} s") from None
        return self.process(before.id)

    async def whole(self, timeout: float = BACK_TIMEOUT) -> None:
        """Wait until every part runs and serves, and every ingress has all nodes up. Raises NotBack."""

        async def serving() -> bool:
            parts = self.processes()
            return (
                all(alive(part.pid) for part in parts)
                and await placed(parts, self.api_key)
                and await answering(parts, self.api_key)
            )

        try:
            async with asyncio.timeout(timeout):
                await until(serving)
        except NoSystem as error:
            raise NotBack(str(error)) from error
        except TimeoutError:
            dead = [part.id for part in self.processes() if not alive(part.pid)]
            raise NotBack(f"not whole after {timeout:.0f} s; dead: {dead}") from None

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait until something holds that no event tells of; may be a coroutine function. The caller's deadline."""
        await until(holds)
