"""`okome up` as a person runs it: the real roles, the scripted engine."""

import json
import signal
import stat
import subprocess
import sys
from collections.abc import Callable

import httpx
import pytest

from tests.fixtures.system import System

StartSystem = Callable[..., System]
TIMEOUT = 30.0


def healthy(system: System) -> None:
    for process in system.processes:
        if process["metrics"]:
            assert httpx.get(f"{process['url']}/readyz", timeout=TIMEOUT).status_code == 200, process
            assert httpx.get(process["metrics"], timeout=TIMEOUT).status_code == 200, process


def test_it_comes_up_serves_and_goes_down_with_nothing_left(start_system: StartSystem) -> None:
    system = start_system()
    ready = system.ready
    assert list(ready) == ["url", "page_url", "api_key", "nats_url", "redis_url", "data", "processes"]
    assert ready["page_url"].startswith(f"{ready['url']}/#t=")
    assert stat.S_IMODE(system.ready_file.stat().st_mode) == 0o600
    roles = [process["role"] for process in ready["processes"]]
    assert roles == ["nats", "redis", "control", "node", "node", "worker", "ingress"]
    healthy(system)
    with httpx.Client(base_url=system.url, headers=system.headers, timeout=TIMEOUT) as client:
        assert "scripted" in [model["id"] for model in client.get("/v1/models").json()["data"]]
        sid = client.post("/v1/sessions", json={"model": "scripted"}).json()["session_id"]
        prompt = json.dumps({"tokens": 5, "rate": 0, "seed": 3})
        asked = client.post(f"/v1/sessions/{sid}/generations", params={"wait": 20}, json={"prompt": prompt})
        assert asked.json()["text"] == "3.0 3.1 3.2 3.3 3.4 "
    assert system.stop() == 0
    said = system.said.read_text()
    assert said.count("ready: ") == 1
    assert f"ready: {ready['url']}\n" in said
    assert ready["api_key"] in said, "a key that was made is shown"


def test_the_key_and_the_sessions_are_there_again_on_the_same_directory(start_system: StartSystem) -> None:
    system = start_system()
    key = system.api_key
    with httpx.Client(base_url=system.url, headers=system.headers, timeout=TIMEOUT) as client:
        sid = client.post("/v1/sessions", json={"model": "scripted"}).json()["session_id"]
    assert system.stop(signal.SIGINT) == 130
    again = start_system("--data", str(system.directory / "data"))
    assert again.api_key == key
    assert key not in again.said.read_text(), "it is printed once"
    with httpx.Client(base_url=again.url, headers=again.headers, timeout=TIMEOUT) as client:
        assert client.get(f"/v1/sessions/{sid}").status_code == 200


def test_a_directory_in_use_cannot_start_a_second_system(start_system: StartSystem) -> None:
    system = start_system()
    told = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "compose.cli.main",
            "up",
            "--engine",
            "scripted",
            "--port",
            "0",
            "--data",
            system.ready["data"],
        ],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert told.returncode == 3
    assert "in use by another `okome up`" in told.stderr


@pytest.mark.parametrize("role", ["node", "ingress", "control", "worker", "nats", "redis"])
def test_a_killed_role_is_back_where_it_was(start_system: StartSystem, role: str) -> None:
    system = start_system()
    killed = system.kill(role)
    back = system.wait_restarted(killed)
    assert back["url"] == killed["url"]
    assert back["pid"] != killed["pid"]


def test_nothing_outlives_a_crashed_supervisor(start_system: StartSystem) -> None:
    start_system().crash()
