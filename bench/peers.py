"""What people would pick instead, as they would start it; each installed in a directory of its own under `.bench/`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path

from bench.contender import LOOPBACK, ROOT, Contender, Running, free_port, listens, process
from compose.up.servers import valkey_program

HOME = ROOT / ".bench"
CURE = "make bench-peers"
KEY = "sk-bench-7f0c2b8e9d4a4f1c8e6b3a5d2c9f1e70"
"""Long enough for LiteLLM, which refuses to start with a weak one."""


@dataclass(frozen=True)
class Direct:
    """Nothing between: what the engine itself takes."""

    name: str = "engine alone"
    version: str = ""
    missing: str = ""

    @asynccontextmanager
    async def start(self, engine: str, directory: Path) -> AsyncIterator[Running]:
        yield Running("chat", engine, KEY, {})


class _Installed:
    """A Python package in an environment of its own. program: of that environment, and its first arguments."""

    name = ""
    package = ""
    program: tuple[str, ...] = ()

    @property
    def home(self) -> Path:
        return HOME / self.name

    @cached_property
    def version(self) -> str:
        asked = f"import importlib.metadata as m; print(m.version({self.package!r}))"
        python = self.home / "bin/python"
        if not os.access(python, os.X_OK):
            return ""
        return subprocess.run([python, "-c", asked], capture_output=True, text=True, timeout=30).stdout.strip()

    @property
    def missing(self) -> str:
        return "" if self.version and os.access(self.home / "bin" / self.program[0], os.X_OK) else CURE

    @asynccontextmanager
    async def _serve(
        self, directory: Path, *more: str | Path, ready: str = "/health", env: Mapping[str, str] | None = None
    ) -> AsyncIterator[Running]:
        """Run the program with `more` arguments until the block ends; `{port}` is its port."""
        port, log = free_port(), directory / f"{self.name}.log"
        program, *first = self.program
        arguments = [*first, *(str(word).replace("{port}", str(port)) for word in more)]
        async with process([self.home / "bin" / program, *arguments], log, env) as child:
            await listens(port, child, log, ready)
            yield Running("chat", f"http://{LOOPBACK}:{port}", KEY, {self.name: child.pid})


class _Router(_Installed):
    """Rust. Round robin, because there is one engine: its cheapest policy."""

    quiet = ""  # its word for the log level

    def start(self, engine: str, directory: Path) -> AbstractAsyncContextManager[Running]:
        argv = ["--host", LOOPBACK, "--port", "{port}", "--worker-urls", engine]
        argv += ["--policy", "round_robin", "--log-level", self.quiet, "--prometheus-port", str(free_port())]
        return self._serve(directory, *argv)


class VllmRouter(_Router):
    name = package = "vllm-router"
    program = ("vllm-router",)
    quiet = "warning"


class SglangRouter(_Router):
    """The router that the one of vLLM was forked from."""

    name = package = "sglang-router"
    program = ("python", "-m", "sglang_router.launch_router")
    quiet = "warn"


class LiteLLM(_Installed):
    """Python; one worker process, no database, logging off."""

    name = package = "litellm"
    program = ("litellm",)

    def start(self, engine: str, directory: Path) -> AbstractAsyncContextManager[Running]:
        config = directory / "litellm.yaml"
        config.write_text(
            f"model_list:\n  - model_name: mock\n    litellm_params:\n      model: openai/mock\n"
            f"      api_base: {engine}/v1\n      api_key: {KEY}\n"
            "litellm_settings:\n  turn_off_message_logging: true\n  disable_streaming_logging: true\n"
        )
        env = {
            "LITELLM_MASTER_KEY": KEY,
            "LITELLM_LOG": "ERROR",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "DO_NOT_TRACK": "1",
        }
        argv = ["--config", str(config), "--host", LOOPBACK, "--port", "{port}"]
        return self._serve(directory, *argv, ready="/health/liveliness", env=env)


class HAProxy:
    """Bytes and nothing else: the floor of what a relay costs."""

    name = "haproxy"

    @property
    def missing(self) -> str:
        return "" if self._program else "apt-get install haproxy"

    @cached_property
    def version(self) -> str:
        done = subprocess.run([self._program or "false", "-v"], capture_output=True, text=True, timeout=30)
        return done.stdout.split(" ")[2] if done.stdout else ""

    @property
    def _program(self) -> str | None:
        return shutil.which("haproxy", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")

    @asynccontextmanager
    async def start(self, engine: str, directory: Path) -> AsyncIterator[Running]:
        port, log = free_port(), directory / f"{self.name}.log"
        config = directory / "haproxy.cfg"
        config.write_text(
            "global\n  maxconn 9000\n  nbthread 1\n"
            "defaults\n  mode http\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n"
            "  option http-no-delay\n"  # else it waits for more before it sends: 200 ms
            f"frontend f\n  bind {LOOPBACK}:{port}\n  default_backend b\n"
            f"backend b\n  server e {engine.removeprefix('http://')}\n"
        )
        async with process([self._program or "haproxy", "-f", config, "-db"], log) as child:
            await listens(port, child, log)
            yield Running("chat", f"http://{LOOPBACK}:{port}", KEY, {self.name: child.pid})


@dataclass(frozen=True)
class RedisStreams:
    """`redis_relay.py` and a Valkey of its own, which appends to a file."""

    name: str = "redis-streams"
    missing: str = ""

    @property
    def version(self) -> str:
        return f"redis-py {metadata.version('redis')}"

    @asynccontextmanager
    async def start(self, engine: str, directory: Path) -> AsyncIterator[Running]:
        store, port = free_port(), free_port()
        settings = ["--bind", LOOPBACK, "--port", str(store), "--dir", str(directory), "--save", ""]
        settings += ["--appendonly", "yes", "--appendfsync", "everysec"]
        log = directory / f"{self.name}.log"
        argv = [sys.executable, "-P", "-m", "bench.redis_relay", str(port), engine, f"redis://{LOOPBACK}:{store}"]
        async with (
            process([valkey_program(), *settings], directory / "valkey.log") as valkey,
            process(argv, log) as relay,
        ):
            await listens(port, relay, log)
            yield Running("chat", f"http://{LOOPBACK}:{port}", KEY, {self.name: relay.pid, "valkey": valkey.pid})


class NpmPackage:
    """A package in a directory of its own, for Node."""

    directory = ""
    package = ""

    @property
    def home(self) -> Path:
        return HOME / self.directory

    @property
    def missing(self) -> str:
        if shutil.which("node") is None:
            return "apt-get install nodejs"
        return "" if self._place.is_dir() else CURE

    @cached_property
    def version(self) -> str:
        return str(json.loads((self._place / "package.json").read_text())["version"])

    @property
    def _place(self) -> Path:
        return self.home / "node_modules" / self.package


class DurableStreams(NpmPackage):
    """The protocol's reference server with its file store, and a producer: `durable_streams.mjs`."""

    name = directory = "durable-streams"
    package = "@durable-streams/server"

    @asynccontextmanager
    async def start(self, engine: str, directory: Path) -> AsyncIterator[Running]:
        program: list[str | Path] = ["node", Path(__file__).with_name("durable_streams.mjs"), self.home]
        streams, port = free_port(), free_port()
        log = directory / f"{self.name}.log"
        argv = [*program, "producer", str(port), engine, f"http://{LOOPBACK}:{streams}"]
        async with (
            process([*program, "server", str(streams), directory / "streams"], directory / "server.log") as server,
            process(argv, log) as producer,
        ):
            await listens(port, producer, log)
            processes = {self.name: server.pid, "producer": producer.pid}
            yield Running("durable", f"http://{LOOPBACK}:{port}", KEY, processes)


def peers() -> list[Contender]:
    return [HAProxy(), VllmRouter(), SglangRouter(), LiteLLM(), RedisStreams(), DurableStreams()]
