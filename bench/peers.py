"""What people would pick instead, as they would start it. Each in a virtual environment of its own under `.bench/`."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bench.contender import LOOPBACK, ROOT, Contender, Running, free_port, listens, process

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
    """A Python package in an environment of its own."""

    name = ""
    package = ""

    @property
    def home(self) -> Path:
        return HOME / self.name

    @cached_property
    def version(self) -> str:
        asked = f"import importlib.metadata as m; print(m.version({self.package!r}))"
        done = subprocess.run([self.home / "bin/python", "-c", asked], capture_output=True, text=True, timeout=30)
        return done.stdout.strip()

    @property
    def missing(self) -> str:
        return "" if (self.home / "bin/python").exists() else CURE


class VllmRouter(_Installed):
    """Rust. Round robin, because there is one engine: its cheapest policy."""

    name = "vllm-router"
    package = "vllm-router"

    @asynccontextmanager
    async def start(self, engine: str, directory: Path) -> AsyncIterator[Running]:
        port, log = free_port(), directory / f"{self.name}.log"
        argv: list[str | Path] = [
            self.home / "bin/vllm-router",
            "--host",
            LOOPBACK,
            "--port",
            str(port),
            "--worker-urls",
            engine,
        ]
        argv += ["--policy", "round_robin", "--log-level", "warning", "--prometheus-port", str(free_port())]
        async with process(argv, log) as child:
            await listens(port, child, log)
            yield Running("chat", f"http://{LOOPBACK}:{port}", KEY, {self.name: child.pid})


class SglangRouter(_Installed):
    """Rust; the router that the one of vLLM was forked from."""

    name = "sglang-router"
    package = "sglang-router"

    @asynccontextmanager
    async def start(self, engine: str, directory: Path) -> AsyncIterator[Running]:
        port, log = free_port(), directory / f"{self.name}.log"
        argv: list[str | Path] = [
            self.home / "bin/python",
            "-m",
            "sglang_router.launch_router",
            "--host",
            LOOPBACK,
            "--port",
            str(port),
        ]
        argv += ["--worker-urls", engine, "--policy", "round_robin", "--log-level", "warn"]
        argv += ["--prometheus-port", str(free_port())]
        async with process(argv, log) as child:
            await listens(port, child, log)
            yield Running("chat", f"http://{LOOPBACK}:{port}", KEY, {self.name: child.pid})


class LiteLLM(_Installed):
    """Python; one worker process, no database, logging off."""

    name = "litellm"
    package = "litellm"

    @asynccontextmanager
    async def start(self, engine: str, directory: Path) -> AsyncIterator[Running]:
        port, log = free_port(), directory / f"{self.name}.log"
        config = directory / "litellm.yaml"
        config.write_text(
            f"model_list:\n  - model_name: mock\n    litellm_params:\n      model: openai/mock\n"
            f"      api_base: {engine}/v1\n      api_key: {KEY}\n"
            "litellm_settings:\n  turn_off_message_logging: true\n  disable_streaming_logging: true\n"
        )
        argv: list[str | Path] = [
            self.home / "bin/litellm",
            "--config",
            config,
            "--host",
            LOOPBACK,
            "--port",
            str(port),
        ]
        environment = {
            "LITELLM_MASTER_KEY": KEY,
            "LITELLM_LOG": "ERROR",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "DO_NOT_TRACK": "1",
        }
        async with process(argv, log, environment) as child:
            await listens(port, child, log, "/health/liveliness")
            yield Running("chat", f"http://{LOOPBACK}:{port}", KEY, {self.name: child.pid})


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


def peers() -> list[Contender]:
    return [HAProxy(), VllmRouter(), SglangRouter(), LiteLLM()]
