"""A system to be hurt: what `okome up` would start, supervised here, with fault links where its world wants them.

Or one that runs already (`Running`): known by its ready file, with no links, and only as many parts as it has.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

from broker.bus.nats import Bus
from compose.chaos.decoy import Decoy
from compose.chaos.disk import SmallDisk
from compose.chaos.link import Link
from compose.chaos.nats_wire import NatsTap
from compose.chaos.whole import NotBack, Process, answering, joined, placed, until
from compose.chaos.world import World
from compose.up import plan
from compose.up.datadir import DataDir
from compose.up.keeper import Keeper, State
from compose.up.options import Options
from compose.up.part import Part
from compose.up.ports import Ports
from compose.up.probe import Probe
from compose.up.supervisor import Supervisor

LOOPBACK = "127.0.0.1"
BACK_TIMEOUT = 75.0
"""More than the longest time that a role may need to be ready."""
SETTLED = 0.5
"""Seconds after which a part has earned a restart without a pause: here parts die because they are killed."""


class System:
    """Starts with `async with`; leaving it ends everything that it started."""

    def __init__(self, world: World, directory: Path) -> None:
        self.world = world
        self.api_key = ""
        self.url = ""
        self.nats_url = ""
        self.redis_url = ""
        self.links: dict[str, Link] = {}
        """`<part>.http` before a node, `<part>.nats` between a role and NATS, `<from>><to>` between NATS servers."""
        self.taps: dict[str, NatsTap] = {}
        """Of the links between a role and NATS, by the link's name."""
        self.profiles: dict[str, str] = {}
        """Where a NATS server tells what it holds in memory, by its id."""
        self.data: Path = directory
        self._directory = directory
        self._stack = AsyncExitStack()
        self._keepers: dict[str, Keeper] = {}
        self._moved = asyncio.Event()
        self._supervisor: Supervisor | None = None
        self._bus: Bus | None = None
        self._decoy = Decoy()

    async def __aenter__(self) -> System:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._stack.aclose()
        self._decoy.close()

    # -- what runs ---------------------------------------------------------------------------------------------------

    def processes(self, role: str = "") -> list[Process]:
        """What is meant to run, in order of its ids; engines among it."""
        found = []
        for keeper in self._keepers.values():
            part = keeper.part
            found.append(Process(part.id, part.role, keeper.pid, keeper.restarts, part.url or ""))
            found += [Process(one.id, "engine", one.pid, one.restarts, "") for one in keeper.engines]
        return [one for one in found if role in ("", one.role)]

    def process(self, id: str) -> Process:
        """Raises KeyError."""
        for one in self.processes():
            if one.id == id:
                return one
        raise KeyError(id)

    def log(self, id: str) -> str:
        """What a part has written."""
        return self._keepers[id].log_file.read_text(errors="replace")

    def last_end(self, id: str) -> str:
        """How a part's process ended last, in words; "" where none has."""
        return self._keepers[id].last_end

    @property
    def decoy(self) -> Process:
        return self._decoy.process()

    @property
    def bus(self) -> Bus:
        """A connection of our own, past every link."""
        assert self._bus is not None
        return self._bus

    # -- waiting -----------------------------------------------------------------------------------------------------

    async def back(self, before: Process, timeout: float = BACK_TIMEOUT) -> Process:
        """Wait until a process that died was started again and is ready. Raises NotBack."""
        keeper = self._keepers[before.id]
        try:
            async with asyncio.timeout(timeout):
                while keeper.restarts <= before.restarts or keeper.state is not State.READY:
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            raise NotBack(f"{before.id} is not back after {timeout:.0f} s: {keeper.last_end}") from None
        return self.process(before.id)

    async def whole(self, timeout: float = BACK_TIMEOUT) -> None:
        """Wait until every part is ready, and every ingress has all nodes up and is joined to them. Raises NotBack."""
        try:
            async with asyncio.timeout(timeout):
                while any(keeper.state is not State.READY for keeper in self._keepers.values()):
                    self._moved.clear()
                    await self._moved.wait()
                await until(self._serving)
        except TimeoutError:
            states = {id: keeper.state.value for id, keeper in self._keepers.items()}
            raise NotBack(f"not whole after {timeout:.0f} s: {states}") from None

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait until something holds that no event tells of; may be a coroutine function. The caller's deadline."""
        await until(holds)

    async def _serving(self) -> bool:
        parts, key = self.processes(), self.api_key
        return await placed(parts, key) and await joined(parts, key) and await answering(parts, key)

    # -- starting ----------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        ports = self._stack.enter_context(Ports())
        data = self._stack.enter_context(DataDir(self._directory / "data"))
        self.data = data.path
        if self.world.small_disk:
            self._stack.enter_context(SmallDisk(data.path / "nats-1", self.world.small_disk))
        self.api_key, _ = data.api_key()
        options = Options(port=0, data=data.path, **self.world.options)
        environment = {**os.environ, **self.world.environment}
        planned = plan.make(options, data, ports, self.api_key, environment)
        self.url, self.nats_url, self.redis_url = planned.url, planned.nats_url, planned.redis_url
        stages = [[await self._linked(self._profiled(part, ports)) for part in stage] for stage in planned.stages]
        probe = Probe()
        self._stack.push_async_callback(probe.close)
        self._supervisor = Supervisor(
            stages, logs=data.logs, probe=probe, on_change=self._changed, settled=SETTLED, stop_timeout=self.world.stop
        )
        self._keepers = {keeper.part.id: keeper for keeper in self._supervisor.keepers}
        await self._stack.enter_async_context(self._supervisor)
        await self._supervisor.start()
        self._bus = await Bus.connect(self.nats_url, "okome-chaos")
        self._stack.push_async_callback(self._bus.close)
        await self.whole()

    def _changed(self, keeper: Keeper) -> None:
        self._moved.set()

    def _profiled(self, part: Part, ports: Ports) -> Part:
        """A NATS server that may be asked for its heap."""
        if part.role != "nats":
            return part
        port = ports.free()
        self.profiles[part.id] = f"http://{LOOPBACK}:{port}"
        return dataclasses.replace(part, argv=(*part.argv, "--profile", str(port)))

    async def _linked(self, part: Part) -> Part:
        """The part with links where its world wants them."""
        if part.role == "nats" and len(self.nats_url.split(",")) > 1 and self.world.linked_routes:
            return dataclasses.replace(part, argv=await self._route_links(part.argv, part.id))
        if part.id not in self.world.linked:
            return part
        env = dict(part.env)
        prefix = f"OKOME_{part.role.upper()}_"
        nats = await self._link(f"{part.id}.nats", self.nats_url, wire=True)
        env[f"{prefix}NATS_URL"] = f"nats://{LOOPBACK}:{nats.port}"
        if part.role == "node" and part.url:
            http = await self._link(f"{part.id}.http", part.url)
            env[f"{prefix}PUBLIC_URL"] = f"http://{LOOPBACK}:{http.port}"
        return dataclasses.replace(part, env=env)

    async def _link(self, name: str, upstream: str, *, wire: bool = False) -> Link:
        where = urlsplit(upstream)
        tap = NatsTap() if wire else None
        if tap is not None:
            self.taps[name] = tap
        link = Link(name, wire=tap)
        await link.open()
        self._stack.push_async_callback(link.close)
        link.aim(where.hostname or LOOPBACK, where.port or 0)
        self.links[name] = link
        return link

    async def _route_links(self, argv: tuple[str, ...], id: str) -> tuple[str, ...]:
        """A server's routes through links of its own, and no address by which others could come in past them."""
        line = list(argv)
        routes = line.index("--routes") + 1
        own = line[line.index("--cluster") + 1]
        through = []
        for number, route in enumerate(line[routes].split(","), 1):
            if route == own:
                continue
            link = await self._link(f"{id}>nats-{number}", route)
            through.append(f"nats://{LOOPBACK}:{link.port}")
        line[routes] = ",".join(through)
        nowhere = self._stack.enter_context(Ports()).free()  # bound and not listened on: whoever dials it is refused
        return (*line, "--cluster_advertise", f"{LOOPBACK}:{nowhere}")
