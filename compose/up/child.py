"""One child process: started with its own log and its own process group, asked to end, made to end.

Its own session keeps the terminal's Ctrl-C away from it: the supervisor decides who ends when.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from pathlib import Path

LOG_LIMIT = 16 * 1024 * 1024
"""A log beyond this many bytes is put aside (one generation) when its part starts anew."""


class Child:
    """A running process; made by `spawn`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    @classmethod
    async def spawn(cls, argv: tuple[str, ...], env: Mapping[str, str], log: Path) -> Child:
        """Raises OSError when the program cannot be started. stdout and stderr go to the end of `log`."""
        if log.exists() and log.stat().st_size > LOG_LIMIT:
            log.replace(log.with_suffix(".log.1"))
        with log.open("ab") as out:
            process = await asyncio.create_subprocess_exec(
                *argv,
                env=dict(env),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        return cls(process)

    async def wait(self) -> int:
        """Its exit status, -N when signal N ended it. Cancelling loses nothing."""
        return await self._process.wait()

    @property
    def ended(self) -> bool:
        return self._process.returncode is not None

    def ask(self) -> None:
        """Ask it to drain and end."""
        if not self.ended:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and its process group, now. Not after it ended: its number may be somebody else's by then."""
        if self.ended:
            return
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # nothing of it is left
        except PermissionError:  # macOS says this of a group that has only zombies
            return


def describe(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def tail(log: Path, lines: int = 12) -> list[str]:
    """The last lines of a log, none when there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 16_384))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        return []


def alive(pid: int) -> bool:
    """It runs. One that ended and waits for a parent to notice (an orphan in a container without an init) does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):  # gone meanwhile, or no /proc here
        return not Path("/proc/self").exists()
