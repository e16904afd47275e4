"""Faults of processes whose victim ended a moment before: a fault that has happened, or one that could not."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from compose.chaos.fault import DidNotHappen, Fault
from compose.chaos.faults.process import freeze, kill, kill_all, lame_duck, terminate
from compose.chaos.whole import Process


@pytest.fixture
def sleepers() -> Iterator[list[Process]]:
    """Three processes that sleep until they are killed; the second has been, and nobody has its pid now."""
    children = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) for _ in range(3)]
    children[1].kill()
    children[1].wait()
    yield [Process("child", "child", child.pid, 0, "") for child in children]
    for child in children:
        child.kill()
        child.wait()


async def test_whoever_ended_with_one_before_it_is_gone_as_well(sleepers: list[Process]) -> None:
    fault = kill_all(sleepers, sleepers)
    await fault.strike()
    assert await fault.happened() == "3 processes are gone: child, child, child"


async def test_one_that_has_just_ended_is_gone(sleepers: list[Process]) -> None:
    gone = sleepers[1]
    fault = kill(gone, gone)
    await fault.strike()
    assert await fault.happened() == f"pid {gone.pid} is gone"


@pytest.mark.parametrize("make", [terminate, freeze, lambda victim, aim: lame_duck(victim, aim, lambda: "")])
async def test_what_has_ended_cannot_be_told_anything(
    make: Callable[[Process, Process], Fault], sleepers: list[Process]
) -> None:
    gone = sleepers[1]
    with pytest.raises(DidNotHappen, match="ended by itself"):
        await make(gone, gone).strike()


@pytest.mark.parametrize("make", [kill, terminate, lambda victim, aim: lame_duck(victim, aim, lambda: "")])
def test_a_fault_says_whom_it_ends_the_aim_and_not_the_victim(make: Callable[[Process, Process], Fault]) -> None:
    victim, aim = Process("node-1", "node", 1, 0, ""), Process("decoy", "decoy", 2, 0, "")
    assert make(victim, aim).ends == (aim,)
