"""A system of our own in another process, `okome up --data DIR`: killed with all that descends from it, started again.

What `compose/chaos/system.py` cannot do: there the supervisor is this very process.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from compose.chaos.subject import NoSystem, Running
from compose.chaos.whole import NotBack, Process, until
from compose.chaos.world import World
from compose.up.child import tail
from compose.up.servers import tethered

START_TIMEOUT = 90.0
STOP_TIMEOUT = 40.0
NOBODY = "http://127.0.0.1:1"  # where viewers knock while nothing runs: refused


class Household(Running):
    """Starts with `async with` in `directory`; leaving it ends everything that it started, and so does our own end."""

    def __init__(self, world: World, directory: Path) -> None:
        super().__init__(world, directory / "ready.json")
        self._directory = directory
        self._up: subprocess.Popen[bytes] | None = None
        self._environment = dict(world.environment)

    async def __aenter__(self) -> Household:
        try:
            await self.start()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        try:
            await super().__aexit__(kind, error, at)
        finally:
            await self._end()

    @property
    def url(self) -> str:
        return super().url if self._up is not None else NOBODY

    def family(self) -> list[Process]:
        """The supervisor, and all that descends from it."""
        if self._up is None:
            return []
        parents = _parents()
        known = {one.pid: one for one in self.processes()}
        found = [Process("up", "up", self._up.pid, 0, "")]
        for member in found:
            for pid in sorted(child for child, parent in parents.items() if parent == member.pid):
                found.append(known.get(pid, Process(f"child-{pid}", "child", pid, 0, "")))
        return found

    async def start(self, **environment: str) -> None:
        """Start `okome up` on the directory and wait until it is whole. `environment` is kept for later starts.

        Raises NotBack.
        """
        self._environment |= environment
        self.ready_file.unlink(missing_ok=True)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("OKOME_")}
        own = {"XDG_STATE_HOME": str(self._directory / "state"), "NO_COLOR": "1"}
        with self._said.open("ab") as said:
            up = subprocess.Popen(  # noqa: ASYNC220  # it outlives this call, and is looked at by its pid
                tethered(
                    Path(sys.executable),
                    [
                        *("-P", "-m", "compose.cli.main", "up"),
                        *("--ready-file", str(self.ready_file)),
                        *("--data", str(self._directory / "data")),
                        *("--port", "0"),
                        *(word for name, value in self.world.options.items() for word in (f"--{name}", str(value))),
                    ],
                ),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env={**clean, **own, **self._environment},
                start_new_session=True,  # Ctrl-C is not its to take
            )
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await until(lambda: self.ready_file.exists() or up.poll() is not None)
            self.look()
        except (TimeoutError, NoSystem):
            _kill([up.pid])
            raise NotBack(f"`okome up` did not start: {' / '.join(tail(self._said))}") from None
        finally:
            if up.poll() is None:
                self._up = up
        await self.connect()
        await self.whole()

    async def forget(self) -> None:
        """After its family was killed: nothing runs now, and viewers knock at a closed door."""
        up, self._up = self._up, None
        await self.disconnect()
        if up is not None:
            up.wait()

    @property
    def _said(self) -> Path:
        return self._directory / "said.log"

    async def _end(self) -> None:
        up, self._up = self._up, None
        if up is None:
            return
        up.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await until(lambda: up.poll() is not None)
        except TimeoutError:
            up.kill()  # the others end with it
            up.wait()


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _parents() -> dict[int, int]:
    """pid → its parent's, of everything that runs."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if fields[0] != "Z":
                parents[int(entry.name)] = int(fields[1])
    return parents
