"""Nothing outlives the supervisor, whether it ends or is ended: real servers, small real roles."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

END_TIMEOUT = 30.0


class Host:
    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.compose.up.host", str(directory)], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()  # bounded by the supervisor's own deadline for a start
        self.pids: dict[str, int] = json.loads(line) if line else {}
        self.children = [psutil.Process(pid) for pid in self.pids.values()]

    def close(self) -> None:
        for process in (
            [*self.children, psutil.Process(self.process.pid)] if self.process.poll() is None else self.children
        ):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait(END_TIMEOUT)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def left(self) -> list[str]:
        """Who still runs after the deadline."""
        _, alive = psutil.wait_procs(self.children, timeout=END_TIMEOUT)
        names = {pid: name for name, pid in self.pids.items()}
        return [names[process.pid] for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path / "data")
    try:
        yield made
    finally:
        made.close()


def test_a_killed_supervisor_leaves_nothing_running(host: Host) -> None:
    assert sorted(host.pids) == ["nats-1", "node-1", "redis-1", "worker-1", "worker-1-model"]
    host.process.kill()
    assert host.left() == []


def test_a_supervisor_that_ends_leaves_nothing_running(host: Host) -> None:
    host.process.terminate()
    assert host.process.wait(END_TIMEOUT) == 0
    assert host.left() == []


def test_the_pid_of_a_server_is_the_servers_own(host: Host) -> None:
    """The tether becomes the program: `kill -9` of the pid in the ready file hits the server itself."""
    names = {name: psutil.Process(host.pids[name]).name() for name in ("nats-1", "redis-1")}
    assert names == {"nats-1": "nats-server", "redis-1": "valkey-server"}
