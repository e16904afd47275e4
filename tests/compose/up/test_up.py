"""`okome up` as a person runs it: the real roles, the scripted engine."""

import json
import shutil
import signal
import ssl
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx

from compose import nats_server
from compose.up.settings import SETTINGS
from tests.broker.bus.conftest import server_with
from tests.fixtures.command import okome
from tests.fixtures.system import System

StartSystem = Callable[..., System]
TIMEOUT = 30.0


def ready(system: System, trust: ssl.SSLContext | bool = True) -> None:
    """Every role says so itself, by the deadline: after faults everywhere the last one may still look for others, and
    one that was not scheduled for a while has not heard of them."""
    urls = [f"{process['url']}/readyz" for process in system.processes if process["metrics"]]

    def unready() -> list[str]:
        return [url for url in urls if httpx.get(url, timeout=TIMEOUT, verify=trust).status_code != 200]

    system.wait_for(lambda: not unready(), "ready everywhere")


def healthy(system: System) -> None:
    ready(system)
    for process in system.processes:
        if process["metrics"]:
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


def test_a_killed_role_of_any_kind_is_back_where_it_was_and_nothing_outlives_a_crashed_supervisor(
    start_system: StartSystem,
) -> None:
    system = start_system()
    for role in ("node", "ingress", "control", "worker", "nats", "redis"):
        killed = system.kill(role)
        back = system.wait_restarted(killed)
        assert back["url"] == killed["url"]
        assert back["pid"] != killed["pid"]
    ready(system)
    system.crash()


def test_without_restarts_a_killed_role_stays_dead_and_is_no_longer_listed(start_system: StartSystem) -> None:
    system = start_system("--no-restart", "--nodes", "1")
    system.kill("node")
    system.wait_for(lambda: not [one for one in system.processes if one["role"] == "node"], "without its node")


def test_three_nats_servers_and_two_of_everything_over_tls(start_system: StartSystem) -> None:
    flags = ["--nats", "3", "--controls", "2", "--workers", "2", "--ingresses", "2", "--tls"]
    system = start_system(*flags)
    roles = [process["role"] for process in system.processes]
    assert [roles.count(role) for role in ("nats", "control", "node", "worker", "ingress")] == [3, 2, 2, 2, 2]
    assert system.nats_url.count(",") == 2
    trust = ssl.create_default_context(cafile=f"{system.ready['data']}/tls/ca.pem")
    assert system.url.startswith("https://")
    ready(system, trust)
    assert httpx.get(f"{system.url}/livez", verify=trust, timeout=TIMEOUT).status_code == 200


def said(system: System, *arguments: str) -> subprocess.CompletedProcess[str]:
    return okome(*arguments, home=system.directory / "state")


def test_a_revoked_first_key_is_said_by_whoever_needs_it_with_what_helps(start_system: StartSystem) -> None:
    system = start_system("--nodes", "1")
    file = f"{system.directory / 'data' / 'api-key'}"
    assert f"ok\tAPI key\tcounts, from {file}" in said(system, "doctor").stdout
    (first,) = said(system, "keys", "ls").stdout.splitlines()
    revoked = said(system, "keys", "revoke", first.split("\t")[0])
    assert revoked.returncode == 0
    assert "warning: that was the last API key" in revoked.stderr
    assert f"the API key in {file} does not count" in revoked.stderr
    assert system.stop() == 0
    assert "does not count" not in system.said.read_text()
    system.said.write_text("")
    again = start_system("--nodes", "1", "--data", str(system.directory / "data"))
    again.wait_for(lambda: f"the API key in {file} does not count" in again.said.read_text(), "warned of")
    asked = said(again, "models")
    assert asked.returncode == 1
    assert "okome doctor" in asked.stderr
    told = said(again, "doctor")
    assert told.returncode == 1
    assert f"bad\tAPI key\tthe API key in {file} does not count" in told.stdout


def test_of_two_systems_the_commands_take_the_last_and_then_the_one_that_still_runs(start_system: StartSystem) -> None:
    first = start_system("--nodes", "1")
    second = start_system("--nodes", "1", XDG_STATE_HOME=str(first.directory / "state"))
    both = said(first, "models")
    assert both.returncode == 0, both.stderr
    assert both.stderr == f"okome: using {second.url}, started last; --url chooses another: {first.url}\n"
    assert second.stop() == 0
    one = said(first, "models")
    assert (one.returncode, one.stderr) == (0, "")
    first.crash()
    none = said(first, "models")
    assert none.returncode == 1
    assert "no running system found" in none.stderr
    again = start_system("--nodes", "1", "--data", first.ready["data"], XDG_STATE_HOME=str(first.directory / "state"))
    assert first.url != again.url
    alone = said(first, "models")
    assert (alone.returncode, alone.stderr) == (0, "")
    (file,) = (first.directory / "state").rglob("*.json")
    assert json.loads(file.read_text()) == again.ready


def test_a_system_that_cannot_be_written_of_serves_and_says_that_others_will_not_find_it(
    start_system: StartSystem, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("somebody's")
    system = start_system("--nodes", "1", XDG_STATE_HOME=str(tmp_path / "file" / "state"))
    ready(system)
    warned = "the other commands may not find this system by themselves: "
    system.wait_for(lambda: warned in system.said.read_text(), "warned of")
    system.wait_restarted(system.kill("node"))
    assert said(system, "models").returncode == 1
    url, key = system.url, system.api_key
    assert said(system, "models", "--url", url).returncode == 1
    assert okome("models", "--url", url, home=tmp_path / "file" / "state", OKOME_API_KEY=key).returncode == 0
    assert system.stop() == 0


def test_nats_servers_that_ask_for_a_password_get_it_from_every_role_and_every_command(
    start_system: StartSystem, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    shutil.copytree(nats_server.CONFIG_DIR, config)
    with (config / "single.conf").open("a") as file:
        file.write('authorization { user: "okome", password: "p@ss:w/rd" }\n')
    told = {"NATS_USER": "okome", "NATS_PASSWORD": "p@ss:w/rd"}
    roles = {f"OKOME_{role.upper()}_{name}": value for role in SETTINGS for name, value in told.items()}
    with server_with(tmp_path / "nats", config_dir=config) as server:
        system = start_system("--nodes", "1", "--nats-url", server.url, **roles)
        ready(system)
        assert "p@ss" not in system.ready_file.read_text()
        stranger = said(system, "keys", "ls")
        assert stranger.returncode == 1
        assert "Authorization" in stranger.stderr
        home = system.directory / "state"
        listed = okome("keys", "ls", home=home, **{f"OKOME_{name}": value for name, value in told.items()})
        assert listed.returncode == 0, listed.stderr
        address = server.url.replace("//", "//okome:p%40ss%3Aw%2Frd@")
        assert okome("keys", "ls", home=home, OKOME_NATS_URL=address).stdout == listed.stdout
        assert system.stop() == 0
