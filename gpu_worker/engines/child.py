"""The engine's child process: started, watched, restarted when it dies or hangs, gone when its worker is."""

import asyncio
import contextlib
import os
import secrets
import sys
import time
from collections import deque
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import structlog

from gpu_worker.engines import http
from gpu_worker.engines.engine import EngineFailed, EngineSettings
from gpu_worker.engines.http import Endpoint
from gpu_worker.engines.refused import Refused

PROGRAM = Path(__file__).with_name("smollm2_child.py")
END_TIMEOUT = 2.0
"""Seconds a child has to end by itself when its stdin closes."""
BACKOFF_LOW, BACKOFF_HIGH = 0.05, 5.0
"""Seconds before a restart: at once in effect the first time, doubling while starts keep failing."""
MISSES = 2
"""Health checks in a row that may go unanswered."""
LINE_LENGTH = 300
"""Characters kept of a line of the child's stderr."""
STEADY = 10.0
"""A child that lived so many seconds starts the backoff anew."""

_log = structlog.get_logger()


class _Ready(msgspec.Struct):
    address: str


class Child:
    """One child at a time, each under its own incarnation. `start` → `endpoint` … → `close`."""

    def __init__(self, model: str, settings: EngineSettings) -> None:
        self._model = model
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None
        self._endpoint: Endpoint | None = None
        self._incarnation = 0
        self._changed = asyncio.Condition()
        self._watch: asyncio.Task[None] | None = None
        self._stderr: deque[str] = deque(maxlen=20)
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Of the child that runs now."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def restarts(self) -> int:
        """Children that were started beyond the first."""
        return max(0, self._incarnation - 1)

    async def start(self) -> None:
        """The first child is ready when it returns. Raises EngineFailed, having left nothing running."""
        self._watch = asyncio.create_task(self._keep(), name="engine-child")
        try:
            await self.endpoint()
        except BaseException:
            await self.close()
            raise

    async def endpoint(self, newer_than: int = 0) -> Endpoint:
        """Where the child listens, waiting up to `start_timeout` for one of a later incarnation. Raises
        EngineFailed.
        """
        watch = self._watch

        def settled() -> bool:
            return (
                self._closed
                or watch is None
                or watch.done()
                or (self._endpoint is not None and self._endpoint.incarnation > newer_than)
            )

        try:
            async with asyncio.timeout(self._settings.start_timeout), self._changed:
                await self._changed.wait_for(settled)
        except TimeoutError:
            raise self._failed(
                f"the engine's process was not ready within {self._settings.start_timeout:g} s"
            ) from None
        if self._endpoint is None or self._endpoint.incarnation <= newer_than:
            raise self._failed("the engine's process is not running")
        return self._endpoint

    async def close(self) -> None:
        """No child runs when it returns. Idempotent."""
        self._closed = True
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait({self._watch})
        async with self._changed:
            self._changed.notify_all()

    def _failed(self, message: str) -> EngineFailed:
        said = "; ".join(self._stderr)
        return EngineFailed("engine_failed", f"{message} ({said})" if said else message, retryable=True)

    async def _keep(self) -> None:
        backoff = BACKOFF_LOW
        try:
            while True:
                began = time.monotonic()
                worked, why = await self._live()
                lived = time.monotonic() - began
                _log.warning("engine.child_ended", why=why, lived=round(lived, 3), incarnation=self._incarnation)
                if not worked and self._incarnation == 1:
                    return  # a wrong installation, which restarting does not cure: start() reports it
                await asyncio.sleep(backoff)
                backoff = BACKOFF_LOW if lived > STEADY else min(backoff * 2, BACKOFF_HIGH)
        finally:
            await self._set(None)

    async def _live(self) -> tuple[bool, str]:
        """One child from birth to death: whether it ever worked, and why it ended."""
        worked = False
        try:
            process = self._process = await self._spawn()
        except OSError as error:
            return worked, str(error)
        reading = asyncio.create_task(self._read_stderr(process), name="engine-stderr")
        try:
            endpoint = await self._ready(process)
            worked = True
            await self._set(endpoint)
            _log.info("engine.child_ready", pid=process.pid, incarnation=endpoint.incarnation)
            return worked, await self._watch_over(process, endpoint)
        except TimeoutError:
            return worked, f"not ready within {self._settings.start_timeout:g} s"
        except (OSError, EOFError, ValueError, msgspec.DecodeError) as error:
            return worked, str(error) or type(error).__name__
        finally:
            await self._set(None)
            await _end(process)
            await reading

    async def _spawn(self) -> asyncio.subprocess.Process:
        self._incarnation += 1
        self._stderr.clear()
        environment = dict(os.environ)
        # Read when OpenMP loads: else its threads spin at barriers, on the cores that the rest of the system needs.
        environment.setdefault("OMP_WAIT_POLICY", "passive")
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # the program's folder is no place to import from
            str(PROGRAM),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )

    async def _ready(self, process: asyncio.subprocess.Process) -> Endpoint:
        assert process.stdin is not None
        assert process.stdout is not None
        settings, key = self._settings, secrets.token_urlsafe(24)
        order = {
            "parent": os.getpid(),
            "model": self._model,
            "key": key,  # by pipe: arguments and environment are there for others to read
            "slots": settings.slots,
            "context_length": settings.context_length,
            "batch": settings.batch,
            "threads": settings.threads,
        }
        async with asyncio.timeout(settings.start_timeout):
            process.stdin.write(msgspec.json.encode(order) + b"\n")
            await process.stdin.drain()
            line = await process.stdout.readline()
            if not line:
                raise EOFError(f"it ended at its start with status {await process.wait()}")
            where = urlsplit(msgspec.json.decode(line, type=_Ready).address)
            if where.hostname is None or where.port is None:
                raise ValueError("it says no address")
            return Endpoint(where.hostname, where.port, key, self._incarnation)

    async def _watch_over(self, process: asyncio.subprocess.Process, endpoint: Endpoint) -> str:
        """Returns why the child is no longer of use. `/slots` is answered by the loop that decodes, between two
        batches: no answer means that nothing decodes any more.
        """
        ended = asyncio.create_task(process.wait(), name="engine-wait")
        missed = 0
        try:
            while missed < MISSES:
                await asyncio.wait({ended}, timeout=self._settings.health_interval)
                if ended.done():
                    return f"it ended with status {ended.result()}"
                try:
                    async with asyncio.timeout(self._settings.health_timeout):
                        await http.call(endpoint, "GET", "/slots")
                    missed = 0
                except (TimeoutError, http.Unreachable, http.Broken, Refused) as error:
                    missed += 1
                    _log.warning("engine.health_missed", missed=missed, why=str(error) or "no answer in time")
            process.kill()
            return "it stopped answering"
        finally:
            ended.cancel()

    async def _set(self, endpoint: Endpoint | None) -> None:
        async with self._changed:
            self._endpoint = endpoint
            self._changed.notify_all()

    async def _read_stderr(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        rest = b""
        while block := await process.stderr.read(4096):
            *lines, rest = (rest + block).split(b"\n")
            rest = rest[:LINE_LENGTH]
            for line in lines:
                said = line[:LINE_LENGTH].decode(errors="replace").strip()
                if said:
                    self._stderr.append(said)
                    _log.info("engine.child_said", line=said)


async def _end(process: asyncio.subprocess.Process) -> None:
    """The process is gone when this returns: asked by the end of its stdin, killed END_TIMEOUT later, or at once on
    cancellation.
    """
    try:
        if process.stdin is not None:
            process.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_TIMEOUT):
                await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    await process.wait()
