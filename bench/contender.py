"""A contender: something that brings an engine's tokens to viewers, started for one run and ended after it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from compose.chaos.http import call
from compose.up.servers import tethered

START_TIMEOUT = 60.0
END_TIMEOUT = 15.0
LOOPBACK = "127.0.0.1"
ROOT = Path(__file__).parent.parent
Dialect = Literal["chat", "okome", "okome-scripted", "okome-websocket", "durable"]


class NotStarted(Exception):
    """A process ended, or did not listen in time; the message has its last words."""


@dataclass(frozen=True)
class Running:
    """Where it takes requests, the key it wants, its processes by name, and where these tell what they count."""

    dialect: Dialect
    url: str
    key: str
    processes: Mapping[str, int]
    metrics: Mapping[str, str] = field(default_factory=dict)


class Contender(Protocol):
    """One line of a table. `missing`: the command that installs it, "" if it is here."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def missing(self) -> str: ...

    def start(self, engine: str, directory: Path) -> AbstractAsyncContextManager[Running]:
        """In front of the engine at this URL (without /v1), with its files in this directory. Raises NotStarted."""


def free_port() -> int:
    """A port that was free a moment ago: peers take no socket, only a number."""
    with socket.create_server((LOOPBACK, 0)) as server:
        return int(server.getsockname()[1])


@asynccontextmanager
async def process(
    argv: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A child that is ended with the block: asked first, killed after END_TIMEOUT. What it says goes to `log`.

    It dies with this process too. Raises NotStarted where the program may not be run.
    """
    program = Path(shutil.which(argv[0]) or argv[0])
    try:
        command = tethered(program, [str(word) for word in argv[1:]])
    except PermissionError as error:
        raise NotStarted(str(error)) from error
    with log.open("wb") as file:
        child = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        try:
            async with asyncio.timeout(END_TIMEOUT):
                await child.wait()
        except TimeoutError:
            pass
        with contextlib.suppress(ProcessLookupError):  # what it has started and left
            os.killpg(child.pid, 9)
        await child.wait()


async def listens(port: int, child: asyncio.subprocess.Process, log: Path, path: str = "/health") -> None:
    """Wait until a GET is answered with 200. Raises NotStarted."""
    try:
        async with asyncio.timeout(START_TIMEOUT):
            while child.returncode is None:
                if await _answers(port, path):
                    return
                await asyncio.sleep(0.1)
    except TimeoutError:
        pass
    raise NotStarted(f"{log.stem}: {_last_words(log)}")


async def _answers(port: int, path: str) -> bool:
    try:
        return (await call(f"http://{LOOPBACK}:{port}", "GET", path, "")).status == 200
    except (OSError, EOFError):
        return False


def _last_words(log: Path) -> str:
    return log.read_text(errors="replace")[-500:].strip() or "it said nothing"


@asynccontextmanager
async def mock_engine(directory: Path) -> AsyncIterator[tuple[str, int]]:
    """The engine that all of them ask: its URL and its pid."""
    port, log = free_port(), directory / "engine.log"
    async with process([sys.executable, "-P", "-m", "bench.mock_engine", str(port)], log) as child:
        await listens(port, child, log)
        yield f"http://{LOOPBACK}:{port}", child.pid
