"""The role as a process: exit codes, its HTTP face, and the real model beside the scripted one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import urllib.error
import urllib.request
from typing import Any

import pytest

from broker.bus.frames import DONE
from broker.bus.records import Message
from tests.gpu_worker.bed import ROOT, Bed, Process

CODE = "import sys; from gpu_worker.role import run; sys.exit(run())"


async def ran(**settings: str) -> tuple[int, str]:
    """Exit code and stderr of a role that ends by itself."""
    environment = os.environ | {f"OKOME_WORKER_{name.upper()}": value for name, value in settings.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CODE, cwd=ROOT, env=environment, stderr=asyncio.subprocess.PIPE
    )
    _, stderr = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode is not None
    return process.returncode, stderr.decode()


async def test_all_wrong_settings_are_told_at_once() -> None:
    code, said = await ran(slots="many", max_pause="-1")
    assert code == 2
    assert "OKOME_WORKER_SLOTS" in said
    assert "OKOME_WORKER_MAX_PAUSE" in said


async def test_a_worker_is_not_named_like_a_replica_of_okome() -> None:
    """Whoever hears it beat would take it for one: its room would not count, and its jobs would be given to others."""
    code, said = await ran(id="okome-gpu-1")
    assert code == 2
    assert "OKOME_WORKER_ID" in said
    assert "names that begin with `okome-` are those of OKOME's replicas" in said


@pytest.mark.parametrize("engine", ["vllm", "abacus"])
async def test_an_engine_that_is_not_there_is_named(bed: Bed, engine: str) -> None:
    code, said = await ran(engine=engine, nats_url=bed.url)
    assert code == 3
    assert engine in said


async def test_the_real_model_is_served_beside_the_scripted_one(bed: Bed) -> None:
    worker = await Process.start(bed.url, "w1", engine="smollm2", slots="1", queue_limit="4")
    try:
        assert json.loads(await worker.says("worker.started"))["models"] == ["smollm2", "scripted"]
        url = f"http://127.0.0.1:{json.loads(await worker.says('worker.listening'))['port']}"
        france = [Message("user", "What is the capital of France?")]
        await bed.ask("g1", france, model="smollm2", request={"temperature": 0.0, "max_tokens": 100})
        assert (await bed.ended("g1", 60)).type == DONE
        assert "Paris" in bed.text("g1")
        assert len(bed.of("g1")) > 4, "it came as more than one frame"
        assert await get(url + "/readyz") == "ok\n"
        engines = json.loads(await get(url + "/version"))["engines"]
        metrics = await get(url + "/metrics")
        assert 'okome_worker_tokens_total{model="smollm2"}' in metrics
        assert "g1" not in metrics
    finally:
        assert await worker.close() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(engines[0]["pid"], signal.SIGCONT)  # the engine's child has ended with its worker


async def test_a_worker_whose_server_is_not_there_says_which_and_why_and_ends_when_it_is_told(bed: Bed) -> None:
    """Its engine would go on trying for a minute, and only then say what stood in the way."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # bound and not listening: refused
        server = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        worker = await Process.start(bed.url, "w1", until="worker.listening", engine="openai", openai_url=server)
        try:
            url = f"http://127.0.0.1:{json.loads(await worker.says('worker.listening'))['port']}"
            said = ""
            async with asyncio.timeout(20):
                while "refused" not in said:  # nothing tells of a reason that has changed
                    said = await get(url + "/readyz")
                    await asyncio.sleep(0.05)
            assert server in said
        finally:
            assert await worker.close() == 0


async def get(url: str) -> str:
    def read() -> Any:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.read().decode()

    found: str = await asyncio.to_thread(read)
    return found
