"""Keeps one part alive: start, readiness, death, restart, end. A part's states and the moves between them are here.

waiting → starting → ready → (dead → starting → ready)* → stopped
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from compose.up import restart
from compose.up.child import Child, alive, describe, tail
from compose.up.part import Part
from compose.up.probe import Probe

PROBE_INTERVAL = 0.05
LONGEST_PROBE_INTERVAL = 0.4
SLOW = 3.0
"""Seconds after which a start that is not over is worth a word."""
ENGINES_INTERVAL = 1.0


class State(StrEnum):
    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    DEAD = "dead"
    STOPPED = "stopped"


class EngineProcess(NamedTuple):
    """A worker's engine process, as the worker tells of it."""

    id: str
    pid: int
    restarts: int


class StartFailed(Exception):
    """A part did not become ready. `log` are its last lines."""

    def __init__(self, part: Part, why: str, log: Sequence[str], log_file: Path) -> None:
        super().__init__(f"{part.id} did not start: {why}")
        self.part = part
        self.why = why
        self.log = list(log)
        self.log_file = log_file


class Keeper:
    """Keeps one part. `on_change(keeper)` is called after every move, when its engines changed, and when a start that
    takes long waits for something new."""

    def __init__(
        self,
        part: Part,
        *,
        logs: Path,
        probe: Probe,
        on_change: Callable[[Keeper], None],
        start_timeout: float,
        restarting: bool = True,
        settled: float = restart.SETTLED,
    ) -> None:
        self.part = part
        self.state = State.WAITING
        self.restarts = 0
        self.took = 0.0
        """Seconds from its last start to ready."""
        self.engines: tuple[EngineProcess, ...] = ()
        self.last_end = ""
        self.waits_for = ""
        """Why it is not ready, of a start that takes more than `SLOW` seconds; else empty."""
        self.log_file = logs / f"{part.id if part.id.startswith(part.role) else f'{part.role}-{part.id}'}.log"
        self._probe = probe
        self._on_change = on_change
        self._start_timeout = start_timeout
        self._restarting = restarting
        self._settled = settled
        self._child: Child | None = None
        self._ready_at = 0.0
        self._stopping = asyncio.Event()
        self._spawning = asyncio.Lock()  # so that nothing is started behind the back of `stop`
        self._seen: dict[str, EngineProcess] = {}

    @property
    def pid(self) -> int:
        """Of the running process, or of the last one; 0 before the first."""
        return self._child.pid if self._child else 0

    @property
    def gone(self) -> bool:
        """Dead, and nobody will start it again."""
        return self.state is State.STOPPED or (self.state is State.DEAD and not self._restarting)

    async def start(self) -> None:
        """Start and wait until it is ready. Raises StartFailed; the process is ended then."""
        self._move(State.STARTING)
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with self._spawning:
                if self._stopping.is_set():
                    raise self._failed("it was stopped")
                self._child = child = await Child.spawn(self.part.argv, self.part.env, self.log_file)
        except OSError as error:
            raise self._failed(str(error)) from error
        deadline = loop.time() + self._start_timeout
        ended = asyncio.create_task(child.wait())
        interval, why = PROBE_INTERVAL, "it never answered"
        try:
            while loop.time() < deadline:
                if ended.done():
                    raise self._failed(f"it ended with {describe(ended.result())}")
                unready = await self._probe.unready(self.part.probe)
                if unready is None and not ended.done():
                    break
                why = unready or why
                if loop.time() - began >= SLOW:
                    self._wait_for(why)
                await asyncio.wait([ended], timeout=interval)
                interval = min(interval * 1.5, LONGEST_PROBE_INTERVAL)
            else:
                child.kill()
                await ended
                raise self._failed(f"not ready after {self._start_timeout:.0f} s: {why}")
        finally:
            ended.cancel()  # the child stays as it is: whoever cancels a start ends the part by `stop`
        if self.part.tells_engines:
            self._take_engines(await self._probe.engines(self.part.tells_engines))
        self._ready_at = loop.time()
        self.took = self._ready_at - began
        self._move(State.READY)

    async def keep(self) -> None:
        """Until `stop`: wait for its end, start it again. Returns when it is stopped, or dead for good."""
        loop = asyncio.get_running_loop()
        deaths = 0
        while self._child is not None:
            status = await self._wait_watching(self._child)
            if self._stopping.is_set():
                return
            self.last_end = describe(status)
            self.engines = ()
            deaths = restart.deaths_in_a_row(deaths, loop.time() - self._ready_at, self._settled)
            self._move(State.DEAD)
            while self._restarting:
                if await self._stopped_within(restart.delay(deaths, gives_way=self.part.gives_way)):
                    return
                self.restarts += 1
                try:
                    await self.start()
                except StartFailed:
                    if self._stopping.is_set():
                        return
                    deaths += 1
                    continue
                break
            else:
                return

    async def stop(self, deadline: float, hurry: asyncio.Event) -> bool:
        """Ask it to end and wait until the deadline (loop time) or `hurry`, then kill it. Idempotent.

        Says whether it ended by itself. Nothing of it is left when this returns.
        """
        self._stopping.set()
        async with self._spawning:
            child = self._child
        by_itself = True
        if child is not None and not child.ended:
            child.ask()
            ended = asyncio.create_task(child.wait())
            hurried = asyncio.create_task(hurry.wait())
            left = max(0.0, deadline - asyncio.get_running_loop().time())
            await asyncio.wait([ended, hurried], timeout=left, return_when=asyncio.FIRST_COMPLETED)
            hurried.cancel()
            if not ended.done():
                by_itself = False
                child.kill()
            await ended
        await self._bury(deadline, hurry)
        if self.state is not State.STOPPED:
            self._move(State.STOPPED)
        return by_itself

    async def _bury(self, deadline: float, hurry: asyncio.Event) -> None:
        """Engines end with their worker by themselves; what did not by the deadline is killed."""
        loop = asyncio.get_running_loop()
        left = [one.pid for one in self.engines]
        # Nothing tells of the end of another's child, so this one looks.
        while (left := [pid for pid in left if alive(pid)]) and loop.time() < deadline:
            if hurry.is_set():
                break
            await asyncio.sleep(PROBE_INTERVAL)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.engines = ()

    async def _wait_watching(self, child: Child) -> int:
        """Its exit status; meanwhile its engines are asked for, because a worker restarts an engine by itself."""
        ended = asyncio.create_task(child.wait())
        try:
            while self.part.tells_engines and not ended.done():
                await asyncio.wait([ended], timeout=ENGINES_INTERVAL)
                if not ended.done() and self._take_engines(await self._probe.engines(self.part.tells_engines)):
                    self._on_change(self)
            return await ended
        finally:
            ended.cancel()

    def _take_engines(self, told: list[dict[str, Any]]) -> bool:
        """Says whether anything changed. No answer changes nothing."""
        now = []
        for engine in told:
            name, pid = f"{self.part.id}-{engine.get('id', 'engine')}", int(engine["pid"])
            old = self._seen.get(name)
            now.append(EngineProcess(name, pid, old.restarts + (old.pid != pid) if old else 0))
        if not now or tuple(now) == self.engines:
            return False
        self.engines = tuple(now)
        self._seen.update((one.id, one) for one in now)
        return True

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return self._stopping.is_set()
        return True

    def _failed(self, why: str) -> StartFailed:
        self.last_end = why
        self._move(State.DEAD)
        return StartFailed(self.part, why, tail(self.log_file), self.log_file)

    def _wait_for(self, why: str) -> None:
        if why != self.waits_for:
            self.waits_for = why
            self._on_change(self)

    def _move(self, to: State) -> None:
        self.state, self.waits_for = to, ""
        self._on_change(self)
