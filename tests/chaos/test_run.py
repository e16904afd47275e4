"""`okome chaos` as anybody would run it: every scenario, every transcript judged, and a report whatever happens."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compose.chaos.scenarios import CATALOGUE

FAULTS = 60
SEED = "1"
RUN_TIMEOUT = 600
ONE_OF_EACH_PROOF = (
    "node-kill",  # the kernel's word
    "consumer-delete",  # JetStream's
    "job-duplicated",  # the queue's
    "client-reset",  # a link's
    "ack-lost",  # a wire's
    "engine-raises",  # the viewers'
)


def okome_chaos(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    """In a process group of its own, its report in `directory`."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "compose.cli.main", "chaos", "--report", str(directory), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
        start_new_session=True,
    )


def unusual(said: str) -> str:
    """What a run said, without the rounds in which all was well."""
    return "\n".join(line for line in said.splitlines() if not line.endswith("  ok"))


def report(directory: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((directory / "report.json").read_text())
    return told


@pytest.mark.timeout(RUN_TIMEOUT + 60)
def test_every_scenario_is_played_and_no_guarantee_breaks(tmp_path: Path) -> None:
    """Every fault happens and proves it; no viewer misses, repeats or reorders a frame; one terminal per generation."""
    run = okome_chaos(tmp_path, "--seed", SEED, "--faults", str(FAULTS), "--targets", "2")
    said, _ = run.communicate(timeout=RUN_TIMEOUT)
    told = report(tmp_path)
    assert told["violations"] == [], unusual(said)
    assert told["unverified"] == [], unusual(said)
    assert run.returncode == 0, unusual(said)
    assert told["left_out"] == {}, "CI has all that the scenarios need"
    assert set(told["scenarios"]) == set(CATALOGUE)
    assert told["total"]["verified"] >= FAULTS
    assert (tmp_path / "report.html").stat().st_size > 10_000


@pytest.mark.timeout(180)
def test_a_control_run_finds_that_no_fault_happened(tmp_path: Path) -> None:
    """Every kind of proof fails when the fault strikes a wrong target: what cannot fail proves nothing."""
    chosen = [word for name in ONE_OF_EACH_PROOF for word in ("--scenario", name)]
    run = okome_chaos(tmp_path, "--seed", SEED, "--control", *chosen)
    said, _ = run.communicate(timeout=150)
    told = report(tmp_path)
    assert run.returncode == 0, said
    assert told["control"]
    assert told["believed"] == []
    assert told["total"]["refused"] >= len(ONE_OF_EACH_PROOF)


def test_an_interrupted_run_leaves_its_report(tmp_path: Path) -> None:
    """Ctrl-C ends it and all that it started; what was seen until then is in the report, which says so."""
    run = okome_chaos(tmp_path, "--seed", SEED, "--faults", "1000", "--scenario", "client-reset", "--targets", "1")
    assert run.stdout is not None
    for line in run.stdout:
        if "client-reset" in line and line.rstrip().endswith("ok"):
            break
    run.send_signal(signal.SIGINT)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 130, said
    told = report(tmp_path)
    assert told["total"]["verified"] >= 1
    assert told["systems"][0]["cut_off"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--scenario", "no-such-thing"),
        ("--seed", "seven"),
        ("--target", "/nowhere/ready.json"),
        ("--round", "2", "--scenario", "node-*"),
        ("--faults", "0"),
    ],
)
def test_what_cannot_be_run_is_said_and_nothing_is_started(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    where = tmp_path / "report"
    run = okome_chaos(where, *arguments)
    said, _ = run.communicate(timeout=30)
    assert run.returncode == 2, said
    assert said.strip()
    assert not where.exists()
