"""How a role lives, as processes: wrong settings named together, SIGTERM, an orphan's end, and the exit codes."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from broker.bus import lifecycle

ROOT = Path(__file__).parents[3]
TIMEOUT = 20.0

ROLE = """
import asyncio, sys
from broker.bus import lifecycle
from broker.bus.errors import BusUnavailable
from broker.bus.settings import RoleSettings
from pydantic_settings import SettingsConfigDict

class Settings(RoleSettings):
    model_config = SettingsConfigDict(env_prefix="OKOME_SAMPLE_")
    grace: float = 1.0

async def main(settings, stop):
    match sys.argv[1]:
        case "serve":
            print("serving", flush=True)
            await stop.wait()
            print("drained", flush=True)
        case "unavailable":
            raise BusUnavailable("no NATS server answers")
        case "busy":
            raise OSError("address already in use")
        case "defect":
            raise ZeroDivisionError("a defect")
        case "forgotten":
            async def fail():
                raise ZeroDivisionError("a defect")
            await asyncio.wait([asyncio.create_task(fail())])

sys.exit(lifecycle.launch("sample", Settings, main))
"""


def start(what: str, *, stderr: int = subprocess.PIPE, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ROLE, what],
        cwd=ROOT,
        env=os.environ | {f"OKOME_SAMPLE_{name}": value for name, value in environment.items()},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    return process.returncode, out, err


def test_wrong_settings_are_named_together_and_the_exit_code_is_2() -> None:
    code, _, err = end(start("serve", PORT="http", GRACE="soon", ID="a b", LOG_LEVEL="loud"))
    assert code == 2
    said = [json.loads(line) for line in err.splitlines()]
    assert {(line["event"], line["level"], line["role"]) for line in said} == {("settings.invalid", "error", "sample")}
    assert {line["setting"] for line in said} == {
        f"OKOME_SAMPLE_{name}" for name in ("PORT", "GRACE", "ID", "LOG_LEVEL")
    }
    assert all(line["why"] for line in said)


def test_a_misspelt_setting_is_said_and_does_not_keep_it_from_starting() -> None:
    code, _, err = end(start("unavailable", GRACES="2"))
    assert code == 3
    said = json.loads(err.splitlines()[0])
    assert said["setting"] == "OKOME_SAMPLE_GRACES"
    assert said["why"] == "is no setting; the nearest is OKOME_SAMPLE_GRACE"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_it_drain_and_end_well(number: signal.Signals) -> None:
    process = start("serve")
    assert process.stdout is not None
    assert process.stdout.readline() == "serving\n"
    process.send_signal(number)
    assert end(process)[:2] == (0, "drained\n")


@pytest.mark.parametrize(("what", "code"), [("unavailable", 3), ("busy", 3), ("defect", 1)])
def test_the_exit_code_says_what_failed(what: str, code: int) -> None:
    got, _, err = end(start(what))
    assert got == code
    said = json.loads(err.splitlines()[0])
    assert (said["event"], said["level"]) == ("role.cannot_start" if code == 3 else "role.failed", "error")


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [({}, "sample: cannot start: no NATS server answers"), ({"GRACE": "soon"}, "sample: OKOME_SAMPLE_GRACE: ")],
)
def test_a_person_at_a_terminal_is_told_in_a_sentence(environment: dict[str, str], sentence: str) -> None:
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as screen:
        process = start("unavailable", stderr=theirs, **environment)
        os.close(theirs)
        assert end(process)[0] in (2, 3)
        assert screen.read(65536).decode().startswith(sentence)


def test_what_a_library_logs_has_a_level_and_is_one_line() -> None:
    """Also what asyncio says of a task that nobody awaited, with its stack."""
    code, _, err = end(start("forgotten"))
    assert code == 0
    (said,) = [json.loads(line) for line in err.splitlines()]
    assert (said["level"], said["logger"]) == ("error", "asyncio")
    assert "Task exception was never retrieved" in said["event"]
    assert "ZeroDivisionError: a defect" in said["exception"]
    assert said["timestamp"]


@pytest.fixture
def supervisor() -> Iterator[subprocess.Popen[str]]:
    """A process that starts a role as its child, tells its pid and waits to be killed."""
    program = (
        "import os, subprocess, sys\n"
        "environment = os.environ | {'OKOME_SAMPLE_PARENT_PID': str(os.getpid())}\n"
        "child = subprocess.Popen([sys.executable, '-c', sys.argv[1], 'serve'], env=environment)\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, ROLE], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        yield process
        process.kill()


def test_an_orphan_drains_and_ends_by_itself(supervisor: subprocess.Popen[str]) -> None:
    """Its supervisor is killed: no signal tells it, and nothing is left running."""
    assert supervisor.stdout is not None
    role = psutil.Process(int(supervisor.stdout.readline()))
    assert supervisor.stdout.readline() == "serving\n"
    supervisor.kill()
    assert supervisor.stdout.readline() == "drained\n"
    psutil.wait_procs([role], timeout=TIMEOUT)
    assert not role.is_running() or role.status() == psutil.STATUS_ZOMBIE


def test_the_file_limit_is_never_lowered() -> None:
    """In a process of its own: a limit once raised stays."""
    program = (
        "import resource\n"
        "from broker.bus.lifecycle import raise_file_limit\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 256), hard))\n"
        "raise_file_limit()\n"
        "print(*resource.getrlimit(resource.RLIMIT_NOFILE), hard)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    soft, hard, before = map(int, done.stdout.split())
    assert hard == before
    assert soft > 256


def test_roles_run_on_uvloop() -> None:
    loop = lifecycle.loop_factory()()
    assert type(loop).__module__.startswith("uvloop")
    loop.close()


@pytest.mark.parametrize("file", ["/dev/full", "closed"])
def test_a_line_that_cannot_be_logged_is_lost_and_nothing_else(file: str) -> None:
    """Who logs is often a safety net, and a log may be on the disk that is full."""
    program = (
        "import os, sys, structlog\n"
        "from broker.bus.lifecycle import configure_logging\n"
        "if sys.argv[1] == 'closed':\n    os.close(2)\n"
        "configure_logging('info')\n"
        "for _ in range(3):\n    structlog.get_logger().error('x' * 100_000)\n"
        "print('went on')"
    )
    with open("/dev/full" if file != "closed" else os.devnull, "w") as nowhere:
        told = subprocess.run(
            [sys.executable, "-c", program, file], cwd=ROOT, stdout=subprocess.PIPE, stderr=nowhere, timeout=TIMEOUT
        )
    assert told.stdout == b"went on\n"
