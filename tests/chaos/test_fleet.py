"""Runs end when it has been enough, however they hang; and nothing that they started outlives them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from compose.chaos import fleet
from compose.chaos.fleet import Plan, RunFailed, deal, play
from compose.chaos.scenarios import CATALOGUE

DEADLINE = 30.0
HANGS = "import signal, sys, time; {}; print(end='', flush=True); sys.stdin.readline(); time.sleep(60)"
DECOY = """
import sys
from compose.chaos.decoy import Decoy
print(Decoy().process().pid, file=sys.stderr, flush=True)
sys.stdin.read()
"""
HOUSEHOLD = """
import asyncio, sys
from pathlib import Path
from compose.chaos.household import Household
from compose.chaos.world import RECOVERY

async def main():
    async with Household(RECOVERY, Path(sys.argv[1])) as system:
        print(*(one.pid for one in system.family()), file=sys.stderr, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@contextmanager
def running(code: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], list[psutil.Process]]]:
    """A process that plays this code, and those whose pids it tells on stderr. None is left behind."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    started = [psutil.Process(int(pid)) for pid in process.stderr.readline().split()]
    try:
        yield process, started
    finally:
        process.kill()
        for one in started:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue
        process.communicate(timeout=DEADLINE)


def left(started: list[psutil.Process]) -> list[psutil.Process]:
    """Who still runs after the deadline."""
    _, alive = psutil.wait_procs(started, timeout=DEADLINE)
    return [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    ("deaf", "status"), [("None", -15), ("signal.signal(signal.SIGTERM, signal.SIG_IGN)", -9)], ids=["asked", "killed"]
)
async def test_a_run_that_hangs_ends_in_time_when_it_has_been_enough(
    deaf: str, status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fleet, "RUN", (sys.executable, "-c", HANGS.format(deaf)))
    monkeypatch.setattr(fleet, "END_TIMEOUT", 1.0)
    monkeypatch.setattr(fleet, "ASKED_TIMEOUT", 1.0)
    asked = Plan(seed=1, scenarios=[CATALOGUE["node-kill"]], faults=1, sessions=1, duration=0, targets=1)
    enough = asyncio.Event()
    enough_was_heard = asyncio.get_running_loop().call_later(0.5, enough.set)
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(RunFailed, match=f"ended with {status}"):
            await play(deal(asked, tmp_path), 1, lambda order, line: None, enough)
    enough_was_heard.cancel()


def test_the_decoy_of_a_killed_run_ends_and_keeps_nobody_waiting() -> None:
    """Whoever reads what the run said comes to its end."""
    with running(DECOY) as (process, started):
        process.kill()
        process.communicate(timeout=DEADLINE)
        assert len(started) == 1
        assert left(started) == []


@pytest.mark.timeout(120)
def test_a_killed_run_leaves_no_household_behind(tmp_path: Path) -> None:
    with running(HOUSEHOLD, str(tmp_path)) as (process, started):
        process.kill()
        assert len(started) > 5
        assert left(started) == []
